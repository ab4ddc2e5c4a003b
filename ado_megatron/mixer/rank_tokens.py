"""What each rank measured, beside the sum over all of them, in one collective.

Legend: T steps, K domains, W ranks, N = 1 + K, or 2.
"""

from __future__ import annotations

import torch

from ado_megatron.mixer.world import World

MOST = 1 << 16  # numbers that are sent for it; with more ranks × domains each rank's tokens are added up


def sum_over_world(world: World, sums_TxKx2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One all-reduce: the world's sums_TxKx2, and ranks_WxN: of each rank 1 if it contributes, and its tokens by domain
    or, in a large world, all of them. A rank fills its own row; in the sum all rows are filled."""
    mine = sums_TxKx2[:, :, 1].sum(0)
    if world.size * (1 + len(mine)) > MOST:
        mine = mine.sum(0, keepdim=True)
    ranks_WxN = sums_TxKx2.new_zeros(world.size, 1 + len(mine))
    ranks_WxN[world.rank, 0], ranks_WxN[world.rank, 1:] = float(world.contributes), mine
    joined = world.all_reduce_sum(torch.cat([sums_TxKx2.reshape(-1), ranks_WxN.reshape(-1)]))
    end = sums_TxKx2.numel()
    return joined[:end].reshape(sums_TxKx2.shape), joined[end:].reshape(ranks_WxN.shape)
