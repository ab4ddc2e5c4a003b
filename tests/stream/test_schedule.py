"""The schedule: a table by hand, random access, the reader's side of shared memory, state.

Legend: C datasets, S blocks, R slots, H words of a slot's header.
"""

import multiprocessing
import threading
import time

import numpy as np
import pytest
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st

from ado_megatron.errors import ScheduleTimeout, StaleRow, UserError
from ado_megatron.stream.permutation import derive_key, permute
from ado_megatron.stream.row_layout import apportion_rows
from ado_megatron.stream.schedule import Schedule, lead_blocks
from ado_megatron.stream.shared_table import bytes_per_row


def make(rows, lengths=(3, 5), block=4, num_blocks=None, **more):
    schedule = Schedule(lengths, block, len(rows) if num_blocks is None else num_blocks, seed=11, **more)
    schedule.publish(0, np.array(rows))
    return schedule


def test_a_small_table_by_hand():
    """Datasets of 3 and 5 samples, blocks of 4. The order of a block is a permutation of its row laid out."""
    rows = [[2, 2], [1, 3], [3, 1]]  # laid out: 0011, 0111, 0001
    assert [sorted(range(4), key=lambda place: derive_key(39, 1, b, place)) for b in range(3)] == [
        [3, 1, 2, 0], [3, 1, 0, 2], [1, 2, 3, 0],
    ]  # fmt: skip
    schedule = Schedule([3, 5], 4, 3, seed=39)
    schedule.publish(0, np.array(rows))
    assert [schedule.locate(i) for i in range(12)] == [
        (1, 0), (0, 0), (1, 1), (0, 1),
        (1, 2), (1, 3), (0, 2), (1, 4),
        (0, 3), (0, 4), (1, 5), (0, 5),
    ]  # fmt: skip
    epochs = {0: (1, 0, 0), 5: (1, 0, 3), 6: (0, 0, 2), 7: (1, 0, 4), 8: (0, 1, 0), 10: (1, 1, 0)}
    assert {i: schedule.read(i)[:3] for i in epochs} == epochs
    for i in range(12):
        dataset_id, epoch, position, sample = schedule.read(i)
        assert sample == permute(position, (3, 5)[dataset_id], schedule.epoch_key(dataset_id, epoch))
    counts = {0: [0, 0], 1: [0, 1], 4: [2, 2], 6: [2, 4], 8: [3, 5], 12: [6, 6]}
    assert {i: schedule.cumulative(i).tolist() for i in counts} == counts
    assert schedule.row(1).tolist() == [1, 3] and schedule.planned == 3


def test_in_order_the_first_epoch_is_the_datasets_own():
    rows = [[2, 2], [1, 3], [3, 1]]
    schedule, shuffled = make(rows, in_order=True), make(rows)
    for i in range(12):
        dataset_id, epoch, position, sample = schedule.read(i)
        assert (dataset_id, epoch, position) == shuffled.read(i)[:3]
        assert sample == (position if epoch == 0 else shuffled.read(i)[3])
    for b in range(3):  # the vector path
        assert schedule.block(b)[2].tolist() == [schedule.read(4 * b + slot)[3] for slot in range(4)]


