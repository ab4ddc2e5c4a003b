"""metrics.jsonl on a disk that fails, and files that are damaged. Legend: K domains."""

import errno
import json
import logging
import os

import numpy as np
import pytest

from ado_megatron.errors import UserError
from ado_megatron.files import BestEffort
from ado_megatron.measure import metrics
from ado_megatron.measure.metrics import MetricsWriter, StepGroups, read_metrics

HEADER = {"domains": ["a", "b"], "prior_K": [0.5, 0.5]}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def disk(monkeypatch):
    """A disk that can be full: the first `room` bytes of a write arrive, as with a real one."""

    class Disk:
        room = None

    real_open = open

    def failing_open(path, mode="r", *rest, **named):
        file = real_open(path, mode, *rest, **named)
        if "a" in mode and Disk.room is not None:
            real_write = file.write

            def write(data):
                real_write(data[: Disk.room])
                file.flush()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            class Full:
                tell, flush, truncate = file.tell, file.flush, file.truncate

                def __enter__(self):
                    return self

                def __exit__(self, *error):
                    file.close()

            Full.write = staticmethod(write)
            return Full()
        return file

    monkeypatch.setattr(metrics, "open", failing_open, raising=False)
    return Disk


def test_a_full_disk_is_warned_of_once_and_nothing_is_lost(tmp_path, disk, caplog):
    clock = Clock()
    writer = MetricsWriter(tmp_path / "metrics.jsonl", HEADER, clock)
    writer.start(0)
    writer.write("step", 1, loss_K=[1.0, 2.0])
    disk.room = 7  # a part of the next line arrives
    with caplog.at_level(logging.WARNING):
        for step in range(2, 6):
            clock.now += 3.0
            writer.write("step", step, loss_K=[1.0, float("nan")])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left on device; the run goes on without" in caplog.text
    disk.room = None
    clock.now += 1000.0
    writer.write("step", 6, loss_K=[1.0, 2.0])
    assert [r.get("step") for r in read_metrics(tmp_path / "metrics.jsonl")] == [None, 1, 2, 3, 4, 5, 6]
    assert read_metrics(tmp_path / "metrics.jsonl")[2]["loss_K"] == [1.0, None]


def test_what_does_not_fit_the_memory_is_counted_as_a_gap(tmp_path, disk, monkeypatch):
    clock = Clock()
    writer = MetricsWriter(tmp_path / "metrics.jsonl", HEADER, clock)
    writer.start(0)
    disk.room = 0
    monkeypatch.setattr(metrics, "PENDING_BYTES", 200)
    for step in range(1, 21):
        writer.write("step", step, loss_K=[1.0, 2.0])
    disk.room = None
    clock.now += 1000.0
    writer.write("step", 21, loss_K=[1.0, 2.0])
    records = read_metrics(tmp_path / "metrics.jsonl")
    kept = [r["step"] for r in records if r["type"] == "step"]
    assert records[-1] == {"type": "gap", "step": 21, "lost": 21 - len(kept)}
    assert kept == list(range(22 - len(kept), 22)) and 1 < len(kept) < 8


def test_a_directory_that_is_gone_at_the_start_stops_nothing_and_the_file_comes_when_it_is_back(tmp_path):
    clock = Clock()
    (tmp_path / "ado").write_text("in the way")
    writer = MetricsWriter(tmp_path / "ado" / "metrics.jsonl", HEADER, clock)
    writer.start(0)
    writer.write("step", 1, loss_K=[1.0, 2.0])
    (tmp_path / "ado").unlink()
    clock.now += 1000.0
    writer.write("step", 2, loss_K=[1.0, 2.0])
    assert [r["type"] for r in read_metrics(tmp_path / "ado" / "metrics.jsonl")] == ["run", "step", "step"]


def test_a_resume_sets_a_damaged_file_aside_and_keeps_what_can_be_read(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"type": "step", "step": step}) for step in range(1, 6)]
    path.write_bytes("\n".join([json.dumps({"type": "run"} | HEADER), *lines[:2]]).encode() + b"\n\xff\x00{\n"
                     + "\n".join(lines[2:]).encode() + b"\n")  # fmt: skip
    with pytest.raises(UserError, match="line 4 of .*metrics.jsonl is not a record"):
        read_metrics(path)
    whole = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        MetricsWriter(path, HEADER).start(4)
    assert [r.get("step") for r in read_metrics(path)] == [None, 1, 2, 3, 4]
    assert (tmp_path / "metrics.jsonl.damaged-1").read_bytes() == whole
    assert "1 damaged lines, the first is 4" in caplog.text


def test_strided_and_text_arrays_are_written_as_they_are(tmp_path):
    line = metrics.encode({"a": np.arange(6.0).reshape(3, 2)[:, 1], "r": np.array(["x", ""]), "n": np.int64(3)})
    assert json.loads(line) == {"a": [1.0, 3.0, 5.0], "r": ["x", ""], "n": 3}


def test_lines_of_many_domains_are_rarer():
    few, many = StepGroups(22, 10), StepGroups(1000, 10)
    for groups, last in ((few, 10), (many, 100)):
        size = groups._num_domains
        made = [groups.add(step, np.ones(size, np.int64), np.ones((size, 2))) for step in range(last)]
        assert [values is not None for values in made] == [False] * (last - 1) + [True]


def test_best_effort_pauses_longer_and_longer_and_lets_faults_through(caplog):
    clock, calls = Clock(), []

    def fail():
        calls.append(clock.now)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    effort = BestEffort("TensorBoard", clock)
    for second in range(40):
        clock.now = float(second)
        assert not effort(fail)
    assert calls == [0.0, 2.0, 6.0, 14.0, 30.0]
    clock.now = 1000.0
    assert effort(lambda: None) and caplog.text.count("TensorBoard") == 2
    with pytest.raises(KeyError):
        effort(lambda: {}["x"])
