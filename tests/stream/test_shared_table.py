"""The table in shared memory: rows by hand, its ring, torn slots, and readers in other processes.

Legend: C datasets, S rows.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from ado_megatron.errors import ScheduleTimeout, StaleRow
from ado_megatron.stream.shared_table import SharedTable, bytes_per_row


def table_of(rows, capacity=8, deadline=20.0):
    table = SharedTable(capacity, 2, deadline)
    table.write(np.array(rows))
    return table


def open_tables():
    """How many descriptors of shared memory this process has."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself is gone again
            found += os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:ado-table")
    return found


def test_a_row_comes_back_with_what_was_before_it():
    table = table_of([[1, 3], [2, 2], [4, 0]])
    assert (table.first, table.planned) == (0, 3)
    assert [(table.read(b)[0].tolist(), table.read(b)[1].tolist()) for b in range(3)] == [
        ([1, 3], [0, 0]), ([2, 2], [1, 3]), ([4, 0], [3, 5]),
    ]  # fmt: skip
    assert table.start_C(3).tolist() == [7, 5]
    assert bytes_per_row(2) == 32


def test_the_digest_of_a_row_knows_its_block_and_all_before():
    one, other = table_of([[1, 3], [2, 2], [0, 0]]), table_of([[2, 2], [1, 3], [0, 0]])
    first, second, third = (one.read(b)[2] for b in range(3))
    assert other.read(0)[2] != first  # other counts
    assert other.read(1)[2] == second  # the same sums by then
    assert third != second  # the same sums, but another block


@pytest.mark.parametrize("pieces", [[20], [1] * 20, [3, 9, 8]])
def test_a_ring_keeps_the_last_rows_however_they_are_written(pieces):
    rows = np.random.default_rng(0).integers(0, 9, (20, 2))
    table, row = SharedTable(6, 2, 0.01), 0
    for size in pieces:
        table.write(rows[row : row + size])
        row += size
    assert (table.first, table.planned) == (14, 20)
    for block in range(14, 20):
        counts_C, start_C, _ = table.read(block)
        assert counts_C.tolist() == rows[block].tolist()
        assert start_C.tolist() == rows[:block].sum(axis=0).tolist()
    with pytest.raises(StaleRow, match="block 13 is no longer in the table"):
        table.read(13)
    with pytest.raises(ScheduleTimeout, match="block 20 was not planned"):
        table.read(20)


def test_a_torn_slot_is_never_taken_for_a_row():
    table = table_of([[1, 3], [2, 2]], deadline=0.05)
    table.end_RxC[1, 0] += 1
    with pytest.raises(StaleRow):
        table.read(1)
    table.end_RxC[1, 0] -= 1
    assert table.read(1)[0].tolist() == [2, 2]


def test_rewound_it_goes_on_elsewhere():
    table = table_of([[1, 3], [2, 2]])
    table.rewind(5, np.array([10, 10]))
    assert (table.first, table.planned) == (5, 5)
    table.write(np.array([[4, 0]]))
    assert table.read(5)[1].tolist() == [10, 10] and table.start_C(6).tolist() == [14, 10]
    with pytest.raises(StaleRow):
        table.read(1)


def read_later(table, results):
    """In another process: a row that is not yet planned when this begins, and what its memory map shows."""
    results.put(table.planned)
    results.put(table.read(2)[0].tolist())


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_another_process_sees_rows_that_are_planned_after_it_began(method):
    context = multiprocessing.get_context(method)
    table, results = table_of([[1, 3], [2, 2]]), context.Queue()
    reader = context.Process(target=read_later, args=(table, results))
    reader.start()
    assert results.get(timeout=60) == 2
    table.write(np.array([[0, 4]]))
    assert results.get(timeout=20) == [0, 4]
    reader.join(20)
    assert reader.exitcode == 0


def wait_for_long(table, results):
    results.put(os.getpid())
    try:
        table.read(5)
    except ScheduleTimeout as error:
        results.put(str(error))


def begin_reader_and_die(table, results):
    multiprocessing.get_context("fork").Process(target=wait_for_long, args=(table, results)).start()
    results.put("begun")
    results.close()
    results.join_thread()
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_reader_whose_planner_is_gone_says_so_long_before_the_deadline():
    context = multiprocessing.get_context("fork")
    table, results = table_of([[1, 3]], deadline=300.0), context.Queue()
    parent = context.Process(target=begin_reader_and_die, args=(table, results))
    parent.start()
    got = [results.get(timeout=20) for _ in range(3)]
    assert any("the process that plans block 5 is gone" in str(said) for said in got)
    parent.join(20)


def test_the_memory_goes_when_the_last_table_does():
    gc.collect()
    before = open_tables()
    table = table_of([[1, 3]])
    words = table.end_RxC
    assert open_tables() - before == 2  # ours, for other processes, and that of the mapping
    del table
    gc.collect()
    assert words[0].tolist() == [1, 3]  # a view that outlives the table keeps the mapping
    assert open_tables() - before == 1
    del words
    gc.collect()
    assert open_tables() == before
