"""From weights to integers: how many samples of each column a block takes.

Legend: C columns, S blocks (rows), H blocks ahead. Quotas are 64-bit integers in units of 2^-40 sample, so every sum is
exact and the same on every platform.

The quota Q of a column is its credit (what it is owed from before, between -1 and 1) plus block_size × weight. A column
takes ⌊Q⌋ or ⌊Q⌋ + 1 samples and carries the rest as credit: its cumulative count is always the floor or the ceiling of
its cumulative quota, so they differ by less than one sample. Who takes the extra sample:

- Columns that get a sample a block or more are free at every block: largest remainder first.
- Columns below one sample a block are the difficulty. One that took its sample early cannot give it back, and when
  many fall due at once the block may be too small. Where enough columns of the first kind make up for them the rule of
  dense.py serves. Else the largest remainder goes first if, at these weights, no block ahead can be overfull;
  otherwise the earliest deadline: the sample that must come first to stay within the bound. Earliest deadline first
  meets all deadlines of unit jobs whenever any order does, and for weights that stay as they are one does (Tijdeman,
  "The chairman assignment problem", Discrete Math. 32 (1980)).

What is guaranteed. No rule that does not know future weights can keep every difference below one against an opponent
who chooses them after seeing the rows (the cup game: order of log C). When a block would be overfull nevertheless, or
a column drops out with a sample owed, less than a sample per column is **folded** into the weights in force: taken
from the quota of columns that would come too late, given to those that are ahead. The credit is measured against the
weights in force after folding, so the bound below one holds by construction, and `credit_in + block_size·weights −
counts − credit_out` is what was folded. It is zero in every block where each column with weight gets a sample or more;
tests find it zero, too, for weights that are constant or redrawn at random in every block. It takes an opponent to
make it appear.
"""

import numpy as np

from ado_megatron.dense import ONE, SHIFT, dense_rows, rows_ahead
from ado_megatron.errors import UserError

MAX_BLOCK = 1 << 21  # samples; keeps quotas far inside 63 bits
_CHUNK_CELLS = 1 << 16  # rows × columns laid out at a time: stays in the cache


def apportion(
    weights_C, block_size: int, credit_C, remaining_C=None, domain_of_C=None
) -> tuple[np.ndarray, np.ndarray]:
    """Samples of each column in the next block, and the credit to hand to the call for the block after it.

    weights_C: non-negative, any positive sum. credit_C: zeros at first, then what the last call returned (samples).
    remaining_C: the most samples that each column may still take in the run (None: no cap); kept exactly, the others
    taking over in proportion to their weights. domain_of_C: with it the others of its domain take over first.
    Returns counts_C (int64, sums to block_size) and credit_C (float64, each strictly between -1 and 1, sum 0).
    Raises ValueError for weights that are negative, not finite or all zero, and UserError when the columns that have
    weight cannot fill the block.
    """
    step_C = _to_grid(_quota(weights_C, block_size, credit_C, remaining_C, domain_of_C), block_size)
    quota_C = _settle(_grid_credit(credit_C), step_C, block_size)
    counts_C, credit_C = _take(quota_C, step_C, block_size)
    return counts_C, credit_C / ONE


def _quota(weights_C, block_size: int, credit_C, remaining_C, domain_of_C=None) -> np.ndarray:
    """block_size × weights, changed so that no column's cumulative quota passes its cap."""
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
    whole_C, block_1 = np.zeros(len(weights_C), dtype=np.int64), np.array([float(block_size)])
    if domain_of_C is None:
        quota_C = _fill(weights_C, bound_C, block_1, whole_C)
    else:
        bound_K = np.bincount(domain_of_C, np.where(weights_C > 0, bound_C, 0.0))
        quota_K = _fill(np.bincount(domain_of_C, weights_C), bound_K, block_1, whole_C[: len(bound_K)])
        quota_C = _fill(weights_C, bound_C, quota_K, domain_of_C)
    if quota_C.sum() < block_size - 1e-6:
        raise UserError(
            f"the domains with weight have {int(np.sum(np.asarray(remaining_C)[weights_C > 0]))} samples left under "
            f"their caps, but a block needs {block_size}; raise --ado-max-epochs or shorten the run"
        )
    return quota_C


