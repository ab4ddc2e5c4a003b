"""One row as plain loops: what numba compiles (row_layout.py). The rule is that of apportion.py and quota.py.

Rows that the common rules do not cover are refused, and laid out by apportion.py: a cap that binds, more due than the
block holds, extra samples that must go by deadline. So a row is the same integers with and without numba, and the
arithmetic is that of the numpy code, operation by operation: 64-bit integers, and single float64 products, quotients
and floors, which IEEE 754 rounds alike everywhere (no fused multiply-add, no reordering). No exp, no power and no sum
of fractions is taken here, because libraries differ in their last bit: the weights, their sum and the distances that
`is_safe` looks at come in as numpy made them.

Legend: C datasets, H blocks ahead, B buckets of a digit. Quotas are integers in units of 2^-40 sample.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

SHIFT = 40
ONE = 1 << SHIFT
MASK = ONE - 1
KEY_BITS = 17  # of a remainder count in the rule for constant weights (constant_weights.py)
DATASET_BITS = 15
DIGIT_BITS = 8
REFUSED, DONE, CHECK = 0, 1, 2  # CHECK: the row stands if `is_safe` says so


def compiled(function: Any) -> Any:
    """The function compiled at its first call, and kept on disk for the next process."""
    return njit(function, cache=True)


@compiled
def find_steps(weights_C, total, block_size, credit_C, left_C, capped, step_C, quota_C):
    """quota.find_steps where no cap binds: writes step_C and quota_C. Returns 1 (steady), 0 (not) or -1 (refused)."""
    num_datasets, kept, steady, supply = len(weights_C), 0, 1, 0
    for c in range(num_datasets):
        idle = weights_C[c] == 0.0
        if idle and credit_C[c] != 0:
            steady = 0
        quota_C[c] = 0 if idle else credit_C[c]
        kept += quota_C[c]
        if capped and not idle:
            supply += left_C[c]
            if quota_C[c] > left_C[c] << SHIFT:
                return -1
    if kept + num_datasets > block_size * ONE or (capped and supply < block_size):
        return -1
    rest, top, scale = block_size * ONE - kept, 0, 0.0
    scale = (rest / ONE) / total
    for c in range(num_datasets):
        quota = weights_C[c] * scale
        step = np.int64(np.rint(quota * ONE))
        if step == 0 and quota > 0:
            step = np.int64(1)
        if capped and quota > 0:
            bound = (left_C[c] << SHIFT) - quota_C[c]
            if quota > bound / ONE or step > bound:
                return -1
        step_C[c] = step
        rest -= step
        if step > step_C[top]:
            top = c
    step_C[top] += rest
    if capped and step_C[top] > (left_C[top] << SHIFT) - quota_C[top]:
        return -1
    for c in range(num_datasets):
        quota_C[c] += step_C[c]
    return steady


@compiled
def nth_largest(value_C, n, bits, bucket_B):
    """The n-th largest (n ≥ 1) of the values that are not negative, all below 2^bits; -1 if there are fewer.

    Digit by digit from the top: values are counted by their digit, which names the digit of the answer.
    """
    shift = -(-bits // DIGIT_BITS) * DIGIT_BITS
    prefix, count = np.int64(0), np.int64(0)
    while shift > 0:
        above, shift = shift, shift - DIGIT_BITS
        bucket_B[:] = 0
        for value in value_C:
            if value >= 0 and value >> above == prefix:
                bucket_B[(value >> shift) & (len(bucket_B) - 1)] += 1
        digit = len(bucket_B) - 1
        while digit >= 0 and bucket_B[digit] < n:
            n -= bucket_B[digit]
            digit -= 1
        if digit < 0:
            return np.int64(-1)
        prefix, count = prefix << DIGIT_BITS | digit, bucket_B[digit]
        if count == 1:
            break
    if shift > 0:
        for value in value_C:
            if value >= 0 and value >> shift == prefix:
                return value
    return prefix


@compiled
def rare_go_up(key_C, up_C, step_C, extra, value_C, bucket_B):
    """Mark in up_C (1) which rare datasets take one of the `extra` samples of a row, beside those that are still up:
    one whose remainder is among the `extra` largest of all. Returns what is left for the often ones.

    value_C: afterwards the keys of the often datasets, which differ in their lower bits; -1 for the others.
    """
    num_datasets = len(key_C)
    for c in range(num_datasets):
        value_C[c] = key_C[c] << DATASET_BITS | (num_datasets - 1 - c)
    least = nth_largest(value_C, extra, KEY_BITS + DATASET_BITS, bucket_B) if extra > 0 else np.int64(1 << 62)
    for c in range(num_datasets):
        if step_C[c] < ONE:
            if value_C[c] >= least:
                up_C[c] = 1
            extra -= up_C[c]
            value_C[c] = -1
    return extra


@compiled
def can_take(value_C, extra):
    """Whether `extra` often datasets have a remainder: then the row can be filled, whoever of them goes up."""
    if extra <= 0:
        return extra == 0
    for value in value_C:
        if value >> DATASET_BITS > 0:
            extra -= 1
    return extra <= 0


@compiled
def rows_ahead(step_C):
    """constant_weights.rows_ahead."""
    often, rare = 0, 0
    for step in step_C:
        if step >= ONE:
            often += 1
        elif step != 0:
            rare += 1
    if rare == 0:
        return 1
    return 16 if often >= max(8.0, rare / 2) else 0


@compiled
def constant_row(quota_C, step_C, counts_C, work_4xC, bucket_B):
    """The first of constant_weights.constant_rows into counts_C, if the rows that it looks ahead can be filled too."""
    num_datasets, ahead = len(step_C), rows_ahead(step_C)
    part_C, key_C, up_C, value_C = work_4xC[0], work_4xC[1], work_4xC[2], work_4xC[3]
    for c in range(num_datasets):
        part_C[c] = quota_C[c] & MASK
        up_C[c] = 1 if quota_C[c] < 0 else 0
    for row in range(ahead):
        extra = np.int64(0)
        for c in range(num_datasets):
            if part_C[c] < (step_C[c] & MASK):  # the quota passed a whole number in this row
                up_C[c] = 0
            key_C[c] = part_C[c] >> (SHIFT - KEY_BITS)
            extra += key_C[c]
        extra = (extra + (1 << KEY_BITS) - 1) >> KEY_BITS
        extra = rare_go_up(key_C, up_C, step_C, extra, value_C, bucket_B)
        if not can_take(value_C, extra):
            return False
        if row == 0:  # of the rows after it only this is asked, that they can be filled
            least = nth_largest(value_C, extra, KEY_BITS + DATASET_BITS, bucket_B) if extra > 0 else np.int64(1 << 62)
            for c in range(num_datasets):
                counts_C[c] = (quota_C[c] >> SHIFT) + (1 if value_C[c] >= least else up_C[c])
        for c in range(num_datasets):
            if step_C[c] >= ONE:
                up_C[c] = 0
            part_C[c] = (part_C[c] + step_C[c]) & MASK
    return ahead > 0


@compiled
def remainder_row(quota_C, step_C, block_size, counts_C, value_C, bucket_B):
    """apportion's rule of the largest remainder: REFUSED where a dataset would come too late, DONE where nothing is
    left to give, else CHECK."""
    extra, num_ahead = np.int64(block_size), 0
    for c in range(len(step_C)):
        counts_C[c] = quota_C[c] >> SHIFT
        extra -= counts_C[c]
        part = quota_C[c] & MASK
        value_C[c] = part if step_C[c] > 0 and part > 0 else -1
        if counts_C[c] < 0:
            num_ahead += 1
            value_C[c] = ONE  # before every remainder
    if num_ahead > extra:
        return REFUSED
    if extra == 0:
        return DONE
    least = nth_largest(value_C, extra, SHIFT + 1, bucket_B)
    if least < 0:
        return REFUSED
    for c in range(len(step_C)):
        if value_C[c] > least:
            counts_C[c] += 1
            extra -= 1
    for c in range(len(step_C)):  # those that tie, by their number
        if value_C[c] == least and extra > 0:
            counts_C[c] += 1
            extra -= 1
    return CHECK


@compiled
def credit_after(counts_C, work_6xC, credit_C):
    """Write what the row leaves owed, grid units."""
    for c in range(len(credit_C)):
        credit_C[c] = work_6xC[1, c] - (counts_C[c] << SHIFT)


@compiled
def lay_out_row(weights_C, total, block_size, credit_C, left_C, capped, counts_C, work_6xC, bucket_B):
    """The next row where the common rules cover it: REFUSED, DONE or CHECK. Writes counts_C and work_6xC, and credit_C
    of a row that is done.

    weights_C (float64) and total, their sum; credit_C: int64, grid units. left_C: samples left under caps, int64, read
    only if `capped`. work_6xC: int64 scratch; its first two rows are step_C and quota_C afterwards. bucket_B: 2^8.
    """
    step_C, quota_C = work_6xC[0], work_6xC[1]
    steady = find_steps(weights_C, total, block_size, credit_C, left_C, capped, step_C, quota_C)
    if steady < 0:
        return REFUSED
    if steady == 1 and constant_row(quota_C, step_C, counts_C, work_6xC[2:], bucket_B):
        state = DONE
    else:
        state = remainder_row(quota_C, step_C, block_size, counts_C, work_6xC[2], bucket_B)
    if state == DONE:
        credit_after(counts_C, work_6xC, credit_C)
    return state


@compiled
def reach_of(counts_C, work_6xC):
    """apportion.reach_of: in how many blocks the last dataset that is ahead has been caught up with; 0: none is."""
    step_C, quota_C, reach = work_6xC[0], work_6xC[1], 0.0
    for c in range(len(step_C)):
        gap = (counts_C[c] << SHIFT) - quota_C[c]
        if gap > 0 and step_C[c] > 0:
            reach = max(reach, gap / step_C[c])
    return reach


@compiled
def is_safe(counts_C, work_6xC, block_size, later_H, sum_H):
    """apportion.is_safe at the given distances. The sums are of whole numbers below 2^53, so their order is free."""
    step_C, quota_C = work_6xC[0], work_6xC[1]
    sum_H[:] = 0.0
    for c in range(len(step_C)):
        quota, step, count = np.float64(quota_C[c]), np.float64(step_C[c]), np.float64(counts_C[c])
        for h in range(len(later_H)):
            sum_H[h] += max(np.floor((quota + later_H[h] * step) * (1.0 / ONE)), count)
    for h in range(len(later_H)):
        if sum_H[h] > block_size * (1 + later_H[h]):
            return False
    return True
