"""The writer of metrics.jsonl: a disk that fails costs records, never an exception, and the file says what is lost."""

import errno
import json
import os
import resource

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ado_megatron.measure.metrics import read_metrics
from ado_megatron.measure.metrics_writer import (
    MOST_CELLS,
    MOST_FIT_CELLS,
    MetricsWriter,
    StepGroups,
    fits_between,
    lines_between,
)


class Clock:
    """Seconds, as the test says."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def size_limit():
    """Sets the largest size of a file that this process may write; a write beyond it is cut off there and fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size if size else before[0], before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def writer_of(tmp_path, clock, **kwargs):
    writer = MetricsWriter(tmp_path / "ado" / "metrics.jsonl", {"domains": ["a"]}, clock=clock, **kwargs)
    writer.start(0)
    return writer


def read_back(writer):
    return [(record["type"], record.get("step")) for record in read_metrics(writer.path)]


def test_records_follow_the_header_in_order_and_nan_becomes_null(tmp_path, clock):
    writer = writer_of(tmp_path, clock)
    writer.write("step", 5, loss_K=np.array([1.5, np.nan]), counts_K=np.array([3, 0]), ok=np.bool_(True))
    writer.write("fit", 6, seconds=np.float32(0.5))
    assert [json.loads(line) for line in writer.path.read_text().splitlines()] == [
        {"type": "run", "version": 1, "domains": ["a"]},
        {"type": "step", "step": 5, "loss_K": [1.5, None], "counts_K": [3, 0], "ok": True},
        {"type": "fit", "step": 6, "seconds": 0.5},
    ]


def test_a_full_disk_loses_nothing_that_fits_the_buffer_and_no_half_line_stays(tmp_path, clock, size_limit, caplog):
    writer = writer_of(tmp_path, clock)
    writer.write("step", 1, text="x" * 50)
    whole = writer.path.stat().st_size
    size_limit(whole + 30)
    writer.write("step", 2, text="y" * 50)
    assert writer.path.stat().st_size == whole + 30  # the failure did leave half a line
    writer.write("step", 3)  # before the first wait is over: kept, not tried
    clock.now = 0.9
    size_limit(None)
    writer.write("step", 4)
    assert writer.path.stat().st_size == whole + 30
    clock.now = 1.0
    writer.write("step", 5)
    assert read_back(writer) == [("run", None)] + [("step", step) for step in (1, 2, 3, 4, 5)]
    assert writer.lost == 0
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 2  # it began, it ended
    assert str(writer.path) in caplog.records[0].getMessage()


def test_beyond_the_buffer_the_oldest_are_dropped_and_a_gap_record_counts_them(tmp_path, clock, size_limit):
    writer = writer_of(tmp_path, clock, buffer_bytes=310)
    size_limit(writer.path.stat().st_size)
    for step in range(1, 11):
        writer.write("step", step, text="x" * 60)  # 100 or 101 bytes: three fit
    size_limit(None)
    clock.now = 100.0
    writer.write("step", 11)
    records = read_metrics(writer.path)
    assert [(r["type"], r["step"]) for r in records[1:]] == [("gap", 7), *(("step", s) for s in (8, 9, 10, 11))]
    assert records[1] == {"type": "gap", "step": 7, "from_step": 1, "records": 7}
    assert writer.lost == 7


def test_a_directory_that_cannot_be_written_at_the_start_is_written_later(tmp_path, clock, caplog):
    (tmp_path / "ado").write_text("in the way")
    writer = writer_of(tmp_path, clock)
    writer.write("step", 1)
    (tmp_path / "ado").unlink()
    clock.now = 5.0
    writer.write("step", 2)
    assert read_back(writer) == [("run", None), ("step", 1), ("step", 2)]
    assert len(caplog.records) == 2


def test_a_file_that_was_removed_begins_anew_and_says_what_went_with_it(tmp_path, clock):
    writer = writer_of(tmp_path, clock)
    for step in (1, 2, 3):
        writer.write("step", step)
    writer.path.unlink()
    writer.path.parent.rmdir()
    writer.write("step", 4)
    writer.write("step", 5)
    records = read_metrics(writer.path)
    assert records[1] == {"type": "gap", "step": 4, "from_step": 0, "records": 3}
    assert [(r["type"], r["step"]) for r in records[2:]] == [("step", 4), ("step", 5)]