def _fill(weights_C: np.ndarray, bound_C: np.ndarray, total_K: np.ndarray, domain_of_C: np.ndarray) -> np.ndarray:
    """total_K of each domain in proportion to the weights in it, but to no column more than its bound (water-filling).

    A domain gets less than its total where its bounds are less.
    """
    open_C, quota_C = weights_C > 0, np.zeros_like(weights_C)
    while True:
        closed_K = np.bincount(domain_of_C, np.where(open_C, 0.0, quota_C), minlength=len(total_K))
        weight_K = np.bincount(domain_of_C, np.where(open_C, weights_C, 0.0), minlength=len(total_K))
        level_K = np.divide(total_K - closed_K, weight_K, out=np.zeros_like(weight_K), where=weight_K > 0)
        quota_C[open_C] = (weights_C * level_K[domain_of_C])[open_C]
        full_C = open_C & (quota_C >= bound_C)
        if not full_C.any():
            return quota_C
        quota_C[full_C] = bound_C[full_C]
        open_C &= ~full_C


def _to_grid(quota_C: np.ndarray, block_size: int) -> np.ndarray:
    """Quotas as integers that sum to the block exactly; the rounding of the sum goes to the largest column."""
    step_C = np.rint(quota_C * ONE).astype(np.int64)
    step_C[(quota_C > 0) & (step_C == 0)] = 1  # a weight, however small, is not "no weight"
    step_C[step_C.argmax()] += block_size * ONE - step_C.sum()
    return step_C


def _grid_credit(credit_C) -> np.ndarray:
    return np.rint(np.asarray(credit_C, dtype=np.float64) * ONE).astype(np.int64)


def _settle(credit_C: np.ndarray, step_C: np.ndarray, block_size: int) -> np.ndarray:
    """Quotas that sum to the block: what columns without weight were owed (or had too much) goes to the others."""
    quota_C = credit_C + step_C
    idle_C = step_C == 0
    if idle_C.any() and int(credit_C[idle_C].sum()) > -block_size * ONE:
        quota_C[idle_C] = 0
    owed = block_size * ONE - int(quota_C.sum())
    if owed:
        gift_C = np.rint(step_C * (owed / float(block_size * ONE))).astype(np.int64)
        gift_C[step_C.argmax()] += owed - int(gift_C.sum())
        quota_C += gift_C
    return quota_C


def _fold(quota_C, part_C, step_C, ahead_C, late: int) -> None:
    """Make a block feasible in which `late` columns would miss their sample, changing the quotas as little as it can.

    Columns that are due and have the least to lose relative to their quota are put one unit below their next whole
    sample; what they gave up goes to the columns that are ahead, none of which is lifted above its count.
    """
    loss_C = np.where(quota_C >= ONE, part_C / np.maximum(step_C, 1), np.inf)
    givers = np.argsort(loss_C, kind="stable")[:late]
    given = int(part_C[givers].sum()) + late
    quota_C[givers] -= part_C[givers] + 1
    takers = np.flatnonzero(ahead_C)
    room = -quota_C[takers]
    quota_C[takers] += np.clip(given - (np.cumsum(room) - room), 0, room)


