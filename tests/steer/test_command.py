"""The command: what it asks for, what it prints, and the journal that it lists."""

import json

import pytest

from ado_megatron import cli
from ado_megatron.errors import UserError
from ado_megatron.mixer import rank_zero
from ado_megatron.steer import command
from ado_megatron.steer.command import _parser, asked_of
from tests.kit.mixing import config
from tests.kit.steering import QuickFit, QuickRun


def asked(*argv):
    return asked_of(_parser().parse_intermixed_args(["RUN", *argv]))


def test_words_become_a_request(tmp_path):
    (tmp_path / "target.yaml").write_text("code: 2\nwiki: 1\n")
    assert asked("code=.3", "wiki=+10%") == {"pins": {"code": 0.3, "wiki": "+0.1"}}
    assert asked("--floor", ".01", "code=.3") == {"pins": {"code": 0.3}, "floor": {"": 0.01}}
    assert asked("--unpin") == {"unpin": [""]} and asked("--unpin", "code") == {"unpin": ["code"]}
    assert asked("--ceiling", "web=.4,code=none")["ceiling"] == {"web": 0.4, "code": None}
    assert asked("--max-epochs", "4,wiki=none")["max_epochs"] == {"": 4.0, "wiki": None}
    assert asked("--policy", "plan", "--hold") == {"policy": "plan", "hold": True}
    assert asked("--release") == {"hold": False}
    assert asked("--refit-now") == {"refit_now": True} and asked("--undo") == {"undo": True}
    assert asked("--target", "uniform")["target"] == "uniform"
    assert asked("--target", "code=.4,web=.6")["target"] == {"code": 0.4, "web": 0.6}
    assert asked("--target", str(tmp_path / "target.yaml"))["target"] == {"code": 2, "wiki": 1}


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--target", "best"], "has no domain=weight, and as a file it cannot be read"),
        (["--hold", "--release"], "not allowed with argument --hold"),
        (["--at-step", "x"], "invalid int value"),
        (["--list", "--hold"], "--list stands alone"),
        ([], "nothing is asked for"),
    ],
)
def test_what_asks_for_nothing_is_refused(tmp_path, argv, sentence, capsys):
    (tmp_path / "ado").mkdir()
    assert cli.main(["set", str(tmp_path), *argv]) == 2
    out = capsys.readouterr()
    assert sentence in out.err and out.err.count("\n") == 1 and out.out == ""


def test_a_directory_without_a_run_is_refused(tmp_path, capsys):
    assert cli.main(["set", str(tmp_path), "code=.3"]) == 2
    assert "holds no ado/" in capsys.readouterr().err


class _Run(QuickRun):
    """Makes steps until the request is answered: the command waits in this very process."""

    def set(self, monkeypatch, *argv):
        monkeypatch.setattr(command, "ask", lambda directory, request, **kwargs: self.answer(request))
        return cli.main(["set", str(self.path), *argv])

    def answer(self, request):
        return self.ask(**request["asked"], at_step=request["at_step"])


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero, "Fit", QuickFit)
    return _Run(tmp_path, config(fit_lag=3), 100).start().train(12)


def test_a_change_is_printed_with_its_block_and_listed(run, monkeypatch, capsys):
    assert run.set(monkeypatch, "code=.2", "--floor", "maths=.1") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "change 1: code: pin 0.2 (was none); maths: floor 0.1 (was none)"
    # Lead 2 and pieces of 5: rows 0–6 at the start, 7–12 after step 6, 13–18 after step 12; the look is after step 15.
    assert second.startswith("holds from block 19 on, 4 blocks after that of step 15 (in about ")
    assert run.set(monkeypatch, "--undo") == 0
    assert run.set(monkeypatch, "code=.9", "wiki=.3") == 2
    refusal = "pins and floors sum to 1.2; shares sum to 1, so lower some or unpin a domain"
    assert capsys.readouterr().err == f"ado-megatron: error: {refusal}\n"
    assert cli.main(["set", str(run.path), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].endswith("change 1 is undone") and "from block 19" in lines[0]
    assert cli.main(["set", str(run.path), "--list", "--json"]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert entries[0]["what"] == {"pins": {"code": 0.2}, "floor": {"maths": 0.1}}
    assert entries[0]["before"] == {"pins": {"code": None}, "floor": {"maths": None}}
    assert entries[1]["what"] == {"undo": 1}


def test_a_run_that_does_not_answer_is_said_to_be_so_after_a_minute(tmp_path, capsys):
    """Its process is gone; the request is withdrawn, so that the run does not find it when it is resumed."""
    assert _parser().get_default("wait") == 60
    (tmp_path / "ado").mkdir()
    assert cli.main(["set", str(tmp_path), "code=.3", "--wait", "0.2"]) == 2
    said = capsys.readouterr().err
    assert "did not answer in 0.2 s, so the request is withdrawn and nothing was changed" in said
    assert said.count("\n") == 1
    assert list((tmp_path / "ado" / "requests").iterdir()) == []


def test_an_untouched_run_lists_nothing(run, capsys):
    assert cli.main(["set", str(run.path), "--list"]) == 0
    assert capsys.readouterr().out == f"nothing was changed by hand in {run.path}\n"


def test_a_damaged_journal_is_refused(run):
    (run.path / "ado" / "journal.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        command.main([str(run.path), "--list"])
