"""The sidecar file: what is written is read back, whatever cannot be trusted is refused, a crash loses nothing."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ado_megatron.errors import SidecarError
from ado_megatron.mixer import sidecar as checkpoint

META = {"step": 7, "names_K": ["code", "wiki"]}
ARRAYS = {"counts_SxC": np.arange(6, dtype=np.int32).reshape(3, 2), "credit_C": np.array([0.25, -0.25])}


def test_reads_back_what_was_written(tmp_path):
    checkpoint.write_sidecar(tmp_path / "s.ado", META, ARRAYS)
    meta, arrays = checkpoint.read_sidecar(tmp_path / "s.ado")
    assert meta == META
    assert set(arrays) == set(ARRAYS)
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], value, strict=True)
    assert os.listdir(tmp_path) == ["s.ado"]  # no temporary is left


def test_every_truncation_is_refused(tmp_path):
    data = checkpoint.encode_sidecar(META, ARRAYS)
    for length in [*range(0, 400, 7), len(data) - 1]:
        (tmp_path / "s.ado").write_bytes(data[:length])
        with pytest.raises(SidecarError):
            checkpoint.read_sidecar(tmp_path / "s.ado")


def test_every_flipped_byte_is_refused(tmp_path):
    data = checkpoint.encode_sidecar(META, ARRAYS)
    for at in range(len(data)):
        (tmp_path / "s.ado").write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        with pytest.raises(SidecarError):
            checkpoint.read_sidecar(tmp_path / "s.ado")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.replace(b'"version": 1', b'"version": 2', 1), "format 2"),
        (lambda data: data[:-5], "truncated"),
        (lambda data: data[:-5] + b"aaaaa", "altered"),
        (lambda data: b"PK" + data, "not an ado-megatron sidecar"),
    ],
)
def test_the_refusal_says_what_is_wrong_and_where(tmp_path, change, words):
    path = tmp_path / "state.ado"
    path.write_bytes(change(checkpoint.encode_sidecar(META, ARRAYS)))
    with pytest.raises(SidecarError, match=words) as caught:
        checkpoint.read_sidecar(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(SidecarError, match="cannot be read"):
        checkpoint.read_sidecar(tmp_path / "none.ado")


class _Crash(BaseException):
    """Not an Exception, so nothing in between can swallow it."""


def _syscalls_of_a_write(monkeypatch, path, crash_at, payload):
    """Write with a crash before the crash_at-th file operation; returns the number of operations that ran."""
    ran = 0

    def guard(function):
        def call(*args, **kwargs):
            nonlocal ran
            if ran == crash_at:
                raise _Crash
            ran += 1
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("fsync", "replace", "open"):
            patch.setattr(checkpoint.os, name, guard(getattr(os, name)))
        try:
            checkpoint.write_sidecar(path, {"step": payload}, ARRAYS)
        except _Crash:
            pass
    return ran


def test_a_crash_between_any_two_file_operations_leaves_the_old_or_the_new_state(tmp_path, monkeypatch):
    path = tmp_path / "s.ado"
    checkpoint.write_sidecar(path, {"step": 0}, ARRAYS)
    seen = set()
    for crash_at in range(6):
        _syscalls_of_a_write(monkeypatch, path, crash_at, payload=1)
        seen.add(checkpoint.read_sidecar(path)[0]["step"])
    assert seen == {0, 1}  # both sides of the rename were met


WRITER = """
import sys, numpy as np
from ado_megatron.mixer import sidecar as checkpoint
step = 0
while True:
    step += 1
    checkpoint.write_sidecar(sys.argv[1], {"step": step}, {"x": np.full(20000, step)})
    print(step, flush=True)
"""


def _kill_writer_at_random_points(path, times, seed):
    """Start a writer, kill -9 it after a random while, `times` over; yields the step that can be read each time."""
    clock = random.Random(seed)
    writer = None
    for _ in range(times):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        announced = int(writer.stdout.readline())  # it runs, at least one state is whole
        time.sleep(clock.uniform(0, 0.02))
        writer.send_signal(signal.SIGKILL)
        announced = max([announced, *map(int, filter(str.strip, writer.stdout.read().splitlines()))])
        writer.stdout.close()
        writer.wait()
        yield announced, checkpoint.read_sidecar(path)


def _assert_whole(outcomes):
    count = 0
    for announced, (meta, arrays) in outcomes:
        assert meta["step"] >= announced  # what the writer said it had written is there
        assert (arrays["x"] == meta["step"]).all()
        count += 1
    return count


def test_a_killed_writer_leaves_a_whole_state(tmp_path):
    assert _assert_whole(_kill_writer_at_random_points(tmp_path / "s.ado", 20, seed=1)) == 20


@pytest.mark.slow
def test_a_writer_killed_at_a_thousand_random_points_leaves_a_whole_state(tmp_path):
    assert _assert_whole(_kill_writer_at_random_points(tmp_path / "s.ado", 1000, seed=2)) == 1000
