"""A rank that must end takes all others with it, after the same step."""

import time

import torch.distributed as dist

from ado_megatron.mixer import stop_notice
from ado_megatron.mixer.stop_notice import StopNotice
from tests.kit.ranks import run_ranks


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_alone_the_run_ends_at_once():
    notice = StopNotice(None)
    assert notice.due(0) is None
    notice.post(1, "disk full")
    assert notice.due(1) == "disk full"


class Store(dict):
    """What is used of torch's store."""

    def add(self, key, amount):
        self[key] = self.get(key, 0) + amount
        return self[key]

    def set(self, key, value):
        self[key] = value

    def check(self, keys):
        return all(key in self for key in keys)


def pair(seconds):
    """Two ranks on one store, in lockstep: due(step) of both, `seconds` a step."""
    store, clock = Store(), Clock()
    ranks = [StopNotice(store, clock), StopNotice(store, clock)]
    ranks[1]._key = ranks[0]._key

    def step(number):
        clock.now += seconds
        return [rank.due(number) for rank in ranks]

    return ranks, step


def test_all_ranks_stop_after_the_same_step_whatever_a_step_takes():
    for seconds in (0.01, 0.5, 4.0, 100.0):
        ranks, step = pair(seconds)
        number = 0
        for number in range(7):
            assert step(number) == [None, None]
        ranks[1].post(number, "rank 1: the draw log is full")
        posted = number
        while (said := step(number := number + 1)) == [None, None]:
            assert (number - posted) * seconds < 60 or number - posted <= 2
        assert said == ["rank 1: the draw log is full"] * 2


def test_of_two_that_post_at_once_one_counts_for_both():
    ranks, step = pair(1.0)
    step(0)
    ranks[0].post(1, "first")
    ranks[1].post(1, "second")
    said = [None, None]
    number = 1
    while said == [None, None]:
        said = step(number := number + 1)
    assert said == ["first", "first"]


def _stop(rank):
    stop_notice.LOOK_EVERY = 0.2
    notice = StopNotice(dist.distributed_c10d._get_default_store())
    for step in range(10_000):
        time.sleep(0.02)
        dist.barrier()
        if rank == 1 and step == 5:
            notice.post(step, "rank 1 cannot write")
        said = notice.due(step)
        if said:
            return step, said
    raise AssertionError("nobody stopped")


def test_real_ranks_leave_together():
    first, second, third = run_ranks(_stop, 3)
    assert first == second == third and first[1] == "rank 1 cannot write"
