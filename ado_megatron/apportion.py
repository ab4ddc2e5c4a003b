"""From weights to integers: how many samples of each column a block takes.

Legend: C columns, S blocks (rows). Quotas are 64-bit integers in units of 2^-40 sample, so every sum is exact and the
same on every platform.

The quota Q of a column is its credit (what it is owed from before, between -1 and 1) plus block_size × weight. A column
takes ⌊Q⌋ or ⌊Q⌋ + 1 samples, and carries the rest as credit, so its cumulative count is always the floor or the
ceiling of its cumulative quota: the difference is below one sample.

- Who takes the extra sample: first the columns that are ahead of their quota (their count cannot go down), then those
  whose next sample falls due first, (1 − frac Q) / (block_size × weight) blocks from now. For weights that do not
  change this is earliest-deadline-first over unit jobs, which meets every deadline whenever any order does, and one
  does (Tijdeman, "The chairman assignment problem", Discrete Math. 32 (1980)): nothing is ever folded.
- When weights change, no rule that does not know the future can keep every difference below one: an opponent who
  chooses weights after seeing the rows drives some difference to the order of log C (the cup game). It needs columns
  below one sample a block: while every weighted column has block_size × weight ≥ 1, no column can be ahead of its
  quota at a block's end by more than its next block makes up, and nothing is folded, whatever the weights do. In the
  rest of the cases less than a sample per column is **folded** into the weights in force: taken from the quota of
  columns that would come too late and given to those that are ahead. A column whose weight is zero takes no sample,
  and what it was owed goes to the others in proportion. The credit is measured against the weights in force after
  folding, so the bound below one holds by construction; `credit_in + block_size·weights − counts − credit_out` is what
  was folded.
"""

import numpy as np

from ado_megatron.errors import UserError

_SHIFT = 40
_ONE = 1 << _SHIFT
MAX_BLOCK = 1 << 21  # samples; keeps quotas far inside 63 bits


def apportion(weights_C, block_size: int, credit_C, remaining_C=None) -> tuple[np.ndarray, np.ndarray]:
    """Samples of each column in the next block, and the credit to hand to the call for the block after it.

    weights_C: non-negative, any positive sum. credit_C: zeros at first, then what the last call returned (samples).
    remaining_C: the most samples that each column may still take in the run (None: no cap); kept exactly, the others
    taking over in proportion to their weights.
    Returns counts_C (int64, sums to block_size) and credit_C (float64, each strictly between -1 and 1, sum 0).
    Raises ValueError for weights that are negative, not finite or all zero, and UserError when the columns that have
    weight cannot fill the block.
    """
    quota_C = _quota(weights_C, block_size, credit_C, remaining_C)
    credit_C = np.rint(np.asarray(credit_C, dtype=np.float64) * _ONE).astype(np.int64)
    step_C = _to_grid(quota_C, block_size)
    counts_C, credit_C = _take(step_C, credit_C, block_size)
    return counts_C, credit_C / _ONE


def _quota(weights_C, block_size: int, credit_C, remaining_C) -> np.ndarray:
    """block_size × weights, scaled so that no column's cumulative quota passes its cap (water-filling)."""
    weights_C = np.asarray(weights_C, dtype=np.float64)
    total = weights_C.sum()
    if not (np.isfinite(total) and total > 0 and (weights_C >= 0).all()):
        raise ValueError("weights must be finite and non-negative, with a positive sum")
    quota_C = weights_C * (block_size / total)
    if remaining_C is None:
        return quota_C
    bound_C = np.maximum(np.asarray(remaining_C, dtype=np.float64) - credit_C, 0.0)
    if (quota_C <= bound_C).all():
        return quota_C
    open_C, left = weights_C > 0, float(block_size)
    quota_C = np.zeros_like(weights_C)
    while open_C.any():
        quota_C[open_C] = weights_C[open_C] * (left / weights_C[open_C].sum())
        full_C = open_C & (quota_C >= bound_C)
        if not full_C.any():
            return quota_C
        quota_C[full_C] = bound_C[full_C]
        open_C &= ~full_C
        left = block_size - quota_C[~open_C].sum()
    if left > 1e-6:
        raise UserError(
            f"the domains with weight have {int(np.sum(np.asarray(remaining_C)[weights_C > 0]))} samples left under "
            f"their caps, but a block needs {block_size}; raise --ado-max-epochs or shorten the run"
        )
    return quota_C