def test_a_file_that_was_cut_in_the_middle_of_a_line_goes_on_after_its_last_whole_one(tmp_path, clock):
    writer = writer_of(tmp_path, clock)
    for step in (1, 2, 3):
        writer.write("step", step)
    os.truncate(writer.path, writer.path.stat().st_size - 4)
    writer.write("step", 4)
    assert read_back(writer)[1:] == [("step", 1), ("step", 2), ("step", 4)]


def test_what_cannot_be_written_at_the_end_is_said(tmp_path, clock, size_limit, caplog):
    writer = writer_of(tmp_path, clock)
    size_limit(writer.path.stat().st_size)
    writer.write("step", 1)
    writer.write("step", 2)
    writer.close()
    assert "2 could not be written" in caplog.records[-1].getMessage()
    size_limit(None)
    writer.close()  # nothing is left
    assert read_back(writer) == [("run", None)]


def test_the_last_try_does_not_wait(tmp_path, clock, size_limit):
    writer = writer_of(tmp_path, clock)
    size_limit(writer.path.stat().st_size)
    writer.write("step", 1)
    size_limit(None)
    writer.close()
    assert read_back(writer)[1:] == [("step", 1)] and writer.lost == 0


def test_a_defect_is_not_taken_for_a_full_disk(tmp_path, clock):
    with pytest.raises(TypeError):
        writer_of(tmp_path, clock).write("step", 1, text=object())


# ---------------------------------------------------------------- resume


def resumed(path, text, step):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text) if isinstance(text, str) else path.write_bytes(text)
    writer = MetricsWriter(path, {"domains": ["b"]})
    return writer, writer.start(step)


HEADER, ONE, TWO = '{"type": "run", "version": 1}\n', '{"type": "step", "step": 10}\n', '{"type": "fit", "step": 20}\n'


def test_a_resume_keeps_what_is_before_it_under_a_new_header(tmp_path):
    writer, sentence = resumed(tmp_path / "metrics.jsonl", HEADER + ONE + TWO + '{"type": "st', 10)
    assert sentence is None
    assert read_metrics(writer.path) == [{"type": "run", "version": 1, "domains": ["b"]}, {"type": "step", "step": 10}]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]  # a half-written last line is no damage


def test_a_damaged_file_is_set_aside_its_readable_records_go_on(tmp_path, caplog):
    damaged = HEADER + ONE + '{"type": "step", "ste\n' + "\x00\x01\n" + TWO
    (tmp_path / "metrics.jsonl.damaged-1").write_text("an older one")
    writer, sentence = resumed(tmp_path / "metrics.jsonl", damaged, 20)
    assert "lines that are no records (3, 4)" in sentence and "metrics.jsonl.damaged-2" in sentence
    assert "its 2 readable records" in sentence and sentence in caplog.text
    assert (tmp_path / "metrics.jsonl.damaged-2").read_text() == damaged
    assert (tmp_path / "metrics.jsonl.damaged-1").read_text() == "an older one"
    writer.write("step", 30)
    assert read_back(writer) == [("run", None), ("step", 10), ("gap", 20), ("fit", 20), ("step", 30)]
    assert read_metrics(writer.path)[2] == {"type": "gap", "step": 20, "from_step": 10, "records": 2}


def test_a_resume_over_records_that_no_run_writes_goes_on(tmp_path):
    odd = '{"type": "step", "step": 5, "x": 1' + "0" * 30 + '}\n{"type": "step", "step": 6, "x": "\\ud800"}\n'
    writer, _ = resumed(tmp_path / "metrics.jsonl", HEADER + odd + ONE, 20)
    assert read_back(writer) == [("run", None), ("step", 10)]


