"""Rank zero's end of `ado-megatron set`: what is refused leaves the run as it was, what is granted is journalled."""

import os

import pytest

from ado_megatron.measure.metrics import read_metrics
from ado_megatron.mixer import rank_zero
from ado_megatron.mixer.sidecar import read_sidecar
from ado_megatron.steer import journal
from ado_megatron.steer.journal import read_journal
from ado_megatron.steer.requests import file_request
from tests.kit.mixing import config
from tests.kit.steering import QuickFit, QuickRun

STEPS = 100


@pytest.fixture
def run(tmp_path, monkeypatch):
    """After 12 of 100 steps; lead 2 and pieces of 5 rows, so rows 0 to 18 are published when it looks after step 15."""
    monkeypatch.setattr(rank_zero, "Fit", QuickFit)
    return QuickRun(tmp_path / "run", config(fit_lag=3), STEPS).start().train(12)


REFUSED = [
    (dict(pins={"code": 0.3}, at_step=18), "step 18 is planned already; a change can hold from step 19 on"),
    (dict(pins={"code": 0.3}, at_step=100), "step 100 is beyond the end of the run, which has 100 blocks"),
    (dict(pins={"code": 0.3}, at_step="soon"), "cannot be understood (ValueError"),
    (dict(undo=True), "there is no change that could be undone"),
    (dict(undo=True, hold=True), "an undo stands alone"),
    (dict(refit_now=True, hold=True), "a refit is asked for alone"),
    (dict(refit_now=True, at_step=50), "a refit is asked for alone"),
    (dict(pins={"code": 0.9, "wiki": 0.3}), "pins and floors sum to 1.2"),
    (dict(max_epochs={"": 0.01}), "the run needs"),
    (dict(pins=[7]), "cannot be understood"),
    (dict(policy="nobody's"), "there is no policy of this name"),
]


@pytest.mark.parametrize(("asked", "sentence"), REFUSED)
def test_what_cannot_be_is_refused_and_the_run_is_as_it_was(run, tmp_path, asked, sentence):
    answer = run.ask(**asked)
    assert answer.keys() == {"refused"} and sentence in answer["refused"] and "\n" not in answer["refused"]
    assert read_journal(run.path / "ado" / "journal.json") == []
    other = QuickRun(tmp_path / "other", config(fit_lag=3), STEPS).start().train(STEPS)
    assert run.train(STEPS).stream == other.stream
    assert not [record for record in read_metrics(run.path / "ado" / "metrics.jsonl") if record["type"] == "change"]


def test_a_change_is_journalled_in_file_metrics_and_sidecar_with_what_was_before(run):
    assert "entry" in run.ask(pins={"code": 0.3})
    answer = run.ask(pins={"code": 0.4}, floor={"maths": 0.1}, at_step=60)
    assert (answer["entry"]["block"], answer["step"], answer["blocks"]) == (60, 20, 40)
    assert answer["seconds"] >= 0 and run.mixer.domains.names_K  # by the steps since the looks before
    entries = read_journal(run.path / "ado" / "journal.json")
    assert [entry.before for entry in entries] == [{"pins": {"code": None}},
                                                   {"pins": {"code": 0.3}, "floor": {"maths": None}}]  # fmt: skip
    assert all(entry.who.endswith("@here") and entry.when for entry in entries)
    run.train(70).save(run.path / "s.ado")
    assert journal.entries_of(read_sidecar(run.path / "s.ado")[0]["journal"], "s.ado") == entries
    records = [record for record in read_metrics(run.path / "ado" / "metrics.jsonl") if record["type"] == "change"]
    assert [(record["step"], record["block"], record["who"], record["before"]) for record in records] == [
        (entry.step, entry.block, entry.who, entry.before) for entry in entries
    ]
    steps = read_metrics(run.path / "ado" / "metrics.jsonl")
    code, _, maths = zip(*(record["weights_K"] for record in steps if record.get("step") in (60, 65)), strict=True)
    assert code == (pytest.approx(0.3), pytest.approx(0.4)) and maths[1] >= 0.1


def test_a_refit_is_made_after_the_first_block_of_which_all_ranks_can_hear(run):
    assert "laws are fitted from step 20 on (--ado-start-step)" in run.ask(refit_now=True)["refused"]
    answer = run.train(22).ask(refit_now=True)
    block = answer["entry"]["what"]["refit_after"]
    assert answer["entry"]["block"] == block + 1 + 3 and 25 <= block < 40  # the next by the options is after block 40
    run.train(50)
    fits = [record for record in read_metrics(run.path / "ado" / "metrics.jsonl") if record["type"] == "fit"]
    assert [record["applies_at_block"] for record in fits] == [24, block + 4, 44]


def test_when_every_step_is_planned_nothing_can_change(run):
    assert "every step of this run is planned already" in run.train(96).ask(hold=True)["refused"]


def test_a_journal_that_cannot_be_written_refuses_the_change(run, monkeypatch):
    def full(path, entries):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "write_journal", full)
    assert "cannot be written (No space left on device), so nothing was changed" in run.ask(hold=True)["refused"]
    assert run.mixer.rank_zero.planner.regimes.entries == []


def test_requests_that_come_together_are_answered_in_their_order(run):
    paths = [file_request(run.mixer.directory, {"host": "here", "asked": {"pins": {"code": share}}, "at_step": None})
             for share in (0.2, 0.3, 0.4)]  # fmt: skip
    run.train(20)
    assert all(path.with_suffix(".answer").exists() for path in paths)
    entries = read_journal(run.path / "ado" / "journal.json")
    assert [entry.what["pins"]["code"] for entry in entries] == [0.2, 0.3, 0.4] and len({e.block for e in entries}) == 1
    assert run.mixer.rank_zero.planner.weights_K(entries[0].block)[0] == pytest.approx(0.4)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_request_of_another_user_a_link_and_one_too_large_change_nothing(run):
    folder = run.mixer.directory / "requests"
    (folder / "aaaaaaaa1.json").write_text('{"host": "here", "asked": {"hold": true}}')
    os.chown(folder / "aaaaaaaa1.json", 12345, 12345)
    (run.path / "mine.json").write_text('{"host": "here", "asked": {"hold": true}}')
    (folder / "aaaaaaaa2.json").symlink_to(run.path / "mine.json")
    (folder / "aaaaaaaa3.json").write_text('{"host": "here", "asked": {"hold": true}}' + " " * (64 << 10))
    run.train(30)
    answers = [(folder / f"aaaaaaaa{n}.answer").read_text() for n in (1, 2, 3)]
    for answer, words in zip(answers, ("user 12345 does not own", "is a link", "more than 65,536"), strict=True):
        assert words in answer and "refused" in answer
    assert read_journal(run.path / "ado" / "journal.json") == []