def _to_grid(quota_C: np.ndarray, block_size: int) -> np.ndarray:
    """Quotas as integers that sum to the block exactly; the rounding of the sum goes to the largest column."""
    step_C = np.rint(quota_C * _ONE).astype(np.int64)
    step_C[step_C.argmax()] += block_size * _ONE - step_C.sum()
    return step_C


def _take(step_C: np.ndarray, credit_C: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts and new credit from this block's quota and the old credit, all in grid units."""
    quota_C = _settle(credit_C, step_C, block_size)
    floor_C, part_C = quota_C >> _SHIFT, quota_C & (_ONE - 1)
    ahead_C = floor_C < 0
    late = int(ahead_C.sum()) + int(floor_C.sum()) - block_size
    if late > 0:
        _fold(quota_C, part_C, step_C, ahead_C, late)
        floor_C, part_C = quota_C >> _SHIFT, quota_C & (_ONE - 1)
        ahead_C = floor_C < 0
    extra = block_size - int(floor_C.sum())
    if extra:
        floor_C[_most_urgent(part_C, step_C, ahead_C, extra)] += 1
    return floor_C, quota_C - (floor_C << _SHIFT)


def _settle(credit_C: np.ndarray, step_C: np.ndarray, block_size: int) -> np.ndarray:
    """Quotas that sum to the block: what columns without weight were owed (or had too much) goes to the others."""
    quota_C = credit_C + step_C
    idle_C = step_C == 0
    if idle_C.any() and int(credit_C[idle_C].sum()) > -block_size * _ONE:
        quota_C[idle_C] = 0
    owed = block_size * _ONE - int(quota_C.sum())
    if owed:
        gift_C = np.rint(step_C * (owed / float(block_size * _ONE))).astype(np.int64)
        gift_C[step_C.argmax()] += owed - int(gift_C.sum())
        quota_C += gift_C
    return quota_C


def _fold(quota_C, part_C, step_C, ahead_C, late: int) -> None:
    """Make a block feasible in which `late` columns would miss their sample, changing the quotas as little as it can.

    Columns that are due and have the least to lose relative to their quota are put one unit below their next whole
    sample; what they gave up goes to the columns that are ahead, none of which is lifted above its count.
    """
    loss_C = np.where(quota_C >= _ONE, part_C / np.maximum(step_C, 1), np.inf)
    givers = np.argsort(loss_C, kind="stable")[:late]
    given = int(part_C[givers].sum()) + late
    quota_C[givers] -= part_C[givers] + 1
    takers = np.flatnonzero(ahead_C)
    room = -quota_C[takers]
    quota_C[takers] += np.clip(given - (np.cumsum(room) - room), 0, room)


def _most_urgent(part_C, step_C, ahead_C, extra: int) -> np.ndarray:
    """The `extra` columns whose next sample falls due first; those that are ahead of their quota come before all."""
    due_C = np.full(len(part_C), np.inf)
    np.divide(_ONE - part_C, step_C, out=due_C, where=(step_C > 0) & (part_C > 0))
    due_C[ahead_C] = -1.0
    return np.argsort(due_C, kind="stable")[:extra]


def apportion_rows(weights, block_size: int, num_rows: int, credit_C, remaining_C=None):
    """`apportion`, row after row: counts_SxC (int32) and the credit after the last row.

    weights: one weights_C for all `num_rows` rows, or weights_SxC.
    """
    weights = np.asarray(weights, dtype=np.float64)
    remaining_C = None if remaining_C is None else np.array(remaining_C, dtype=np.int64)
    counts_SxC = np.zeros((num_rows, weights.shape[-1]), dtype=np.int32)
    for s in range(num_rows):
        row_C = weights if weights.ndim == 1 else weights[s]
        counts_SxC[s], credit_C = apportion(row_C, block_size, credit_C, remaining_C)
        if remaining_C is not None:
            remaining_C -= counts_SxC[s]
    return counts_SxC, credit_C