def test_a_pipe_in_the_place_of_the_file_is_set_aside(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    writer = MetricsWriter(tmp_path / "metrics.jsonl", {})
    assert "is a named pipe" in writer.start(5)
    writer.write("step", 6)
    assert read_back(writer) == [("run", None), ("step", 6)]


@pytest.mark.parametrize(("step", "kept"), [(15, []), (25, [25]), (60, [40])])
def test_a_gap_is_kept_as_far_as_the_run_goes_back(tmp_path, step, kept):
    gap = json.dumps({"type": "gap", "step": 40, "from_step": 20, "records": 3}) + "\n"
    writer, _ = resumed(tmp_path / "metrics.jsonl", HEADER + ONE + gap, step)
    assert [r["step"] for r in read_metrics(writer.path) if r["type"] == "gap"] == kept


def test_a_resume_on_a_full_disk_keeps_everything_until_it_can_be_written(tmp_path, clock, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text(HEADER + ONE + TWO)
    writer = MetricsWriter(path, {}, clock=clock)
    with monkeypatch.context() as patch:

        def full(*args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "fsync", full)
        assert writer.start(20) is None
        writer.write("step", 30)
    assert path.read_text() == HEADER + ONE + TWO  # untouched so far
    clock.now = 2.0
    writer.write("step", 40)
    assert read_back(writer) == [("run", None), ("step", 10), ("fit", 20), ("step", 30), ("step", 40)]


# ---------------------------------------------------------------- intervals


def test_an_interval_sums_its_steps_and_averages_losses_over_tokens():
    groups = StepGroups(2, 2)
    assert groups.add(0, np.array([3, 1]), np.array([[12.0, 6.0], [5.0, 2.0]])) is None
    values = groups.add(1, np.array([2, 0]), np.array([[4.0, 2.0], [0.0, 0.0]]))
    assert values["steps"] == 2 and values["counts_K"].tolist() == [5, 1]
    assert values["tokens_K"].tolist() == [8, 2] and values["loss_K"].tolist() == [2.0, 2.5]
    assert groups.flush() is None
    groups.add(2, np.array([0, 1]), np.array([[0.0, 0.0], [3.0, 2.0]]))
    values = groups.flush()
    assert values["steps"] == 1 and np.isnan(values["loss_K"][0]) and values["loss_K"][1] == 1.5


@pytest.mark.parametrize(
    ("domains", "steps", "between"), [(22, 10**6, 10), (1000, 1000, 100), (1000, 10**6, 500), (10_000, 10**6, 5000)]
)
def test_lines_of_many_domains_are_rarer(domains, steps, between):
    assert lines_between(domains, 10, steps) == between
    groups = StepGroups(domains, between)
    made = [groups.add(step, np.ones(domains, np.int64), np.ones((domains, 2))) for step in range(between - 3, between)]
    assert [values is not None for values in made] == [False, False, True]


def test_a_run_of_any_length_and_number_of_domains_writes_within_bounds():
    for steps, domains in ((10**6, 10**4), (10**7, 32_767), (10**6, 150), (50, 32_767)):
        assert steps / lines_between(domains, 10, steps) * domains <= MOST_CELLS
        fits = steps // 1000
        assert fits / fits_between(domains, fits) * domains <= MOST_FIT_CELLS
    assert fits_between(22, 20_000) == 1


@given(st.integers(1, 7), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_many_steps_at_once_make_the_objects_that_single_steps_make(interval, pieces, seed):
    rng, single, many = np.random.default_rng(seed), StepGroups(3, interval), StepGroups(3, interval)
    step_T = np.flatnonzero(rng.uniform(size=4 * sum(pieces)) < 0.8)[: sum(pieces)]  # a run may skip steps
    first = 0
    for size in pieces:
        steps_P = step_T[first : first + size]
        samples_PxK, sums_PxKx2 = rng.integers(0, 9, (len(steps_P), 3)), rng.uniform(0, 9, (len(steps_P), 3, 2))
        made = many.extend(steps_P, samples_PxK, sums_PxKx2)
        one_by_one = [(p, single.add(int(step), samples_PxK[p], sums_PxKx2[p])) for p, step in enumerate(steps_P)]
        wanted = [(p, values) for p, values in one_by_one if values is not None]
        assert [p for p, _ in made] == [p for p, _ in wanted]
        for (_, ours), (_, theirs) in zip(made, wanted, strict=True):
            for name in theirs:
                np.testing.assert_array_equal(ours[name], theirs[name])
        first += size


def test_lines_written_at_one_go_are_those_written_singly(tmp_path):
    for name in ("one", "many"):
        writer = MetricsWriter(tmp_path / name, {})
        writer.start(0)
        records = [(step, {"loss": step / 2}) for step in range(1, 4)]
        if name == "many":
            writer.write_all("step", records)
            writer.write_all("step", [])
        else:
            for step, values in records:
                writer.write("step", step, **values)
        writer.close()
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()
