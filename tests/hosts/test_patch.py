"""Insertions into a fork: applied whole, reverted to the byte, refused where they do not fit, equal to the wrapper."""

import json
import shutil
import subprocess
import sys

import pytest

from ado_megatron.audit import audit
from ado_megatron.errors import UserError
from ado_megatron.hosts import patch
from ado_megatron.measure.draw_file import DrawFile
from tests.kit.host_runs import QUICK_ADO, ROOT, checkout, tail, train, write_domains

TRAINING = '''"""A training loop."""
import os
from data import (
    Blend,
)

class Loader:
    @property
    def size(self):
        return 3

    def next(self, batch):
        return batch


@staticmethod
def train(model, data, steps=3):
    return model
'''
PATCHED = '''"""A training loop."""
import ado  # ado-megatron
import os
from data import (
    Blend,
)
Blend = ado(Blend)  # ado-megatron

class Loader:
    @property
    def size(self):
        return 3

    @ado.hook("next")  # ado-megatron
    def next(self, batch):
        return batch


@ado.hook("train")  # ado-megatron
@staticmethod
def train(model, data, steps=3):
    return model
'''


@pytest.fixture
def fork(tmp_path):
    """A checkout of two files and the set that fits it."""
    root, sets = tmp_path / "fork", tmp_path / "sets"
    (root / "deep").mkdir(parents=True)
    sets.mkdir()
    (root / "training.py").write_text(TRAINING)
    (root / "deep" / "script.py").write_bytes(b"import sys\r\nprint(sys.argv)\r\n")
    insert = [
        {"anchor": {"import": "os"}, "lines": ["import ado"]},
        {"anchor": {"after_import": "Blend"}, "lines": ["Blend = ado(Blend)"]},
        {"anchor": {"function": "Loader.next", "parameters": ["self", "batch"]}, "lines": ['@ado.hook("next")']},
        {"anchor": {"function": "train", "parameters": ["model", "data"]}, "lines": ['@ado.hook("train")']},
    ]
    script = [{"anchor": {"import": "sys"}, "lines": ["import ado", "ado.start()"]}]
    files = {"training.py": insert, "deep/script.py": script}
    digests = {name: patch._digest(patch._read(root / name)) for name in files}
    values = {name: {"sha256": digests[name], "insert": lines} for name, lines in files.items()}
    (sets / "toy.json").write_text(json.dumps({"host": "toy", "commit": "abc", "files": values}))
    return root, sets


def run(action, root, sets):
    return patch.main([action, str(root), "--patches", str(sets)])


def contents(root):
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_apply_inserts_at_the_anchors_twice_changes_nothing_and_revert_is_exact(fork, capsys):
    root, sets = fork
    before = contents(root)
    assert run("check", root, sets) == 0 and contents(root) == before
    assert run("apply", root, sets) == 0
    assert (root / "training.py").read_text() == PATCHED
    after = contents(root)
    assert run("apply", root, sets) == 0 and contents(root) == after
    assert run("revert", root, sets) == 0 and contents(root) == before
    assert run("revert", root, sets) == 0 and contents(root) == before
    assert "plain → patched" in capsys.readouterr().out


def test_a_file_of_another_commit_is_refused_with_the_anchors_that_hold(fork):
    root, sets = fork
    text = TRAINING.replace("def train(model, data", "def train(network, data")
    (root / "training.py").write_text(text)
    sentence = r"of the 5 anchors of toy abc, 4 hold.*train takes \(network, data, steps\)"
    for action in ("check", "apply", "revert"):
        with pytest.raises(UserError, match=sentence):
            run(action, root, sets)
    assert (root / "training.py").read_text() == text


def test_a_half_patched_checkout_is_completed_or_reverted(fork):
    root, sets = fork
    before = contents(root)
    run("apply", root, sets)
    after = contents(root)
    (root / "training.py").write_text(TRAINING)
    assert run("apply", root, sets) == 0 and contents(root) == after
    (root / "training.py").write_text(TRAINING)
    assert run("revert", root, sets) == 0 and contents(root) == before


def test_a_failing_write_leaves_every_file_as_it_was(fork, monkeypatch):
    root, sets = fork
    before, replace, calls = contents(root), patch.os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(patch.os, "replace", failing)
    with pytest.raises(OSError, match="disk full"):
        run("apply", root, sets)
    assert len(calls) == 2 and contents(root) == before


def test_a_package_that_is_installed_carries_the_sets(tmp_path):
    clone = tmp_path / "clone"
    for part in ("ado_megatron", "patches", "launch"):
        shutil.copytree(ROOT / part, clone / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.py", clone)
    build = [sys.executable, "setup.py", "-q", "build", "--build-lib", str(tmp_path / "site")]
    subprocess.run(build, cwd=clone, check=True, capture_output=True)
    look = "from ado_megatron.hosts import patch; print(len(patch.read_sets(patch.PATCHES)), patch.PATCHES)"
    done = subprocess.run([sys.executable, "-c", look], cwd=tmp_path / "site", capture_output=True, text=True)
    assert done.stdout.split() == ["3", str(tmp_path / "site" / "ado_megatron" / "patches")], done.stderr


def test_the_sets_hold_our_lines_alone():
    sets = patch.read_sets()
    assert {(s.host, s.commit) for s in sets} == {
        ("megatron_lm", "core_v0.16.1"), ("megatron_lm", "d98e8a6"), ("megatron_deepspeed", "4efb479")
    }  # fmt: skip
    lines = {line for s in sets for file in s.files for insertion in file.insertions for line in insertion.lines}
    assert all("ado" in line for line in lines)


def draws(run):
    """(step, kind, key, sample) of every rank, as logged."""
    files = [DrawFile.open(path) for path in sorted((run.directory / "ado" / "audit").glob("*.draws"))]
    return [
        (file.header["rank"], step.step, step.key_N.tolist(), step.sample_N.tolist(), step.seen_N.tolist())
        for file in files
        for step in file.steps()
    ]


@pytest.mark.host
@pytest.mark.timeout(600)
@pytest.mark.parametrize("host", ["lm", "lm_main", "deepspeed"])
def test_the_patched_script_run_plainly_equals_the_wrapped_one(host, tmp_path):
    source, copy = checkout(host), tmp_path / "checkout"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", "docs", "tests", "examples"))
    patch_set = patch.find(copy, patch.read_sets())
    patch.apply(copy, patch_set)
    data = ["--data-path", *write_domains(tmp_path)]
    options = ["--pipeline-model-parallel-size", 2, "--num-workers", 1, *QUICK_ADO, "--ado-audit"]
    wrapped = train(host, tmp_path / "wrapped", data, options, ranks=2)
    plain = train(host, tmp_path / "plain", data, options, ranks=2, module=None, root=copy)
    for one in (wrapped, plain):
        assert one.status == 0, tail(one)
    assert draws(wrapped) == draws(plain) and audit(plain.directory).samples == 24 * 8
    assert wrapped.curve == plain.curve and len(plain.curve) == 24
    patch.revert(copy, patch_set)
    for file in patch_set.files:
        assert (copy / file.path).read_bytes() == (source / file.path).read_bytes()
