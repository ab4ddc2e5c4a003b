"""What is whole and what is damaged, on files made by hand."""

import os
import re
import zipfile

import numpy as np
import pytest

from ado_megatron.mixer.sidecar import write_sidecar
from ado_megatron.trainer.checkpoint_files import (
    damage,
    damaged_content,
    damaged_sidecar,
    files_of,
    sidecar,
    step_dir,
    steps_of,
    sync,
    token_of,
    way_on,
    write_manifest,
)


def make(run, step, manifest=True):
    """A whole checkpoint of two files, as torch and the mixer write them."""
    folder = step_dir(run, step)
    folder.mkdir(parents=True)
    for name in ("layer_00.pt", "mp_rank_00.pt"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("data", os.urandom(5000))
    token = write_sidecar(sidecar(run, step), {"step": step}, {"x": np.arange(step)})
    if manifest:
        write_manifest(run, step, {path.name: path.stat().st_size for path in folder.glob("*.pt")}, token)
    return folder


def anything_wrong(run, step):
    return damage(run, step) or damaged_content(files_of(run, step)) or damaged_sidecar(run, step)


def flip(path, at=-300):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 0xFF
    path.write_bytes(content)


DAMAGES = {
    "no directory": (lambda f, s: [p.unlink() for p in f.iterdir()] and f.rmdir(), "step_4 is not there"),
    "a missing layer": (lambda f, s: (f / "layer_00.pt").unlink(), "layer_00.pt is missing"),
    "a cut file": (lambda f, s: os.truncate(f / "layer_00.pt", 100), "layer_00.pt has 100 of .* bytes"),
    "no sidecar": (lambda f, s: s.unlink(), "state_4.ado is missing"),
    "another sidecar": (
        lambda f, s: write_sidecar(s, {"step": 4}, {"x": np.arange(9)}), "was not written with this checkpoint"),
    "a flipped bit": (lambda f, s: flip(f / "mp_rank_00.pt", None), "mp_rank_00.pt is damaged"),
    "no zip at all": (
        lambda f, s: (f / "layer_00.pt").write_bytes(bytes((f / "layer_00.pt").stat().st_size)),
        "layer_00.pt is damaged"),
    "a flipped sidecar": (lambda f, s: flip(s, -10), "altered|damaged"),
    "a list of files that is none": (lambda f, s: (f / "files.json").write_text("[]"), "files.json cannot be read"),
    "a binary list": (lambda f, s: (f / "files.json").write_bytes(b"\xff\x80"), "files.json cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_each_damage_is_named(case, tmp_path):
    make(tmp_path, 4)
    assert anything_wrong(tmp_path, 4) is None
    do, words = DAMAGES[case]
    do(step_dir(tmp_path, 4), sidecar(tmp_path, 4))
    found = anything_wrong(tmp_path, 4)
    assert found and re.search(words, found) and "\n" not in found


def test_a_checkpoint_of_the_version_before_has_no_list_and_is_whole(tmp_path):
    folder = make(tmp_path, 4, manifest=False)
    assert anything_wrong(tmp_path, 4) is None and token_of(tmp_path, 4) is None
    assert [path.name for path in files_of(tmp_path, 4)] == ["layer_00.pt", "mp_rank_00.pt"]
    for path in folder.glob("*.pt"):
        path.unlink()
    assert "holds no model files" in damage(tmp_path, 4)


def test_steps_are_found_by_number(tmp_path):
    for name in ("step_10", "step_9", "step_x", "global_step3", "step_"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_5").write_text("a file")
    assert steps_of(tmp_path) == [9, 10] and steps_of(tmp_path / "none") == []


def test_the_way_on():
    assert "step_7" in way_on(7) and "--resume=newest-whole" in way_on(7)
    assert "no other checkpoint is whole" in way_on(None)


def test_files_and_then_their_directories_are_synced(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text("x")
    sync(paths)
    assert synced == [str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path)]
