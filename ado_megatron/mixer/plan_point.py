"""All that decides the rows from a block on, as arrays and back.

Legend: K domains, C datasets (one per prefix).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ado_megatron.npz import nest, unnest
from ado_megatron.policy.state import PolicyState
from ado_megatron.scaling_law.laws import Laws


@dataclasses.dataclass(frozen=True)
class PlanPoint:
    """All that decides the rows from `block` on.

    The policy has not yet stepped over the row before (last_K, its samples by domain; -1 before the first row): that
    step makes the weights of `block`, so it is taken under the laws of `block`.
    """

    block: int
    state: PolicyState
    last_K: np.ndarray
    credit_C: np.ndarray
    laid_out_C: np.ndarray
    laws: Laws | None

    @classmethod
    def new(cls, state: PolicyState, laid_out_C: np.ndarray, laws: Laws | None = None) -> PlanPoint:
        """Where a run begins at block state.step, after laid_out_C samples of each dataset, with nobody owed any."""
        nothing_K, credit_C = np.full_like(state.samples_K, -1), np.zeros(len(laid_out_C))
        return cls(state.step, state, nothing_K, credit_C, laid_out_C, laws)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Every field as an array, for a checkpoint."""
        arrays = {"block": np.int64(self.block), "last_K": self.last_K}
        arrays |= {"credit_C": self.credit_C, "laid_out_C": self.laid_out_C}
        arrays |= nest("state.", self.state.to_arrays())
        if self.laws is not None:
            arrays |= nest("laws.", self.laws.to_arrays())
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], transfer: float) -> PlanPoint:
        """transfer: that of laws that were saved before laws had one."""
        state, laws = unnest("state.", arrays), unnest("laws.", arrays)
        return cls(
            int(arrays["block"]), PolicyState.from_arrays(state), arrays["last_K"].copy(), arrays["credit_C"].copy(),
            arrays["laid_out_C"].copy(), Laws.from_arrays(laws, transfer) if laws else None,
        )  # fmt: skip
