"""The stream through real DataLoaders: the same for any workers, start method, prefetch, ranks, micro-batch and resume.

Rows are planned while the loaders run, from what was consumed, so a stale read anywhere changes the stream.
Legend: C datasets, B samples of a micro-batch.
"""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ado_megatron.errors import ScheduleTimeout
from ado_megatron.stream.blended_dataset import AdaptiveBlend
from ado_megatron.stream.sample_key import unpack_key
from ado_megatron.stream.schedule import Schedule, apportion, lead_blocks

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

LENGTHS_C = (40, 7, 100, 3)
BLOCK, BLOCKS = 16, 12


class Numbers(torch.utils.data.Dataset):
    """Sample s of dataset c is the number 1000 c + s."""

    def __init__(self, dataset_id, length):
        self.dataset_id, self.length = dataset_id, length

    def __len__(self):
        return self.length

    def __getitem__(self, sample):
        assert 0 <= sample < self.length
        return {"value": torch.tensor(1000 * self.dataset_id + sample)}


class Feedback:
    """Plans a row from everything consumed before: the rarest dataset gets the most."""

    def __init__(self, lead, wait_deadline=20.0):
        self.schedule = Schedule(LENGTHS_C, BLOCK, BLOCKS, seed=5, wait_deadline=wait_deadline)
        self.credit_C, self.lead = np.zeros(4), lead

    def plan(self, consumed):
        while self.schedule.planned < min(consumed // BLOCK + self.lead, BLOCKS):
            seen_C = self.schedule.cumulative(max(self.schedule.planned - 4, 0) * BLOCK)
            counts_C, self.credit_C = apportion(1.0 / (1 + seen_C), BLOCK, self.credit_C)
            self.schedule.publish(self.schedule.planned, counts_C)


class Batches:
    """Megatron's order: consecutive indices, a micro-batch for each data-parallel rank in turn."""

    def __init__(self, first, micro_batch, dp, rank):
        self.arguments = first, micro_batch, dp, rank

    def __iter__(self):
        first, micro_batch, dp, rank = self.arguments
        for start in range(first, BLOCK * BLOCKS, micro_batch * dp):
            yield list(range(start + rank * micro_batch, start + (rank + 1) * micro_batch))


def loader(schedule, first=0, micro_batch=4, dp=1, rank=0, workers=0, method=None, prefetch=None):
    blend = AdaptiveBlend([Numbers(c, n) for c, n in enumerate(LENGTHS_C)], schedule)
    return torch.utils.data.DataLoader(
        blend, batch_sampler=Batches(first, micro_batch, dp, rank), num_workers=workers,
        multiprocessing_context=method if workers else None, prefetch_factor=prefetch if workers else None,
    )  # fmt: skip


def consume(feedback, iterators, first, stop, step_samples=16):
    """{i: (dataset, sample)} of the samples from `first` to `stop`; one micro-batch of each rank at a time."""
    got, consumed = {}, first
    feedback.plan(consumed)
    while consumed < stop:
        for iterator in iterators:
            batch = next(iterator)
            i_B, dataset_B = unpack_key(batch["ado_key"])
            assert batch["ado_key"].dtype == batch["dataset_id"].dtype == batch["ado_sample"].dtype == torch.int64
            assert torch.equal(dataset_B, batch["dataset_id"])
            assert torch.equal(batch["value"], 1000 * dataset_B + batch["ado_sample"])
            got |= dict(
                zip(i_B.tolist(), zip(dataset_B.tolist(), batch["ado_sample"].tolist(), strict=True), strict=True)
            )
            consumed += len(i_B)
        if consumed % step_samples == 0:
            feedback.plan(consumed)
    return got


def reference(stop=BLOCK * BLOCKS):
    feedback = Feedback(lead=4)
    return consume(feedback, [iter(loader(feedback.schedule))], 0, stop)


@pytest.mark.parametrize(
    ("workers", "method", "prefetch", "micro_batch", "dp"),
    [
        (0, None, None, 4, 1), (0, None, None, 2, 4), (1, "fork", 2, 4, 1), (2, "fork", 2, 4, 1), (4, "fork", 2, 4, 1),
        (2, "fork", 7, 1, 1), (2, "fork", 2, 4, 2), (1, "fork", 3, 2, 4), (1, "spawn", 2, 4, 1), (2, "spawn", 2, 8, 1),
    ],
)  # fmt: skip
def test_the_stream_does_not_depend_on_the_loader(workers, method, prefetch, micro_batch, dp):
    feedback = Feedback(lead=4)
    feedback.plan(0)
    iterators = [
        iter(loader(feedback.schedule, 0, micro_batch, dp, rank, workers, method, prefetch)) for rank in range(dp)
    ]
    assert consume(feedback, iterators, 0, BLOCK * BLOCKS) == reference()


def test_workers_that_run_into_the_end_of_the_plan_wait_and_get_the_right_rows():
    """Lead 1 with far more in flight: every new row is published while workers wait for it."""
    feedback, expected = Feedback(lead=4), reference()
    feedback.schedule.publish(0, expected_rows(expected)[:1])
    iterator, got = iter(loader(feedback.schedule, workers=2, method="fork", prefetch=4)), {}
    for step in range(BLOCKS):
        for _ in range(BLOCK // 4):
            batch = next(iterator)
            i_B, dataset_B = unpack_key(batch["ado_key"])
            got |= dict(
                zip(i_B.tolist(), zip(dataset_B.tolist(), batch["ado_sample"].tolist(), strict=True), strict=True)
            )
        time.sleep(0.02)
        if step + 1 < BLOCKS:
            feedback.schedule.publish(step + 1, expected_rows(expected)[step + 1])
    assert got == expected


def expected_rows(stream):
    dataset_N = np.array([stream[i][0] for i in range(BLOCK * BLOCKS)])
    return np.array([np.bincount(part, minlength=4) for part in dataset_N.reshape(BLOCKS, BLOCK)])


def test_a_worker_past_the_deadline_raises_the_type_of_its_own_in_the_main_process():
    feedback = Feedback(lead=1, wait_deadline=0.1)
    feedback.plan(0)
    iterator = iter(loader(feedback.schedule, workers=1, method="fork", prefetch=2))
    with pytest.raises(ScheduleTimeout, match="block 1 was not planned within 0.1 s"):
        for _ in range(5):
            next(iterator)


def _run_until_a_worker_dies(after, results):
    """In a process of its own: the loader's SIGCHLD handler raises wherever the main thread is."""
    feedback, first = Feedback(lead=4), {}
    feedback.plan(0)
    iterator = iter(loader(feedback.schedule, workers=2, method="fork", prefetch=2))
    for _ in range(after):
        first |= consume(feedback, [iterator], len(first), len(first) + 4)
    results.send((first, feedback.schedule.state_dict(len(first))))
    try:
        os.kill(iterator._workers[0].pid, signal.SIGKILL)
        while True:
            next(iterator)
    except (RuntimeError, OSError, EOFError) as error:  # whichever the loader meets first
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        results.send(repr(error))
    os._exit(0)


@pytest.mark.parametrize("after", [3, 17, 31])
def test_after_a_killed_worker_the_run_resumes_with_the_same_stream(after):
    """A worker dies by kill -9, the loader says so; the state of the last step starts a run of other ranks."""
    receive, send = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_run_until_a_worker_dies, args=(after, send))
    child.start()
    send.close()
    assert receive.poll(60)
    first, state = receive.recv()
    assert receive.poll(60) and "Error" in receive.recv()
    child.join()
    second, expected = Feedback(lead=4), reference()
    second.schedule.load_state_dict(state)
    second.schedule.publish(second.schedule.planned, expected_rows(expected)[second.schedule.planned :])
    ranks = [loader(second.schedule, len(first), 2, 2, rank, workers=1 - rank, method="fork") for rank in (0, 1)]
    rest = consume(second, [iter(rank) for rank in ranks], len(first), BLOCK * BLOCKS)
    assert first == {i: expected[i] for i in range(4 * after)}
    assert first | rest == expected


@given(
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=12), micro_batch=st.integers(1, 5), dp=st.integers(1, 4)
)  # fmt: skip
@settings(max_examples=25)
def test_a_batch_ramp_and_resumes_anywhere_do_not_change_the_stream(cuts, micro_batch, dp):
    """Global batches of any sizes, a new schedule from saved state after each."""
    expected = reference()
    rows, total = expected_rows(expected), BLOCK * BLOCKS
    schedule = Schedule(LENGTHS_C, BLOCK, BLOCKS, seed=5)
    schedule.publish(0, rows)
    got, consumed = {}, 0
    for cut in [*cuts, total]:
        batch = min(cut * micro_batch * dp, total - consumed)
        for i in range(consumed, consumed + batch):
            got[i] = schedule.draw(i)
        consumed += batch
        after = Schedule(LENGTHS_C, BLOCK, BLOCKS, seed=5)
        after.load_state_dict(schedule.state_dict(consumed))
        schedule = after
    assert got == {i: expected[i] for i in got} and consumed == len(got)


@pytest.mark.parametrize(
    ("workers", "micro_batch", "prefetch"), [(0, 4, 2), (1, 4, 2), (2, 4, 2), (3, 8, 2), (2, 4, 8)]
)
def test_with_the_lead_of_the_rule_no_worker_ever_waits(workers, micro_batch, prefetch):
    """A deadline of nothing: a reader that has to wait at all raises."""
    feedback = Feedback(lead_blocks(workers, prefetch, micro_batch, 1, BLOCK), wait_deadline=0.0)
    rows = expected_rows(reference())

    def plan(consumed):
        planned, stop = feedback.schedule.planned, min(consumed // BLOCK + feedback.lead, BLOCKS)
        feedback.schedule.publish(planned, rows[planned:stop])

    feedback.plan = plan
    feedback.plan(0)
    iterator = iter(loader(feedback.schedule, 0, micro_batch, 1, 0, workers, "fork", prefetch))
    assert len(consume(feedback, [iterator], 0, BLOCK * BLOCKS)) == BLOCK * BLOCKS
