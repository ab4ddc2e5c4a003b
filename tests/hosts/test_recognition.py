"""Frameworks are told by their files, and a wheel that has such files is none for a foreign script."""

import sys

import pytest

from ado_megatron.errors import UserError
from ado_megatron.hosts import MARKS, recognise


def importable(directory, framework, monkeypatch):
    """A `megatron` in the directory that has the framework's files, found by the next import."""
    for name in MARKS[framework]:
        file = directory / "megatron" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    (directory / "megatron" / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(directory), *sys.path])
    for name in [name for name in sys.modules if name.split(".")[0] == "megatron"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("framework", MARKS)
def test_a_checkout_is_recognised_by_its_files(framework, tmp_path, monkeypatch):
    importable(tmp_path, framework, monkeypatch)
    assert recognise(tmp_path / "pretrain_gpt.py") == (framework, tmp_path)
    (tmp_path / "megatron" / MARKS[framework][0]).unlink()
    with pytest.raises(UserError, match=f"no framework was recognised.*tried {'.*'.join(MARKS)}"):
        recognise(tmp_path / "pretrain_gpt.py")


@pytest.mark.parametrize(
    ("script", "beside", "counts"),
    [
        ("from megatron.training import get_args, pretrain", "", True),
        ("import megatron.training.training", "", True),
        ("def main():\n    from megatron import training", "", True),
        ("import mine", "from megatron.training import pretrain", True),
        ("from megatron.core import parallel_state", "", False),
        ("import mine", "import json", False),
        ("import theirs", "from megatron.training import pretrain", False),
        ("not Python", "", False),
    ],
)
def test_the_loop_of_a_wheel_counts_for_a_script_that_imports_it(script, beside, counts, tmp_path, monkeypatch):
    """megatron-core's newer wheels have the files of a checkout; most scripts that import it are no framework's."""
    importable(tmp_path / "site-packages", "megatron_lm", monkeypatch)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "mine.py").write_text(beside)
    path = tmp_path / "job" / "pretrain.py"
    path.write_text(script)
    if counts:
        assert recognise(path) == ("megatron_lm", tmp_path / "site-packages")
        return
    with pytest.raises(UserError, match=f"{path} does not import megatron.training, whose loop in .*site-packages"):
        recognise(path)


@pytest.mark.parametrize(
    ("script", "framework"),
    [
        ("from megatron.bridge.training.pretrain import pretrain", "megatron_bridge"),
        ("from megatron.training import pretrain\nfrom megatron.bridge import AutoBridge", "megatron_bridge"),
        ("from megatron.training import pretrain", "megatron_lm"),
    ],
)
def test_bridge_and_megatron_lm_in_one_place_are_told_by_the_script(script, framework, tmp_path, monkeypatch):
    for one in ("megatron_lm", "megatron_bridge"):
        importable(tmp_path / "site-packages", one, monkeypatch)
    (tmp_path / "pretrain.py").write_text(script)
    assert recognise(tmp_path / "pretrain.py") == (framework, tmp_path / "site-packages")
    (tmp_path / "pretrain.py").write_text("import json")
    with pytest.raises(UserError, match="does not import megatron.bridge, .* nor megatron.training, "):
        recognise(tmp_path / "pretrain.py")
