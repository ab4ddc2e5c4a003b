"""Readers of a schedule's shared memory: waiting, past the end, and rows that are stale or torn.

Legend: R slots, C datasets, H words of a slot's header.
"""

import multiprocessing
import threading
import time

import numpy as np
import pytest
import torch.multiprocessing

from ado_megatron.errors import ScheduleTimeout, StaleRow
from ado_megatron.stream.schedule import Schedule


def make(rows, lengths=(3, 5), block=4, num_blocks=None, **more):
    schedule = Schedule(lengths, block, len(rows) if num_blocks is None else num_blocks, seed=11, **more)
    schedule.publish(0, np.array(rows))
    return schedule


# ---------------------------------------------------------------- waiting, stale, torn


def test_a_reader_ahead_of_the_plan_waits_for_it():
    schedule = make([[2, 2]], num_blocks=3)
    thread = threading.Timer(0.15, lambda: schedule.publish(1, [[1, 3]]))
    thread.start()
    started = time.monotonic()
    assert schedule.locate(4) == (1, 2)
    assert time.monotonic() - started > 0.1
    thread.join()


def test_past_the_deadline_it_names_block_plan_and_deadline():
    schedule = make([[2, 2]], num_blocks=3, wait_deadline=0.05)
    with pytest.raises(ScheduleTimeout, match=r"block 2 was not planned within 0.05 s \(1 blocks are\)"):
        schedule.read(9)


def test_beyond_the_run_is_an_index_error_at_once():
    schedule = make([[2, 2]], num_blocks=3)
    for i in (12, 10**15, -1):
        with pytest.raises(IndexError, match="outside the run"):
            schedule.draw(i)
    with pytest.raises(IndexError):
        schedule.row(3)


def test_an_evicted_row_is_stale_not_wrong():
    schedule = make([[2, 2]] * 3, num_blocks=50, window_bytes=0, min_rows=4)
    reader = make([[2, 2]], num_blocks=50, window_bytes=0, min_rows=4)
    reader._table = schedule.table
    schedule.publish(3, [[1, 3]] * 6)
    assert schedule.planned == 9
    with pytest.raises(StaleRow, match=r"block 2 is no longer in the table \(5 to 8 are\)"):
        reader.locate(8)
    assert reader.row(5).tolist() == [1, 3]


def test_more_rows_than_slots_in_one_publication_keep_the_last():
    schedule = make([[4, 0]] * 3 + [[0, 4]] * 6, num_blocks=50, window_bytes=0, min_rows=4)
    assert [schedule.row(b).tolist() for b in range(5, 9)] == [[0, 4]] * 4
    assert schedule.cumulative(36).tolist() == [12, 24]


@pytest.mark.parametrize("part", ["end_RxC", "header_RxH"])
@pytest.mark.parametrize("word", [0, 1])
@pytest.mark.parametrize("slot", [0, 2])  # of block 3 and, where its counts begin, of block 2
def test_a_torn_row_is_never_accepted(part, word, slot):
    """One word of a slot not yet visible: the reader tries again until the whole row is there."""
    schedule = make([[2, 2], [1, 3]], num_blocks=9, window_bytes=0, min_rows=2)
    array = getattr(schedule.table, part)
    schedule.publish(2, [[3, 1], [0, 4]])
    good = array[slot].copy()
    array[slot, word] = 77 if part == "end_RxC" or word else slot - 1  # of a header: an older block's number
    threading.Timer(0.1, lambda: array.__setitem__(slot, good)).start()
    started = time.monotonic()
    assert schedule.row(3).tolist() == [0, 4]
    assert time.monotonic() - started > 0.05


def _write_forever(schedule, stop):
    rows = np.random.default_rng(0).multinomial(64, np.full(8, 1 / 8), size=2000)
    b = schedule.planned
    while not stop.is_set() and b + 7 < schedule.num_blocks:
        schedule.publish(b, rows[b % 2000 : b % 2000 + 1])
        b += 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_that_reads_while_another_writes_sees_whole_rows_or_says_stale(method):
    context = torch.multiprocessing.get_context(method)
    schedule = Schedule([10**6] * 8, 64, 10**6, 0, window_bytes=0, min_rows=4)
    rows = np.random.default_rng(0).multinomial(64, np.full(8, 1 / 8), size=2000)
    stop = context.Event()
    writer = context.Process(target=_write_forever, args=(schedule, stop))
    writer.start()
    good = stale = 0
    try:
        while good < 300:
            b = max(schedule.planned - 2, 0)
            try:
                assert schedule.row(b).tolist() == rows[b % 2000].tolist()
                good += 1
            except StaleRow:
                stale += 1
    finally:
        stop.set()
        writer.join(20)
    assert writer.exitcode == 0 and good == 300


def _read_one(schedule, i, results):
    try:
        results.put(schedule.read(i))
    except ScheduleTimeout as error:
        results.put(str(error))


def test_a_waiting_reader_notices_that_its_planner_died():
    """The reader's parent is killed while it waits; without the check it would live on to the deadline."""
    context = multiprocessing.get_context("fork")
    schedule, results = make([[2, 2]], num_blocks=3, wait_deadline=100.0), context.Queue()

    def parent():
        context.Process(target=_read_one, args=(schedule, 9, results)).start()
        time.sleep(30)

    middle = context.Process(target=parent)
    middle.start()
    time.sleep(0.3)
    middle.kill()
    middle.join()
    assert results.get(timeout=10) == "the process that plans block 2 is gone"
