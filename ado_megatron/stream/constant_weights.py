"""Many rows at once at constant weights, where enough datasets get a sample a block or more.

These "often" datasets are free at every block; a rare dataset, of less than a sample a block, cannot give back a sample
that it took early. So a rare dataset goes up when its remainder is among those largest of all datasets that would fill
the block, and stays up until its quota has passed; the largest remainders of the often datasets fill the rest. A row
depends on those before it only through its quotas, so rows laid out one by one are the same.

Legend: C datasets, S rows. Quotas are integers in units of 2^-40 sample.
"""

import numpy as np

SHIFT = 40
ONE = 1 << SHIFT  # a sample
_LOOK_AHEAD = 16
_KEY_BITS = 17  # of a remainder, above 15 bits of the dataset's number
_KEY_ONE = 1 << _KEY_BITS


def rows_ahead(step_C: np.ndarray) -> int:
    """How many rows, if the weights stay, must be good for this rule to lay out the first; 0: do not use it.

    It wants enough datasets with a sample a block or more to make up for the rounding of the others; where there are no
    others, each row stands alone.
    """
    often = int((step_C >= ONE).sum())
    rare = int(np.count_nonzero(step_C)) - often
    return 1 if rare == 0 else _LOOK_AHEAD if often >= max(8, rare / 2) else 0


def constant_rows(quota_C: np.ndarray, step_C: np.ndarray, num_rows: int) -> tuple[np.ndarray, int]:
    """The next rows, counts_SxC (int32), and how many of them, from the first, can be filled in this way.

    step_C: block_size × weights, the sum a whole number of samples. quota_C: of the first row, step_C and the credit
    from before. Of remainders 17 bits count; ties go by dataset.
    """
    num_datasets = len(step_C)
    # Remainders in units of 2^-64 sample: multiples of the step wrap by themselves.
    remainder = np.uint64(64 - SHIFT)
    grow_C = step_C.view(np.uint64) << remainder
    part_SxC = np.arange(num_rows, dtype=np.uint64)[:, None] * grow_C
    part_SxC += quota_C.view(np.uint64) << remainder
    passed_SxC = part_SxC < grow_C  # the quota passed a whole number in this row
    part_SxC >>= np.uint64(64 - _KEY_BITS)
    key_SxC = part_SxC.astype(np.uint32)
    # The quotas of a row sum to the block, so the remainders sum to the samples that their floors leave; cut to 17
    # bits, the sum of up to 2^15 of them falls short by less than a quarter.
    extra_S = (np.einsum("sc->s", key_SxC).astype(np.int64) + _KEY_ONE - 1) >> _KEY_BITS
    key_SxC <<= np.uint32(32 - _KEY_BITS)
    key_SxC |= np.arange(num_datasets - 1, -1, -1, dtype=np.uint32)
    chosen_SxC, least_S = _largest(key_SxC, extra_S)
    rare_C = step_C < ONE
    if rare_C.any():
        up_SxC = _stays_up(chosen_SxC & rare_C, quota_C < 0, passed_SxC)
        extra_S = extra_S - up_SxC.sum(axis=1, dtype=np.int32)
        key_SxC &= np.where(rare_C, np.uint32(0), np.uint32(0xFFFFFFFF))
        chosen_SxC, least_S = _largest(key_SxC, extra_S)
        chosen_SxC |= up_SxC
    good_S = (extra_S >= 0) & (extra_S <= num_datasets) & (least_S >> np.uint32(32 - _KEY_BITS) > 0)
    rounded_SxC = passed_SxC.view(np.int8)
    rounded_SxC += chosen_SxC.view(np.int8)
    rounded_SxC[1:] -= chosen_SxC[:-1].view(np.int8)
    counts_SxC = (step_C >> SHIFT).astype(np.int32) + rounded_SxC
    counts_SxC[0] = (quota_C >> SHIFT) + chosen_SxC[0]
    return counts_SxC, num_rows if good_S.all() else int(np.argmin(good_S))


def _largest(key_SxC: np.ndarray, extra_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which keys are among the `extra` largest of their row, and the least of those (above all keys if extra is 0)."""
    rows, num_datasets = np.arange(len(key_SxC)), key_SxC.shape[1]
    least_S = np.sort(key_SxC, axis=1)[rows, np.clip(num_datasets - extra_S, 0, num_datasets - 1)]
    least_S[extra_S <= 0] = 0xFFFFFFFF
    return key_SxC >= least_S[:, None], least_S


def _stays_up(up_SxC: np.ndarray, laid_out_C: np.ndarray, passed_SxC: np.ndarray) -> np.ndarray:
    """Once up, or laid out before the first row, a dataset stays up until its quota has passed. Changes up_SxC."""
    before_C = laid_out_C > passed_SxC[0]
    for up_C, passed_C in zip(up_SxC, passed_SxC, strict=True):
        up_C |= before_C > passed_C
        before_C = up_C
    return up_SxC
