"""The helper that the distributed tests stand on."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.kit.ranks import RankFailed, run_ranks


def _sum(rank, factor):
    t = torch.tensor([rank * factor])
    dist.all_reduce(t)
    return rank, int(t)


def _one_raises(rank):
    if rank == 1:
        time.sleep(0.2)
        raise ValueError("the reason")
    dist.barrier()


def _one_dies(rank):
    if rank == 0:
        os._exit(7)
    dist.barrier()


def _one_hangs(rank):
    if rank == 0:
        time.sleep(60)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_each_rank_runs_in_one_group_and_returns_its_result(method):
    assert run_ranks(_sum, 3, 10, method=method) == [(0, 30), (1, 30), (2, 30)]


def test_the_first_failing_ranks_traceback_surfaces_though_its_peer_fails_too():
    with pytest.raises(RankFailed, match=r"(?s)rank 1 failed first.*ValueError: the reason"):
        run_ranks(_one_raises, 2)


def test_a_rank_that_dies_without_a_word_is_reported():
    with pytest.raises(RankFailed, match="exit code 7|Connection"):
        run_ranks(_one_dies, 2)


def test_a_hanging_rank_meets_the_deadline_and_is_stopped():
    started = time.monotonic()
    with pytest.raises(RankFailed, match="still ran after"):
        run_ranks(_one_hangs, 2, timeout=3.0)
    assert time.monotonic() - started < 30
