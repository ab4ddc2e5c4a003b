"""From weights to quotas: how much each dataset is due in a block, in integers, within its cap.

Legend: C datasets, K domains. Quotas and credits are 64-bit integers in units of 2^-40 sample: every sum is exact and
the same on every platform.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.errors import UserError
from ado_megatron.stream.constant_weights import ONE, SHIFT

MAX_BLOCK = 1 << 21  # samples; keeps quotas far inside 63 bits


@dataclass(frozen=True, eq=False)
class Steps:
    """step_C: what each dataset gets in this block, beside the credit_C that it keeps from before; together they sum to
    the block. steady: the same weights would give the same steps in the next block.
    """

    step_C: np.ndarray
    credit_C: np.ndarray
    steady: bool


def samples_left(remaining_C: ArrayLike) -> np.ndarray:
    """What caps leave; more than two of the largest blocks hold counts as that much, so that it fits the grid."""
    return np.clip(np.asarray(remaining_C, dtype=np.int64), 0, 2 * MAX_BLOCK)


def find_steps(
    weights_C: ArrayLike, block_size: int, credit_C: np.ndarray, remaining_C: ArrayLike | None = None,
    domain_of_C: np.ndarray | None = None,
) -> Steps:  # fmt: skip
    """The steps of the next block. Arguments as of `apportion`, credit_C in grid units; its exceptions, too.

    Steps are in proportion to the weights, where caps allow: credit and step of a dataset together never pass its cap.
    A dataset without weight keeps no credit, nor one at its cap more than it may draw: what it was owed, or had too
    much, is part of the others' steps.
    """
    weights_C = np.asarray(weights_C, dtype=np.float64)
    total = weights_C.sum()
    if not (np.isfinite(total) and total > 0 and (weights_C >= 0).all()):
        raise ValueError("weights must be finite and non-negative, with a positive sum")
    idle_C = weights_C == 0
    kept_C = np.where(idle_C, 0, credit_C)
    left_C = None
    if remaining_C is not None:
        left_C = np.where(idle_C, 0, samples_left(remaining_C))
        if left_C.sum() < block_size:
            raise UserError(
                f"the domains with weight have {int(left_C.sum())} samples left under their caps, but a block needs "
                f"{block_size}; raise --ado-max-epochs or shorten the run"
            )
        left_C <<= SHIFT
        kept_C = np.minimum(kept_C, left_C)
    kept_C = _within_block(kept_C, credit_C, idle_C, block_size)
    to_fill = block_size * ONE - int(kept_C.sum())
    bound_C = None if left_C is None else np.where(idle_C, 0, left_C - kept_C)
    step_C = _to_grid(_quota(weights_C, to_fill / ONE, bound_C, domain_of_C), to_fill, bound_C)
    return Steps(step_C, kept_C, bool((kept_C == credit_C).all()))


def _within_block(
    kept_C: np.ndarray, credit_C: np.ndarray, idle_C: np.ndarray, block_size: int
) -> np.ndarray:  # fmt: skip
    """Where more is owed than a block holds, datasets without weight keep some of what they had too much after all."""
    short = int(kept_C.sum()) + len(kept_C) - block_size * ONE  # each dataset has at least one unit as its step
    if short <= 0:
        return kept_C
    over_C = np.where(idle_C, np.maximum(-credit_C, 0), 0)
    return kept_C - np.clip(short - (np.cumsum(over_C) - over_C), 0, over_C)


def _quota(
    weights_C: np.ndarray, samples: float, bound_C: np.ndarray | None, domain_of_C: np.ndarray | None
) -> np.ndarray:  # fmt: skip
    """`samples` in proportion to the weights, but to none more than its bound (grid units): then the others take over,
    those of its domain first."""
    quota_C = weights_C * (samples / weights_C.sum())
    if bound_C is None:
        return quota_C
    most_C = bound_C / ONE
    if (quota_C <= most_C).all():
        return quota_C
    if domain_of_C is None:
        return _fill(weights_C, most_C, np.array([samples]), np.zeros(len(weights_C), dtype=np.int64))
    most_K = np.bincount(domain_of_C, most_C)
    one_K = np.zeros(len(most_K), dtype=np.int64)
    quota_K = _fill(np.bincount(domain_of_C, weights_C), most_K, np.array([samples]), one_K)
    return _fill(weights_C, most_C, quota_K, domain_of_C)


def _fill(weights_C: np.ndarray, bound_C: np.ndarray, total_K: np.ndarray, domain_of_C: np.ndarray) -> np.ndarray:
    """total_K of each domain in proportion to the weights in it, but to no dataset more than its bound (water-filling).

    A domain gets less than its total where its bounds are less.
    """
    open_C, quota_C = weights_C > 0, np.zeros_like(weights_C)
    while True:
        closed_K = np.bincount(domain_of_C, np.where(open_C, 0.0, quota_C), minlength=len(total_K))
        weight_K = np.bincount(domain_of_C, np.where(open_C, weights_C, 0.0), minlength=len(total_K))
        left_K = np.maximum(total_K - closed_K, 0.0)
        level_K = np.divide(left_K, weight_K, out=np.zeros_like(weight_K), where=weight_K > 0)
        quota_C[open_C] = (weights_C * level_K[domain_of_C])[open_C]
        full_C = open_C & (quota_C >= bound_C)
        if not full_C.any():
            return quota_C
        quota_C[full_C] = bound_C[full_C]
        open_C &= ~full_C


def _to_grid(quota_C: np.ndarray, to_fill: int, bound_C: np.ndarray | None) -> np.ndarray:
    """Quotas (samples) as integers that sum to `to_fill` exactly and pass no bound.

    The rounding of the sum goes to the largest dataset, or to those with most room.
    """
    step_C = np.rint(quota_C * ONE).astype(np.int64)
    step_C[(quota_C > 0) & (step_C == 0)] = 1  # a weight, however small, is not "no weight"
    if bound_C is not None:
        step_C = np.minimum(step_C, bound_C)
    rest, top = to_fill - int(step_C.sum()), step_C.argmax()
    if bound_C is None or step_C[top] + rest <= bound_C[top]:
        step_C[top] += rest
        return step_C
    room_C = bound_C - step_C
    order = np.argsort(-room_C, kind="stable")
    room = np.minimum(room_C[order], rest)
    step_C[order] += np.clip(rest - (np.cumsum(room) - room), 0, room)
    return step_C
