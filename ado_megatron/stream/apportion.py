"""From weights to integers: how many samples of each dataset a block takes.

Legend: C datasets, S blocks (rows), H blocks ahead. Quotas are 64-bit integers in units of 2^-40 sample: every sum is
exact and the same on every platform.

The quota Q of a dataset is its credit (owed from before, between -1 and 1) plus block_size × weight. A dataset
takes ⌊Q⌋ or ⌊Q⌋ + 1 samples and carries the rest as credit: its cumulative count is always the floor or the ceiling of
its cumulative quota, so they differ by less than one sample. Who takes the extra sample:

- Datasets that get a sample a block or more are free at every block: largest remainder first.
- Datasets below one sample a block are the difficulty. One that took its sample early cannot give it back, and when
  many fall due at once the block may be too small. Where enough datasets of the first kind make up for them the rule of
  constant_weights.py serves. Else the largest remainder goes first if, at these weights, no block ahead can be
  overfull; otherwise the earliest deadline: the sample that must come first to stay within the bound. Earliest deadline
  first meets all deadlines of unit jobs whenever any order does, and for weights that stay as they are one does
  (Tijdeman, "The chairman assignment problem", Discrete Math. 32 (1980)).

What is guaranteed. No rule that does not know future weights can keep every difference below one against an opponent
who chooses them after seeing the rows (the cup game: order of log C). When a block would be overfull nevertheless, or
a dataset drops out with a sample owed, less than a sample per dataset is **folded** into the weights in force: taken
from the quota of datasets that would come too late, given to those that are ahead. The credit is measured against the
weights in force after folding, so the bound below one holds by construction, and `credit_in + block_size·weights −
counts − credit_out` is what was folded. It is zero in every block where each dataset with weight gets a sample or more;
tests find it zero, too, for weights that are constant or redrawn at random in every block. Only adversarial weight
changes trigger it.
"""

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.stream.constant_weights import constant_rows, rows_ahead
from ado_megatron.stream.quota import MAX_BLOCK, ONE, SHIFT, Steps, find_steps, samples_left

__all__ = ["MAX_BLOCK", "apportion", "constant_stretch"]

_CHUNK_CELLS = 1 << 16  # rows × datasets laid out at a time: stays in the cache
_ROOM = 1 << 12  # grid units; more than the rounding of a quota (float64, up to 2^21 samples)


