"""Rows one after another: many at once while the weights stay, compiled where they move and numba is there.

    layout = RowLayout(num_datasets, credit_C, kernels)
    counts_C = layout.next_row(weights_C, block_size, remaining_C, domain_of_C)
    counts_SxC = layout.next_rows(10, weights_C, block_size, remaining_C, domain_of_C)

do what `apportion` does, but keep the credit as integers and works in scratch arrays. numba is optional (`pip
install ado-megatron[fast]`); without it, or where it fails, apportion.py lays every row out: slower, with the same
integers.

Legend: C datasets, H blocks ahead.
"""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.stream.apportion import blocks_ahead, constant_stretch, grid_credit, take_by_deadline, take_row
from ado_megatron.stream.quota import ONE, find_steps, samples_left

_EXACT = float(1 << 52)  # sums of whole numbers up to here are exact in float64, in any order
_MOST_AHEAD = 128
_ROWS_ALONE = 16  # rows laid out one by one after the rule for many at once did not apply


@functools.cache
def kernels() -> types.ModuleType | None:
    """row_kernel.py, compiled; None where numba is missing or cannot compile it. Says so once.

    The first call takes seconds where numba's cache on disk is empty, and a fraction of a second otherwise: make it
    where no training waits.
    """
    log = logging.getLogger(__name__)
    try:
        return _load()
    except ImportError as error:
        log.info("numba is not installed (%s), so rows are laid out by numpy, more slowly", error)
    except Exception as error:  # a numba that does not fit this Python or numpy, a cache that cannot be written, ...
        log.warning("numba cannot compile the row kernel (%s), so rows are laid out by numpy, more slowly", error)
    return None


def _load() -> types.ModuleType:
    """Import the kernel and run every function of it, which compiles them or loads them from numba's cache."""
    from ado_megatron.stream import row_kernel

    layout = RowLayout(3, np.zeros(3), lambda: row_kernel)
    for weights_C in ([1.0, 2.0, 1.0], [1.0, 1e-3, 0.0], [1e-3, 0.5, 1e-3]):
        layout.next_row(np.array(weights_C), 4, np.array([90, 90, 90]))
    return row_kernel


class RowLayout:
    """The rows of one stretch, and what each dataset is owed after the last one.

    credit_C: samples, as `apportion` returned them. load: what gives the kernel when the first row needs it (rows that
    are laid out many at a time do not); None: numpy alone.
    """

    def __init__(
        self, num_datasets: int, credit_C: ArrayLike, load: Callable[[], types.ModuleType | None] | None = None
    ):
        self._load = load
        self._credit_C = grid_credit(credit_C)
        self._counts_C = np.zeros(num_datasets, dtype=np.int64)
        self._work_6xC = np.zeros((6, num_datasets), dtype=np.int64)
        self._bucket_B = np.zeros(256, dtype=np.int64)
        self._sum_H = np.zeros(_MOST_AHEAD)

    @property
    def credit_C(self) -> np.ndarray:
        """What each dataset is owed, samples: for `apportion` or another RowLayout."""
        return self._credit_C / ONE

    def next_row(
        self, weights_C: np.ndarray, block_size: int, remaining_C: np.ndarray | None = None,
        domain_of_C: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """counts_C (int64, valid until the next call) of the next block. Arguments and exceptions as of `apportion`."""
        kernel = None if self._load is None else self._load()
        if kernel is None or not self._by_kernel(kernel, weights_C, block_size, remaining_C):
            steps = find_steps(weights_C, block_size, self._credit_C, remaining_C, domain_of_C)
            self._counts_C, self._credit_C = take_row(steps, block_size)
        return self._counts_C

    def next_rows(
        self, num_rows: int, weights_C: np.ndarray, block_size: int, remaining_C: np.ndarray | None = None,
        domain_of_C: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        """counts_SxC (int32) of the next blocks, all of the same weights. remaining_C: before the first of them."""
        counts_SxC = np.empty((num_rows, len(weights_C)), dtype=np.int32)
        remaining_C = None if remaining_C is None else np.array(remaining_C, dtype=np.int64)
        row = alone = 0
        while row < num_rows:
            done = 0
            if alone == 0:
                done, self._credit_C = constant_stretch(
                    weights_C, block_size, counts_SxC[row:], self._credit_C, remaining_C, domain_of_C
                )
            if not done:
                counts_SxC[row] = self.next_row(weights_C, block_size, remaining_C, domain_of_C)
                done, alone = 1, _ROWS_ALONE - 1 if alone == 0 else alone - 1
            if remaining_C is not None:
                remaining_C -= counts_SxC[row : row + done].sum(axis=0, dtype=np.int64)
            row += done
        return counts_SxC

    def _by_kernel(
        self, kernel: Any, weights_C: np.ndarray, block_size: int, remaining_C: np.ndarray | None
    ) -> bool:  # fmt: skip
        """Whether the row could be laid out by the kernel, or by the one rule that it leaves to numpy."""
        total = np.add.reduce(weights_C)
        if not 0 < total < np.inf or weights_C[weights_C.argmin()] < 0:
            return False
        counts_C, work_6xC = self._counts_C, self._work_6xC
        left_C = work_6xC[5] if remaining_C is None else samples_left(remaining_C)
        state = kernel.lay_out_row(
            weights_C, total, block_size, self._credit_C, left_C, remaining_C is not None, counts_C, work_6xC,
            self._bucket_B,
        )  # fmt: skip
        if state != kernel.CHECK:
            return state == kernel.DONE
        if (reach := kernel.reach_of(counts_C, work_6xC)):
            if not reach * block_size < _EXACT:
                return False
            later_H = blocks_ahead(reach)
            if not kernel.is_safe(counts_C, work_6xC, block_size, later_H, self._sum_H[: len(later_H)]):
                counts_C[:] = take_by_deadline(work_6xC[1], work_6xC[0], block_size)
        kernel.credit_after(counts_C, work_6xC, self._credit_C)
        return True


def apportion_rows(
    weights: ArrayLike, block_size: int, num_rows: int, credit_C: ArrayLike, remaining_C: ArrayLike | None = None,
    domain_of_C: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """`apportion`, row after row, by numpy alone: counts_SxC (int32) and the credit after the last row.

    weights: one weights_C for all `num_rows` rows (laid out many at a time while no cap is near), or weights_SxC. The
    other arguments and the exceptions are those of `apportion`; remaining_C is before the first row.
    """
    weights = np.asarray(weights, dtype=np.float64)
    layout = RowLayout(weights.shape[-1], credit_C)
    left_C = None if remaining_C is None else np.array(remaining_C, dtype=np.int64)
    if weights.ndim == 1:
        counts_SxC = layout.next_rows(num_rows, weights, block_size, left_C, domain_of_C)
        return counts_SxC, layout.credit_C
    counts_SxC = np.empty((num_rows, weights.shape[1]), dtype=np.int32)
    for row, weights_C in enumerate(weights[:num_rows]):
        counts_SxC[row] = layout.next_row(weights_C, block_size, left_C, domain_of_C)
        if left_C is not None:
            left_C -= counts_SxC[row]
    return counts_SxC, layout.credit_C
