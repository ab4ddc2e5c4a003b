"""The command line that takes the place of a script's: what it cannot do it says, and off it does nothing."""

import subprocess
import sys

import pytest

from ado_megatron.run import main
from tests.kit.host_runs import ROOT


def test_a_missing_script_is_one_sentence_and_exit_code_two(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["no_such_script.py", "--ado-audit"])
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert "must be the path of the training script, not 'no_such_script.py'" in error and error.count("\n") == 1


def test_off_runs_the_script_as_its_authors_wrote_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "neighbour.py").write_text("name = 'neighbour'")
    script = tmp_path / "train.py"
    script.write_text("import sys, neighbour\nprint(__name__, sys.argv[1:], neighbour.name)")
    monkeypatch.setattr(sys, "path", ["here", *sys.path])
    monkeypatch.setattr(sys, "argv", ["run"])
    monkeypatch.delenv("ADO_CPU", raising=False)
    main([str(script), "--lr", "1", "--ado-off", "--ado-seed", "3"])
    assert capsys.readouterr().out == "__main__ ['--lr', '1'] neighbour\n"


def test_a_mistake_in_the_command_line_does_not_wait_for_torch():
    look = "import sys; from ado_megatron.hosts import console; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", look], cwd=ROOT).returncode == 0
