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

    The policy has not yet stepped over the row before (last_K, its samples by domain): that step makes the weights of
    `block`, so it is taken under the laws of `block`. Where no row is before (None, as in a new run) `state` has these
    weights. held_K: the weights that an operator has stopped at; None: none.
    """

    block: int
    state: PolicyState
    last_K: np.ndarray | None
    credit_C: np.ndarray
    laid_out_C: np.ndarray
    laws: Laws | None
    held_K: np.ndarray | None = None

    @classmethod
    def new(cls, state: PolicyState, laid_out_C: np.ndarray, laws: Laws | None = None) -> PlanPoint:
        """Where a run begins at block state.step, after laid_out_C samples of each dataset, with nobody owed any."""
        return cls(state.step, state, None, np.zeros(len(laid_out_C)), laid_out_C, laws)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Every field as an array, for a checkpoint."""
        none_K = np.full_like(self.state.samples_K, -1)  # what the file says for None
        arrays = {"block": np.int64(self.block), "last_K": none_K if self.last_K is None else self.last_K}
        arrays |= {"credit_C": self.credit_C, "laid_out_C": self.laid_out_C}
        arrays |= nest("state.", self.state.to_arrays())
        if self.held_K is not None:
            arrays["held_K"] = self.held_K
        if self.laws is not None:
            arrays |= nest("laws.", self.laws.to_arrays())
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], transfer: float) -> PlanPoint:
        """transfer: that of laws that were saved before laws had one."""
        state, laws = unnest("state.", arrays), unnest("laws.", arrays)
        last_K = None if (arrays["last_K"] < 0).any() else arrays["last_K"].copy()
        return cls(
            int(arrays["block"]), PolicyState.from_arrays(state), last_K, arrays["credit_C"].copy(),
            arrays["laid_out_C"].copy(), Laws.from_arrays(laws, transfer) if laws else None, arrays.get("held_K"),
        )  # fmt: skip