@given(seed=st.integers(0, 2**32), size=st.integers(1, 80))
@settings(max_examples=60)
def test_a_run_that_comes_from_the_static_blend_reads_what_is_left_of_each_epoch(seed, size):
    """Stock has read samples 0 … start−1 of each dataset; a resume in the middle keeps the order."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 60, size=3)
    first_block, block = int(rng.integers(0, 4)), size
    start_C = rng.multinomial(first_block * block, np.ones(3) / 3)
    start_C = np.minimum(start_C, lengths)  # stock laid out one epoch
    rows = rng.multinomial(block, rng.dirichlet(np.ones(3)), size=6)
    first = Schedule(lengths, block, first_block + 6, seed=11, in_order=True)
    first.load_state_dict(first.state_dict(0) | {"first_block": first_block, "start_C": start_C})
    first.publish(first_block, rows)
    cut = (first_block + 3) * block
    second = Schedule(lengths, block, first_block + 6, seed=11)  # asked otherwise, it goes on as the run began
    second.load_state_dict(first.state_dict(cut))
    drawn = [list(range(n)) for n in start_C]
    for i in range(first_block * block, (first_block + 6) * block):
        dataset_id, _, _, sample = (first if i < cut else second).read(i)
        drawn[dataset_id].append(sample)
    for length, samples in zip(lengths, drawn, strict=True):
        for at in range(0, len(samples), length):
            epoch = samples[at : at + length]
            assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(length))


rows_of = st.integers(1, 6).flatmap(
    lambda num_datasets: st.tuples(
        st.lists(st.integers(1, 40), min_size=num_datasets, max_size=num_datasets),
        st.integers(1, 30),
        st.integers(0, 2**32),
    )
)


@given(case=rows_of)
@settings(max_examples=60)
def test_every_dataset_is_read_epoch_by_epoch_whatever_the_rows(case):
    lengths, block, seed = case
    rng = np.random.default_rng(seed)
    rows = rng.multinomial(block, rng.dirichlet(np.ones(len(lengths))), size=12)
    schedule = make(rows, lengths, block)
    drawn = [[] for _ in lengths]
    for i in range(12 * block):
        dataset_id, epoch, position, sample = schedule.read(i)
        assert (epoch, position) == divmod(len(drawn[dataset_id]), lengths[dataset_id])
        assert schedule.locate(i) == (dataset_id, len(drawn[dataset_id]))
        drawn[dataset_id].append(sample)
    for length, samples in zip(lengths, drawn, strict=True):
        for start in range(0, len(samples), length):
            epoch = samples[start : start + length]
            assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(length))
    for b in range(12):
        dataset_n, j_n, sample_n = schedule.block(b)
        assert np.bincount(dataset_n, minlength=len(lengths)).tolist() == rows[b].tolist()
        assert list(zip(dataset_n.tolist(), j_n.tolist(), strict=True)) == [
            schedule.locate(i) for i in range(b * block, b * block + block)
        ]
        assert sample_n.tolist() == [schedule.draw(i)[1] for i in range(b * block, b * block + block)]


def test_single_reads_and_a_whole_block_give_the_same_samples():
    rows = np.random.default_rng(0).multinomial(256, [0.2, 0.5, 0.3], size=3)
    one_by_one, whole = (make(rows, (100, 37, 10**10), 256) for _ in range(2))
    order = np.random.default_rng(1).permutation(768)
    expected = np.concatenate([whole.block(b)[2] for b in range(3)])
    assert [one_by_one.draw(int(i))[1] for i in order] == expected[order].tolist()


def test_epochs_datasets_and_seeds_have_orders_of_their_own():
    rows = [[50, 50]] * 4
    orders = {}
    for seed in (1, 2):
        schedule = Schedule([50, 50], 100, 4, seed)
        schedule.publish(0, np.array(rows))
        for b in range(4):
            dataset_n, _, sample_n = schedule.block(b)
            for dataset_id in (0, 1):
                orders[seed, b, dataset_id] = tuple(sample_n[dataset_n == dataset_id])
            orders[seed, b, "datasets"] = tuple(dataset_n)
    assert len(set(orders.values())) == len(orders)


def test_ten_to_the_twelve_samples_cost_a_window():
    schedule = Schedule([10**10] * 22, 2048, 10**12 // 2048 + 1, 0, min_rows=100)
    held = schedule.table.capacity * bytes_per_row(22)
    assert held <= 16_000_000 and schedule.num_samples >= 10**12
    assert Schedule([9] * 22, 2048, 60_000, 0).table.capacity * bytes_per_row(22) <= 16_000_000
    schedule.publish(0, np.tile([2048] + [0] * 21, (3, 1)))
    dataset_id, _, _, sample = schedule.read(3 * 2048 - 1)
    assert dataset_id == 0 and 0 <= sample < 10**10


def test_the_most_datasets_there_may_be():
    counts_C = np.zeros(32767, dtype=np.int64)
    counts_C[[0, 40, 32766]] = 3, 1, 4
    schedule = Schedule([5] * 32767, 8, 10, 0)
    schedule.publish(0, counts_C)
    assert sorted(schedule.locate(i)[0] for i in range(8)) == [0, 0, 0, 40, 32766, 32766, 32766, 32766]
    with pytest.raises(UserError, match="1 to 32767 datasets, not 32768"):
        Schedule([5] * 32768, 8, 10, 0)


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


# ---------------------------------------------------------------- publishing and state


def test_rows_out_of_order_past_the_end_or_of_a_wrong_sum_are_refused():
    schedule = make([[2, 2]], num_blocks=2)
    for first, rows, message in (
        (0, [[2, 2]], "block 1 is next"), (1, [[2, 2]] * 2, "the run has 2 blocks"), (1, [[2, 1]], "sum to 4"),
        (1, [[5, -1]], "non-negative"), (1, [[4]], "one for each of 2"), (1, [[2.0, 2.0]], "integers"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            schedule.publish(first, rows)
    assert schedule.planned == 1


def test_the_digest_tells_rows_seeds_and_data_apart():
    digests = {
        make(rows, lengths, **more).digest
        for rows, lengths, more in (
            ([[2, 2], [1, 3]], (3, 5), {}), ([[1, 3], [2, 2]], (3, 5), {}), ([[2, 2]], (3, 5), {}),
            ([[2, 2], [1, 3]], (3, 6), {}), ([[2, 2], [1, 3]], (3, 5), {"stream_id_C": [1, 0]}),
        )
    }  # fmt: skip
    assert len(digests) == 5
    a, b = make([[2, 2], [1, 3]]), make([[2, 2]], num_blocks=2)
    b.publish(1, [[1, 3]])
    assert a.digest == b.digest and a.row_digest(1) == b.row_digest(1) != a.row_digest(0)
    assert -(2**63) <= a.digest < 2**63


@given(consumed=st.integers(0, 36), more=st.integers(0, 3))
@settings(max_examples=40)
def test_a_resumed_schedule_goes_on_as_the_uninterrupted_one(consumed, more):
    rows = np.random.default_rng(1).multinomial(4, [0.3, 0.7], size=12)
    whole, first = make(rows), make(rows[:9], num_blocks=12)
    state = first.state_dict(consumed)
    assert all(isinstance(value, (int, np.ndarray)) for value in state.values())
    second = Schedule((3, 5), 4, 12 + more, seed=11)
    second.load_state_dict(state)
    assert (second.planned, second.digest) == (9, first.digest)
    second.publish(9, rows[9:])
    assert [second.read(i) for i in range(consumed, 48)] == [whole.read(i) for i in range(consumed, 48)]
    assert second.cumulative(consumed).tolist() == whole.cumulative(consumed).tolist()
    assert second.digest == whole.digest
    if consumed >= 4:
        with pytest.raises(StaleRow):
            second.read(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "has seed 5, this run 11"),
        ({"block_size": 8}, "has block_size 8, this run 4"),
        ({"version": 99}, "version 99"),
        ({"length_C": np.array([3, 6])}, "another length"),
        ({"stream_id_C": np.array([0, 5])}, "one of other datasets"),
    ],
)
def test_a_state_of_another_run_is_refused(change, message):
    state = make([[2, 2], [1, 3]]).state_dict(4) | change
    with pytest.raises(UserError, match=message):
        Schedule((3, 5), 4, 2, seed=11).load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "blocks"),
    [
        ((0, 2, 4, 8, 64), 1),
        ((2, 2, 4, 8, 64), 3),
        ((2, 2, 4, 4, 64), 2),
        ((1, 2, 1, 1, 64), 2),
        ((8, 4, 16, 2, 64), 17),
    ],
)
def test_lead_covers_what_loaders_hold_in_flight(arguments, blocks):
    assert lead_blocks(*arguments) == blocks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths_C": [3, 0]}, "dataset 1 of the blend is empty"),
        ({"block_size": 0}, "global batch"),
        ({"stream_id_C": [4, 4]}, "same identity"),
    ],
)
def test_impossible_schedules_are_refused(change, message):
    arguments = {"lengths_C": [3, 5], "block_size": 4, "num_blocks": 2, "seed": 0} | change
    with pytest.raises(UserError, match=message):
        Schedule(**arguments)


def test_many_positions_at_once_are_what_they_are_one_by_one():
    schedule = Schedule([40, 9, 23], 12, 30, seed=3)
    rows_SxC, _ = apportion_rows([0.5, 0.1, 0.4], 12, 30, np.zeros(3))
    digest_S = schedule.publish(0, rows_SxC)
    positions = np.array([0, 12, 13, 24, 35, 36, 120, 359, 360])
    expected = [schedule.cumulative(int(i)) for i in positions]
    np.testing.assert_array_equal(schedule.cumulative_many(positions), expected)
    assert digest_S.tolist() == [schedule.row_digest(b) for b in range(30)]
