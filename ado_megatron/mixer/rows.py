"""The rows of one call of the planner, laid out stretch by stretch.

Legend: K domains, C datasets (one per prefix), S rows.
"""

from __future__ import annotations

import numpy as np

from ado_megatron.blend.domains import Domains
from ado_megatron.mixer.plan_point import PlanPoint
from ado_megatron.stream.row_layout import RowLayout, kernels


class Rows:
    """The rows of one call of `plan`, and what they leave: counts_SxC (int32), credit_C, laid_out_C."""

    def __init__(
        self, domains: Domains, block_size: int, caps_C: np.ndarray | None, at: PlanPoint, num_rows: int
    ):  # fmt: skip
        num_datasets = len(domains.prefixes_C)
        self._domains, self._block_size, self._caps_C = domains, block_size, caps_C
        self._layout = RowLayout(num_datasets, at.credit_C, kernels)
        self._filled, self._grouped = 0, not np.array_equal(domains.domain_of_C, np.arange(len(domains.names_K)))
        self.counts_SxC = np.empty((num_rows, num_datasets), dtype=np.int32)
        self.laid_out_C = at.laid_out_C.copy()

    @property
    def credit_C(self) -> np.ndarray:
        """What each dataset is owed after the last row, samples."""
        return self._layout.credit_C

    def lay_out(self, num_rows: int, weights_K: np.ndarray) -> None:
        """Fill in the next rows, all of these weights."""
        weights_C = self._domains.weights_C(weights_K)
        remaining_C = None if self._caps_C is None else self._caps_C - self.laid_out_C
        kept_SxC = self.counts_SxC[self._filled : self._filled + num_rows]
        rest = (weights_C, self._block_size, remaining_C, self._domains.domain_of_C)
        if num_rows == 1:
            kept_SxC[0] = counts_C = self._layout.next_row(*rest)
            self.laid_out_C += counts_C
        else:
            kept_SxC[:] = self._layout.next_rows(num_rows, *rest)
            self.laid_out_C += kept_SxC.sum(axis=0, dtype=np.int64)
        self._filled += num_rows

    def by_domain(self, first: int, stop: int) -> np.ndarray:
        """counts_SxK (int64) of some of the rows."""
        counts_SxC = self.counts_SxC[first:stop]
        if not self._grouped:
            return counts_SxC.astype(np.int64)
        place_SxC = np.arange(len(counts_SxC))[:, None] * len(self._domains.names_K) + self._domains.domain_of_C
        size = len(counts_SxC) * len(self._domains.names_K)
        sum_N = np.bincount(place_SxC.ravel(), counts_SxC.ravel(), minlength=size)  # exact below 2^53
        return sum_N.astype(np.int64).reshape(len(counts_SxC), -1)
