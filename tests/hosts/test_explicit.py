"""The hooks of a patched checkout: live after `start`, and no hooks at all where nothing was started."""

import sys

import pytest

from ado_megatron.hosts import console, explicit


def stock():
    return "stock"


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Options → explicit.start with them; returns sys.argv as the script then sees it."""
    script = tmp_path / "pretrain_gpt.py"
    script.write_text("")
    monkeypatch.setattr(explicit, "_wrappers", {})
    monkeypatch.setattr(console, "print_warnings", lambda: None)  # for the rest of a process
    monkeypatch.delenv("ADO_CPU", raising=False)

    def start(*options):
        monkeypatch.setattr(sys, "argv", [str(script), "--lr", "1", *options])
        explicit.start("megatron_lm")
        return sys.argv[1:]

    return start


def test_a_hook_leaves_its_function_alone_where_nothing_was_started(monkeypatch):
    monkeypatch.setattr(explicit, "_wrappers", {})
    assert explicit.hook("megatron.training.training:train")(stock) is stock


def test_started_the_hooks_are_live_and_the_script_sees_its_own_options(started):
    assert started("--ado-seed", "3") == ["--lr", "1"]
    assert explicit.hook("megatron.training.training:train")(stock) is not stock
    assert explicit.hook("megatron.training.training:no_hook")(stock) is stock


def test_off_leaves_every_function_alone(started):
    assert started("--ado-off") == ["--lr", "1"]
    assert explicit.hook("megatron.training.training:train")(stock) is stock


def test_bad_options_end_in_one_sentence_and_code_two(started, capsys):
    with pytest.raises(SystemExit) as leaving:
        started("--ado-lead", "-4")
    assert leaving.value.code == 2 and capsys.readouterr().err.count("\n") == 1
