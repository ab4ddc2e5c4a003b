"""Many rows at once at constant weights, where enough columns get a sample a block or more.

These "often" columns are free at every block; a rare column, of less than a sample a block, cannot give back a sample
that it took early. So a rare column goes up when its remainder passes the threshold at which all columns together
would fill the block, and stays up until its quota has passed; the largest remainders of the others fill the block. A
row depends on those before it only through its quotas, so rows laid out one by one are the same.

Legend: C columns, S rows. Quotas are integers in units of 2^-40 sample.
"""

import numpy as np

SHIFT = 40
ONE = 1 << SHIFT  # a sample
_LOOK_AHEAD = 32
_KEY_BITS = 17  # of a remainder, above 15 bits of the column's number
_KEY_ONE = 1 << _KEY_BITS
_SEARCHES = 3  # for the threshold; the discrepancy is then that of the largest remainders


def rows_ahead(step_C: np.ndarray) -> int:
    """How many rows, if the weights stay, must be good for the dense rule to lay out the first; 0: do not use it.

    It wants enough columns with a sample a block or more to make up for the rounding of the others; where there are no
    others, each row stands alone.
    """
    often = int((step_C >= ONE).sum())
    rare = int(np.count_nonzero(step_C)) - often
    return 1 if rare == 0 else _LOOK_AHEAD if often >= max(8, rare / 2) else 0


def dense_rows(quota_C: np.ndarray, step_C: np.ndarray, num_rows: int) -> tuple[np.ndarray, int]:
    """The next rows, counts_SxC (int32), and how many of them, from the first, can be filled in this way.

    step_C: block_size × weights, the sum a whole number of samples. quota_C: of the first row, step_C and the credit
    from before. Of remainders 17 bits count; ties go by column.
    """
    rows, columns = np.arange(num_rows), len(step_C)
    # Remainders in units of 2^-64 sample: multiples of the step wrap by themselves.
    remainder = np.uint64(64 - SHIFT)
    grow_C = step_C.view(np.uint64) << remainder
    part_SxC = rows.astype(np.uint64)[:, None] * grow_C
    part_SxC += quota_C.view(np.uint64) << remainder
    passed_SxC = part_SxC < grow_C  # the quota passed a whole number in this row
    part_SxC >>= np.uint64(64 - _KEY_BITS)
    key_SxC = part_SxC.astype(np.uint32)
    # The quotas of a row sum to the block, so the remainders sum to the samples that their floors leave; cut to 17
    # bits, the sum of up to 2^15 of them falls short by less than a quarter.
    extra_S = (np.einsum("sc->s", key_SxC).astype(np.int64) + _KEY_ONE - 1) >> _KEY_BITS
    rare_C = step_C < ONE
    up_SxC = None
    if rare_C.any():
        up_SxC = _rare_up(quota_C, key_SxC, extra_S, passed_SxC, rare_C, np.count_nonzero(step_C))
        extra_S = extra_S - up_SxC.sum(axis=1, dtype=np.int32)
    key_SxC <<= np.uint32(32 - _KEY_BITS)
    key_SxC |= np.arange(columns - 1, -1, -1, dtype=np.uint32)
    if up_SxC is not None:
        key_SxC &= np.where(rare_C, np.uint32(0), np.uint32(0xFFFFFFFF))
    sorted_SxC = np.sort(key_SxC, axis=1)
    least_S = sorted_SxC[rows, np.clip(columns - extra_S, 0, columns - 1)]
    good_S = (extra_S >= 0) & (extra_S <= columns) & ((least_S >> np.uint32(32 - _KEY_BITS) > 0) | (extra_S == 0))
    least_S[extra_S <= 0] = 0xFFFFFFFF  # above all keys
    chosen_SxC = key_SxC >= least_S[:, None]
    if up_SxC is not None:
        chosen_SxC |= up_SxC
    rounded_SxC = passed_SxC.view(np.int8)
    rounded_SxC += chosen_SxC.view(np.int8)
    rounded_SxC[1:] -= chosen_SxC[:-1].view(np.int8)
    counts_SxC = (step_C >> SHIFT).astype(np.int32) + rounded_SxC
    counts_SxC[0] = (quota_C >> SHIFT) + chosen_SxC[0]
    return counts_SxC, num_rows if good_S.all() else int(np.argmin(good_S))


def _rare_up(quota_C, key_SxC, extra_S, passed_SxC, rare_C, moving: int) -> np.ndarray:
    """Which rare columns are above the floor of their quota in each row: once up, until the quota has passed.

    Rounding all columns at the threshold of a row would just about fill it.
    """
    threshold_S = np.full(len(key_SxC), _KEY_ONE // 2)
    for _ in range(_SEARCHES):
        up_SxC = key_SxC >= threshold_S.astype(np.uint32)[:, None]
        too_many_S = np.einsum("sc->s", up_SxC.view(np.uint8), dtype=np.int32) - extra_S
        threshold_S += (too_many_S << _KEY_BITS) // moving  # as if the remainders were spread evenly
        np.clip(threshold_S, _KEY_ONE // 4, 3 * _KEY_ONE // 4, out=threshold_S)
    up_SxC = key_SxC >= threshold_S.astype(np.uint32)[:, None]
    up_SxC &= rare_C
    up_SxC[0] |= quota_C < 0  # laid out before
    before_C = up_SxC[0]
    for up_C, passed_C in zip(up_SxC[1:], passed_SxC[1:], strict=True):
        up_C |= before_C > passed_C
        before_C = up_C
    return up_SxC
