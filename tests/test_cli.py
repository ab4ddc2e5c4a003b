"""The command line's frame: what is printed, and the exit codes."""
import subprocess
import sys
import types

import pytest

from ado_megatron import cli
from ado_megatron.errors import SidecarError, UserError


@pytest.fixture
def command(monkeypatch):
    """Adds a subcommand `probe` whose main is given."""

    def add(main):
        module = types.ModuleType("probe_command")
        module.main = main
        monkeypatch.setitem(sys.modules, "probe_command", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", ("probe_command", "a probe"))

    return add


def test_a_subcommand_gets_the_rest_of_the_line_and_its_code_is_returned(command):
    seen = []
    command(lambda argv: seen.append(argv) or 5)
    assert cli.main(["probe", "--steps", "3"]) == 5
    assert seen == [["--steps", "3"]]


@pytest.mark.parametrize("kind", [UserError, SidecarError])
def test_a_user_error_is_one_sentence_on_stderr_and_code_2(command, capsys, kind):
    def fail(argv):
        raise kind("the file x is gone; make it")

    command(fail)
    assert cli.main(["probe"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "ado-megatron: error: the file x is gone; make it\n"
    assert printed.out == ""


def test_a_defect_keeps_its_traceback(command):
    def fail(argv):
        raise ZeroDivisionError

    command(fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["probe"])


def test_an_unknown_command_is_refused_with_the_list(capsys):
    assert cli.main(["trian"]) == 2
    assert "no command 'trian'; the commands are prepare, pretrain" in capsys.readouterr().err


def test_help_names_every_command_and_no_arguments_is_an_error(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in cli.COMMANDS)
    assert cli.main([]) == 2


def test_asking_for_help_imports_nothing_heavy():
    code = "import sys, ado_megatron.cli as c; c.main(['--help']); print(sorted({'numpy', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
