"""One table a node: ranks of a node read one memory, and a rank that cannot reach it has its own."""

import multiprocessing

import numpy as np

from ado_megatron.mixer import node_table
from ado_megatron.stream.schedule import Schedule
from tests.kit.mixing import Run, config
from tests.kit.ranks import run_ranks
from tests.mixer.test_ranks import run_of


def _train(rank, path, node_of):
    node_table.node_name = lambda: node_of[rank]
    run = run_of(rank, path, 1, 1, 3, config(), steps=50).start().train(50)
    table = run.mixer.schedule.table
    return (table._lender or table.address)[-1], table.borrowed, run.stream, run.mixer.schedule.digest, run.rows()


def test_ranks_of_a_node_read_one_table_and_draw_the_same(tmp_path):
    one = Run(tmp_path / "one", config(), steps=50).start().train(50)
    results = run_ranks(_train, 3, tmp_path / "many", ["a", "b", "a"])
    memory, borrowed, *_ = zip(*results, strict=True)
    assert memory[0] == memory[2] != memory[1] and borrowed == (False, False, True)
    for _, _, stream, digest, rows in results:
        assert stream == one.stream and digest == one.mixer.schedule.digest
        np.testing.assert_array_equal(rows, one.rows())


def _resume(rank, path):
    run = run_of(rank, path, 1, 1, 2, config(), steps=60).start(path / "s.ado").train(60)
    return run.mixer.schedule.table.borrowed, run.stream


def test_a_resumed_run_shares_what_was_restored(tmp_path):
    whole = Run(tmp_path, config(), steps=60).start().train(25)
    whole.save(tmp_path / "s.ado")
    whole.train(60).mixer.close()
    assert run_ranks(_resume, 2, tmp_path) == [(rank == 1, whole.stream[25 * 16 :]) for rank in range(2)]


def test_a_table_that_is_not_the_one_named_is_not_read():
    lender, reader = (Schedule([9, 9], 4, 20, seed=0) for _ in range(2))
    process, number, device, inode = lender.table.address
    assert not reader.share_table((process, number, device, inode + 1))
    assert not reader.share_table((process, 999_999, device, inode))
    assert not Schedule([9, 9], 4, 30, seed=0).share_table(lender.table.address), "a table of another size"
    assert not reader.table.borrowed
    reader.publish(0, [[2, 2]])
    assert lender.planned == 0


def test_what_a_borrower_publishes_goes_to_its_digests_alone():
    lender, reader = (Schedule([9, 9], 4, 20, seed=0) for _ in range(2))
    assert reader.share_table(lender.table.address)
    rows, other = [[2, 2], [1, 3]], [[2, 2], [3, 1]]
    digest_S = lender.publish(0, rows)
    assert reader.planned == 0
    assert reader.publish(0, rows).tolist() == digest_S.tolist() and reader.digest == lender.digest
    assert (reader.planned, reader.row(1).tolist()) == (2, [1, 3])
    lender.publish(2, other)
    assert (reader.publish(2, rows) == lender.publish(4, other)).tolist() == [False, False]
    assert reader.row(3).tolist() == [3, 1], "what is read is the lender's"
    assert not reader.table.end_RxC.flags.writeable


def _row(schedule, block):
    return schedule.row(block).tolist()


def test_spawned_workers_of_a_borrower_read_the_lenders_rows():
    lender, reader = (Schedule([9, 9], 4, 20, seed=0) for _ in range(2))
    reader.share_table(lender.table.address)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply_async(_row, (reader, 1))
        lender.publish(0, [[2, 2], [1, 3]])
        assert found.get(60) == [1, 3]