def apportion(
    weights_C: ArrayLike, block_size: int, credit_C: ArrayLike, remaining_C: ArrayLike | None = None,
    domain_of_C: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Samples of each dataset in the next block, and the credit to hand to the call for the block after it.

    weights_C: non-negative, any positive sum. credit_C: zeros at first, then what the last call returned (samples).
    remaining_C: the most samples that each dataset may still take in the run (None: no cap); kept exactly, the others
    taking over in proportion to their weights. domain_of_C: with it the others of its domain take over first.
    Returns counts_C (int64, sums to block_size) and credit_C (float64, each strictly between -1 and 1, sum 0).
    Raises ValueError for weights that are negative, not finite or all zero, and UserError when the datasets that have
    weight cannot fill the block.
    """
    steps = find_steps(weights_C, block_size, grid_credit(credit_C), remaining_C, domain_of_C)
    counts_C, credit_C = take_row(steps, block_size)
    return counts_C, credit_C / ONE


def grid_credit(credit_C: ArrayLike) -> np.ndarray:
    """Samples as int64 grid units. Exact: a credit is below one sample, so it has at most 40 bits."""
    return np.rint(np.asarray(credit_C, dtype=np.float64) * ONE).astype(np.int64)


def _fold(
    quota_C: np.ndarray, part_C: np.ndarray, step_C: np.ndarray, ahead_C: np.ndarray, late: int
) -> None:  # fmt: skip
    """Make a block feasible in which `late` datasets would miss their sample, changing the quotas as little as it can.

    Datasets that are due and have the least to lose relative to their quota are put one unit below their next whole
    sample (where those do not suffice, further samples below); what they gave up goes to the datasets that are ahead,
    none of which is lifted above its count.
    """
    loss_C = np.where(quota_C >= ONE, part_C / np.maximum(step_C, 1), np.inf)
    givers = np.argsort(loss_C, kind="stable")[: min(late, int(np.isfinite(loss_C).sum()))]
    given = int(part_C[givers].sum()) + len(givers)
    quota_C[givers] -= part_C[givers] + 1
    more = late - len(givers)
    if more:
        whole = quota_C[givers] >> SHIFT
        back = np.clip(more - (np.cumsum(whole) - whole), 0, whole)
        quota_C[givers] -= back << SHIFT
        given += int(back.sum()) << SHIFT
    takers = np.flatnonzero(ahead_C)
    room = -quota_C[takers]
    quota_C[takers] += np.clip(given - (np.cumsum(room) - room), 0, room)


def take_row(steps: Steps, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """counts_C (int64) and the new credit_C (grid units) from the quotas of this block, which sum to it."""
    step_C, quota_C = steps.step_C, steps.credit_C + steps.step_C
    ahead = rows_ahead(step_C) if steps.steady else 0
    if ahead:
        counts_HxC, good = constant_rows(quota_C, step_C, ahead)
        if good == ahead:
            counts_C = counts_HxC[0].astype(np.int64)
            return counts_C, quota_C - (counts_C << SHIFT)
    floor_C, part_C = quota_C >> SHIFT, quota_C & (ONE - 1)
    ahead_C = floor_C < 0
    late = int(ahead_C.sum()) + int(floor_C.sum()) - block_size
    if late > 0:
        _fold(quota_C, part_C, step_C, ahead_C, late)
    counts_C = _take_largest(quota_C, step_C, block_size)
    if not is_safe(counts_C, quota_C, step_C):
        counts_C = take_by_deadline(quota_C, step_C, block_size)
    return counts_C, quota_C - (counts_C << SHIFT)


def _take_largest(quota_C: np.ndarray, step_C: np.ndarray, block_size: int) -> np.ndarray:
    """counts_C where the extra samples go to the largest remainders, ties by dataset."""
    counts_C, rest_C = quota_C >> SHIFT, _remainders(quota_C, step_C)
    extra = block_size - int(counts_C.sum())
    counts_C[np.argsort(rest_C, kind="stable")[:extra]] += 1
    return counts_C


def take_by_deadline(quota_C: np.ndarray, step_C: np.ndarray, block_size: int) -> np.ndarray:
    """counts_C where the extra samples go to those that would first be too late without one, ties by remainder."""
    counts_C, rest_C = quota_C >> SHIFT, _remainders(quota_C, step_C)
    extra = block_size - int(counts_C.sum())
    open_C = np.isfinite(rest_C) & (counts_C >= 0)
    due_C = np.full(len(rest_C), np.inf)
    np.divide(ONE - (quota_C & (ONE - 1)), step_C, out=due_C, where=open_C)
    due_C = np.ceil(due_C) + 0.999 * rest_C
    due_C[counts_C < 0] = -1.0
    counts_C[np.argsort(due_C, kind="stable")[:extra]] += 1
    return counts_C


def _remainders(quota_C: np.ndarray, step_C: np.ndarray) -> np.ndarray:
    """Minus the remainder of each dataset that may take one more; -1 where one was taken early, inf where none is
    due."""
    part_C = quota_C & (ONE - 1)
    rest_C = np.where((step_C > 0) & (part_C > 0), -part_C / ONE, np.inf)
    rest_C[quota_C < 0] = -1.0
    return rest_C


def is_safe(counts_C: np.ndarray, quota_C: np.ndarray, step_C: np.ndarray) -> bool:
    """Whether no later block is overfull if the weights stay: Σ max(⌊quota⌋, counts) within what is laid out by then.

    Looks until the last dataset that is ahead has been caught up with (blocks_ahead).
    """
    gap_C = (counts_C << SHIFT) - quota_C
    ahead_C = (gap_C > 0) & (step_C > 0)
    if not ahead_C.any():
        return True
    later_H = blocks_ahead(float((gap_C[ahead_C] / step_C[ahead_C]).max()))
    floor_HxC = np.floor((quota_C + later_H[:, None] * step_C.astype(np.float64)) / ONE)
    total = int(counts_C.sum())
    return bool((np.maximum(floor_HxC, counts_C).sum(axis=1) <= total * (1 + later_H)).all())


_PLACES = np.arange(64.0)


def blocks_ahead(reach: float) -> np.ndarray:
    """At which distances `is_safe` looks: every block up to 64, then 64 of growing distance up to `reach` + 1."""
    far_H = np.floor(10.0 ** (_PLACES * (np.log10(reach + 1) / 63)))  # np.geomspace, without its overhead
    far_H[0], far_H[-1] = 1.0, np.floor(reach + 1)
    return np.concatenate([np.arange(1.0, min(reach, 64.0) + 1), far_H])


def _rows_below_caps(steps: Steps, remaining_C: np.ndarray) -> int:
    """How many rows of these steps no cap cuts, with some room: then each row has the same steps."""
    some_C = steps.step_C > 0
    room_C = (samples_left(remaining_C) << SHIFT) - steps.credit_C - _ROOM
    return int((room_C[some_C] // steps.step_C[some_C]).min())


def constant_stretch(
    weights_C: np.ndarray, block_size: int, counts_SxC: np.ndarray, credit_C: np.ndarray,
    remaining_C: np.ndarray | None, domain_of_C: np.ndarray | None,
) -> tuple[int, np.ndarray]:  # fmt: skip
    """Fill in counts_SxC as far as the rule for constant weights lays rows out at once.

    credit_C: grid units. Returns the number of rows (0: the next needs `apportion`) and the credit_C after them.
    """
    steps = find_steps(weights_C, block_size, credit_C, remaining_C, domain_of_C)
    step_C, quota_C = steps.step_C, steps.credit_C + steps.step_C
    ahead, num_rows = rows_ahead(step_C) if steps.steady else 0, len(counts_SxC)
    if ahead and remaining_C is not None:
        num_rows = min(num_rows, _rows_below_caps(steps, remaining_C))
    if not ahead or num_rows < 2:
        return 0, credit_C
    chunk, row, starts = max(32, _CHUNK_CELLS // len(step_C)), 0, []
    while row < num_rows + ahead - 1:
        starts.append((row, quota_C))
        size = min(chunk, num_rows + ahead - 1 - row)
        part_SxC, good = constant_rows(quota_C, step_C, size)
        kept_SxC = counts_SxC[row : min(row + good, num_rows)]
        kept_SxC[:] = part_SxC[: len(kept_SxC)]
        row += good
        if good < size:
            break
        # Products and sums may leave 63 bits; their difference, a credit, does not, and integers wrap.
        quota_C = quota_C + size * step_C - (part_SxC.sum(axis=0) << SHIFT)
    num_rows = row - ahead + 1  # of these it is known that the rows after them can be filled
    if num_rows < 1:
        return 0, credit_C
    first, quota_C = max((start for start in starts if start[0] < num_rows), key=lambda start: start[0])
    laid_out_C = counts_SxC[first:num_rows].sum(axis=0) << SHIFT
    return num_rows, (quota_C + (num_rows - first - 1) * step_C - laid_out_C)