def _take(quota_C: np.ndarray, step_C: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts and new credit (grid units) from this block's quotas, which sum to the block."""
    ahead = rows_ahead(step_C)
    if ahead:
        counts_HxC, good = dense_rows(quota_C, step_C, ahead)
        if good == ahead:
            counts_C = counts_HxC[0].astype(np.int64)
            return counts_C, quota_C - (counts_C << SHIFT)
    floor_C, part_C = quota_C >> SHIFT, quota_C & (ONE - 1)
    ahead_C = floor_C < 0
    late = int(ahead_C.sum()) + int(floor_C.sum()) - block_size
    if late > 0:
        _fold(quota_C, part_C, step_C, ahead_C, late)
        floor_C, part_C = quota_C >> SHIFT, quota_C & (ONE - 1)
        ahead_C = floor_C < 0
    extra = block_size - int(floor_C.sum())
    if extra:
        floor_C = _with_extra(floor_C, part_C, quota_C, step_C, ahead_C, extra)
    return floor_C, quota_C - (floor_C << SHIFT)


def _with_extra(floor_C, part_C, quota_C, step_C, ahead_C, extra: int) -> np.ndarray:
    """Give the extra samples: largest remainder if that is safe, else earliest deadline (ties by remainder)."""
    open_C = (step_C > 0) & (part_C > 0)
    rest_C = np.where(open_C, -part_C / ONE, np.inf)
    rest_C[ahead_C] = -1.0
    counts_C = floor_C.copy()
    counts_C[np.argsort(rest_C, kind="stable")[:extra]] += 1
    if _is_safe(counts_C, quota_C, step_C):
        return counts_C
    due_C = np.full(len(part_C), np.inf)
    np.divide(ONE - part_C, step_C, out=due_C, where=open_C)
    due_C = np.ceil(due_C) + 0.999 * rest_C
    due_C[ahead_C] = -1.0
    floor_C[np.argsort(due_C, kind="stable")[:extra]] += 1
    return floor_C


def _is_safe(counts_C, quota_C, step_C) -> bool:
    """Whether no later block is overfull if the weights stay: Σ max(⌊quota⌋, counts) within what is laid out by then.

    Looks until the last column that is ahead has been caught up with: every block up to 64, then at growing distances.
    """
    gap_C = (counts_C << SHIFT) - quota_C
    ahead_C = (gap_C > 0) & (step_C > 0)
    if not ahead_C.any():
        return True
    reach = float((gap_C[ahead_C] / step_C[ahead_C]).max())
    later_H = np.concatenate([np.arange(1.0, min(reach, 64.0) + 1), np.floor(np.geomspace(1, reach + 1, 64))])
    floor_HxC = np.floor((quota_C + later_H[:, None] * step_C.astype(np.float64)) / ONE)
    total = int(counts_C.sum())
    return bool((np.maximum(floor_HxC, counts_C).sum(axis=1) <= total * (1 + later_H)).all())


def apportion_rows(
    weights, block_size: int, num_rows: int, credit_C, remaining_C=None
) -> tuple[np.ndarray, np.ndarray]:
    """`apportion`, row after row: counts_SxC (int32) and the credit after the last row.

    weights: one weights_C for all `num_rows` rows (laid out many at a time), or weights_SxC.
    """
    weights = np.asarray(weights, dtype=np.float64)
    credit_C = np.asarray(credit_C, dtype=np.float64)
    remaining_C = None if remaining_C is None else np.array(remaining_C, dtype=np.int64)
    counts_SxC = np.empty((num_rows, weights.shape[-1]), dtype=np.int32)
    row = 0
    while row < num_rows:
        done = 0
        if weights.ndim == 1:
            done, credit_C = _dense_rows(weights, block_size, counts_SxC[row:], credit_C, remaining_C)
        if not done:
            row_C = weights if weights.ndim == 1 else weights[row]
            counts_SxC[row], credit_C = apportion(row_C, block_size, credit_C, remaining_C)
            done = 1
        if remaining_C is not None:
            remaining_C -= counts_SxC[row : row + done].sum(axis=0, dtype=np.int64)
        row += done
    return counts_SxC, credit_C


def _dense_rows(weights_C, block_size: int, counts_SxC, credit_C, remaining_C) -> tuple[int, np.ndarray]:
    """Fill in as many rows as the dense rule lays out; their number (0: the next needs `apportion`) and the credit."""
    step_C = _to_grid(_quota(weights_C, block_size, credit_C, remaining_C), block_size)
    ahead, num_rows = rows_ahead(step_C), len(counts_SxC)
    if remaining_C is not None:
        bound_C = (remaining_C - credit_C)[step_C > 0] / (step_C[step_C > 0] / ONE)
        num_rows = min(num_rows, int(bound_C.min()))
    if not ahead or num_rows < 2:
        return 0, credit_C
    quota_C = _settle(_grid_credit(credit_C), step_C, block_size)
    chunk, row, starts = max(32, _CHUNK_CELLS // len(step_C)), 0, []
    while row < num_rows + ahead - 1:
        starts.append((row, quota_C))
        size = min(chunk, num_rows + ahead - 1 - row)
        part_SxC, good = dense_rows(quota_C, step_C, size)
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
    return num_rows, (quota_C + (num_rows - first - 1) * step_C - laid_out_C) / ONE
