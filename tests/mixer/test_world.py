"""World: one sum, one broadcast, and the comparisons that stop a run whose ranks differ."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ado_megatron.errors import RanksDisagree, UserError
from ado_megatron.mixer.world import World, digest64
from tests.kit.ranks import run_ranks


def test_a_world_of_one_needs_no_process_group():
    world = World.single()
    facts = world.traffic
    assert world.all_reduce_sum(torch.ones(3)).tolist() == [1, 1, 1]
    assert world.broadcast({"a": 1}) == {"a": 1}
    assert world.gather(5) == world.gather_on_zero(5) == [5]
    assert world.all_same(5)
    world.require_same({"seed": 1})
    assert facts.calls == 0


def test_a_rank_outside_its_world_is_refused():
    with pytest.raises(ValueError, match="rank 2 is not in a world of 2"):
        World(2, 2, True, torch.device("cpu"))


def test_digests_are_the_same_everywhere():
    assert digest64("ado") == digest64(b"ado") == 2096560432057594145
    assert digest64("ado") != digest64("adp")


def _sum_and_broadcast(rank):
    world = World.detect(contributes=True)
    assert (world.rank, world.size) == (dist.get_rank(), 3)
    assert world.all_reduce_sum(torch.tensor([1.0, world.rank])).tolist() == [3.0, 3.0]
    rows = world.broadcast(np.arange(4, dtype=np.int32) if world.is_zero else None)
    np.testing.assert_array_equal(rows, np.arange(4))
    assert world.gather_int64(10 + world.rank) == [10, 11, 12]
    assert world.gather_on_zero(10 + world.rank) == ([10, 11, 12] if world.is_zero else [])
    largest = (1 << 63) - 1
    assert world.all_same(largest) and world.all_same(0)
    for odd in range(3):
        assert not world.all_same(largest - (world.rank == odd))
    assert (world.traffic.calls, world.traffic.payload_bytes) == (8, 8 + 16 + 24 + 5 * 16)


def test_sum_broadcast_and_gather():
    run_ranks(_sum_and_broadcast, 3)


def _another_seed(rank):
    world = World.detect(contributes=True)
    facts = {"--ado-seed": 1 if world.rank != 2 else 7, "data": "d41d"}
    with pytest.raises(RanksDisagree, match=r"rank 2 started with another --ado-seed than rank 0 \(7 against 1\)"):
        world.require_same(facts)
    world.require_same({"data": "d41d"})


def _from_zero(rank):
    world = World.detect(contributes=True)
    assert world.run_on_rank_zero(lambda: world.rank + 7) == 7
    for error, seen, words in (
        (UserError("raise the cap"), UserError, "^raise the cap$"),
        (ValueError("no weights"), ValueError if rank == 0 else RuntimeError, "no weights"),
    ):

        def fail(error=error):
            assert world.is_zero, "only rank zero computes"
            raise error

        with pytest.raises(seen, match=words):
            world.run_on_rank_zero(fail)
    assert world.gather(rank) == [0, 1]  # nobody is left behind in a collective


def test_what_rank_zero_fails_at_ends_every_rank():
    run_ranks(_from_zero, 2)


def test_a_rank_with_another_option_is_named_on_every_rank():
    run_ranks(_another_seed, 3)


def _another_row(rank):
    world = World.detect(contributes=True)
    digest_S = np.array([11, 22, 33], dtype=np.int64)
    world.require_same_rows(40, digest_S)
    if world.rank == 1:
        digest_S[2] += 1
    with pytest.raises(RanksDisagree, match="rank 1: the mixture differs from that of rank 0 from block 42 on"):
        world.require_same_rows(40, digest_S)


def test_a_differing_row_stops_all_ranks_and_names_rank_and_block():
    run_ranks(_another_row, 2)
