"""The page as text: numbers, order, filter, widths; through a pipe; once."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from ado_megatron import cli
from ado_megatron.report.read import read_run
from ado_megatron.report.target import target_lines
from ado_megatron.steer.journal import Entry, write_journal
from ado_megatron.steer.steering import Steering
from ado_megatron.watch.columns import columns, matcher, order_of, spark
from ado_megatron.watch.page import View, duration, page
from ado_megatron.watch.preview import Preview
from ado_megatron.watch.state import Followed
from tests.kit.runs import NAMES, make_run, write_records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    make_run(folder, planned=900, caps=[2000] + [10**6] * 7)
    return folder


def state_of(folder, next_K=None):
    followed = Followed(folder)
    followed.look()
    return followed.state(followed.run(), next_K)


def test_cells_are_those_of_the_run(folder):
    state, run = state_of(folder), read_run(folder)
    cells = {column.name: column.cells_K for column in columns(state)}
    assert cells["name"] == NAMES
    assert cells["share"] == [f"{share:.2%}" for share in run.weights_SxK[-1]]
    assert cells["loss"] == [f"{loss:.3f}" for loss in run.last_loss_K()]
    assert cells["out"][0] == "at its cap" and cells["out"][-1] == "–"  # it drew 6,000 of 2,000 samples
    # the law at the end, by hand: n is that of now and what the forecast of the supply adds
    law = run.laws().law_Kx3[4]
    n = run.counts_SxK[:, 4].sum() + state.supply.drawn_C[4] - run.supply.drawn_K[4]
    assert cells["forecast"][4] == f"{np.exp(law[1]) + np.exp(law[0]) * n ** -law[2]:.3f}"
    assert state.last_step == 900 and state.next_refit() == 801 and state.rate == 140 / 32


def test_the_page_states_the_target_loss_its_law_and_who_got_worse(folder):
    state = state_of(folder)
    lines = [line.text for line in page(state, View())]
    said = target_lines(state.run, 3)
    assert len(said) == 3 and said[0].startswith("Target loss") and said[1].startswith("Its law")
    assert [line for line in lines if line in said] == said


def test_order_and_filter(folder):
    table = columns(state_of(folder))
    by_loss = order_of(table, "loss", False, lambda name: True)
    loss_K = next(column.value_K for column in table if column.name == "loss")
    assert list(loss_K[by_loss]) == sorted(loss_K, reverse=True)
    assert order_of(table, "loss", True, lambda name: True) == by_loss[::-1]
    out = order_of(table, "out", False, lambda name: True)
    assert out[0] == 0 and out[-1] == 7  # who runs out first stands first
    kept = order_of(table, "name", False, matcher("PY, s*_tests,cp?"))
    assert [NAMES[k] for k in kept] == ["cpp", "python", "sympy_tests"]


@pytest.mark.parametrize("width", [1, 12, 30, 60, 100, 200])
def test_no_line_is_wider_than_the_terminal(folder, width):
    lines = page(state_of(folder), View(), width, 14)
    assert len(lines) <= 14 and all(len(line.text) <= width for line in lines)


def test_spark_lines():
    assert spark(np.array([3.0, np.nan, 1.0, 2.0])) == "█ ▁▅"
    assert spark(np.array([2.0, 2.0])) == "▁▁" and spark(np.full(3, np.nan)) == "   "


def test_durations():
    assert [duration(s) for s in (0, 89, 91, 3700, 200_000, np.nan)] == ["0 s", "89 s", "2 min", "1 h 02 min",
                                                                        "2 d 07 h", "?"]  # fmt: skip


def test_the_time_left_of_a_host_comes_from_when_its_intervals_were_written(tmp_path):
    records = [record for record in make_run(tmp_path, steps=400, planned=900) if record["type"] != "progress"]
    for record in records:
        if record["type"] == "step":  # written every 100 steps, 50 s apart
            record["time"] = 1e9 + 50 * -(-record["step"] // 100)
    write_records(tmp_path, records)
    assert state_of(tmp_path).rate == pytest.approx(2.0)


def test_events_of_all_kinds_are_shown_in_order(tmp_path):
    records = make_run(tmp_path, steps=150)
    records += [
        {"type": "change", "step": 151, "id": 1, "block": 160, "who": "ann@node3", "when": "2026-11-24 12:30:01 +0000",
         "what": {"pins": {"python": 0.3, "cpp": None}}, "before": {"pins": {"python": None, "cpp": 0.1}}},
        {"type": "alarm", "step": 152, "alarm": "above_law", "domain": "cpp", "text": "cpp\x1b[31m: above its law"},
        {"type": "fit", "step": 153, "failed": "out of memory"}, {"type": "gap", "step": 151, "from_step": 140,
         "records": 2}, {"type": "novelty", "step": 160},
    ]  # fmt: skip
    write_records(tmp_path, records)
    shown = [line.text for line in page(state_of(tmp_path), View())][-4:]
    assert shown == [
        "step 151  change: python: pin 0.3 (was none), cpp: pin none (was 0.1), from block 160 on, by ann@node3",
        "step 151  gap: 2 records of steps 140 to 151 are lost",
        "step 152  alarm: cpp�[31m: above its law",
        "step 153  failed fit: the old laws stay: out of memory",
    ]


def test_what_is_set_by_hand_is_said_and_the_next_refit_keeps_to_it(tmp_path):
    make_run(tmp_path, planned=900)
    entry = Entry(1, 500, 480, "ann@node3", "2026-11-24", {"pins": {"python": 0.5}, "policy": "plan"}, {})
    write_journal(tmp_path / "ado" / "journal.json", [entry])
    followed, preview = Followed(tmp_path), Preview()
    followed.look()
    run = followed.run()
    preview.look(run, followed.steering(run), 100.0)
    assert preview.weights_K[0] == pytest.approx(0.5) and preview.weights_K.sum() == pytest.approx(1.0)
    lines = [line.text for line in page(followed.state(run, preview.weights_K), View())]
    assert lines[2].startswith("policy plan; laws of 8") and lines[3] == "pinned: python 0.5"
    write_journal(tmp_path / "ado" / "journal.json", [entry, dataclasses.replace(entry, id=2, what={"hold": True})])
    assert followed.steering(run).hold


def test_a_damaged_record_is_left_out_and_said(tmp_path):
    records = make_run(tmp_path, steps=50)
    records[-2]["loss_K"] = [1.0]
    write_records(tmp_path, records)
    followed = Followed(tmp_path)
    followed.look()
    assert "loss_K does not hold 8 numbers" in followed.problem
    assert followed.run().step_S[-1] == 45


def test_the_next_refit_is_what_the_policy_does_under_laws_fitted_now(folder):
    run, preview = read_run(folder), Preview()
    preview.look(run, Steering(), 100.0)
    next_K, now_K = preview.weights_K, run.weights_SxK[-1]
    assert next_K.sum() == pytest.approx(1.0) and 0.5 * np.abs(next_K - now_K).sum() <= run.config.max_change + 1e-9
    assert "next" in {column.name for column in columns(state_of(folder, next_K))}


def test_a_run_without_laws_has_no_next_refit(tmp_path):
    make_run(tmp_path, steps=50, adaptive=False)
    preview = Preview()
    preview.look(read_run(tmp_path), Steering(), 1.0)
    assert preview.weights_K is None and state_of(tmp_path).next_refit() is None


def test_once_through_a_pipe_prints_everything_and_ends(folder, capsys):
    assert cli.main(["watch", str(folder), "--once", "--sort", "name", "--no-preview"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("watched0: step 600 of 900 (66.7%)") and "\x1b" not in text
    assert [line.split()[0] for line in text.splitlines()[8:16]] == sorted(NAMES)
    assert "law ε + β·n^−α" in text


def test_a_pipe_gets_lines_until_the_run_is_at_its_end(tmp_path):
    records = make_run(tmp_path, steps=200)
    cut = records[: len(records) // 2]
    write_records(tmp_path, cut)
    with subprocess.Popen(
        [sys.executable, "-m", "ado_megatron.cli", "watch", str(tmp_path), "--every", "0.1", "--filter", "python"],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        first = process.stdout.readline()
        assert first.startswith("step ") and " of 200, " in first and "| python " in first and "cpp" not in first
        with open(tmp_path / "ado" / "metrics.jsonl", "a") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records[len(cut) :]))
        rest = process.stdout.read().splitlines()
        assert process.wait(timeout=60) == 0
    assert any("fit: laws of" in line for line in rest) and rest[-1].startswith("step 200 of 200, 0 s left")


@pytest.mark.parametrize("argv, words", [
    (["nowhere"], "is no run directory"), (["here", "--once"], "no measured interval yet"),
    (["here", "--every", "0"], "--every 0 must be"), (["here", "--sort", "size"], "--sort"),
])  # fmt: skip
def test_what_cannot_be_watched_is_one_sentence(tmp_path, capsys, argv, words):
    (tmp_path / "here" / "ado").mkdir(parents=True)
    assert cli.main(["watch", str(tmp_path / argv[0]), *argv[1:]]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
