"""All that decides the rows from a block on, as arrays and back.

Legend: K domains, C datasets (one per prefix).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ado_megatron.policy.state import PolicyState
from ado_megatron.scaling_law.laws import Laws


@dataclasses.dataclass(frozen=True)
class PlanPoint:
    """All that decides the rows from `block` on.

    The policy has not yet stepped over the row before (last_K, its samples by domain; -1 before the first row): that
    step makes the weights of `block`, so it is taken under the laws of `block`. held_K: the weights that an operator
    has stopped at; None: none.
    """

    block: int
    state: PolicyState
    last_K: np.ndarray
    credit_C: np.ndarray
    laid_out_C: np.ndarray
    laws: Laws | None
    held_K: np.ndarray | None = None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Every field as an array, for a checkpoint."""
        arrays = {"block": np.int64(self.block), "last_K": self.last_K}
        arrays |= {"credit_C": self.credit_C, "laid_out_C": self.laid_out_C}
        arrays |= {f"state.{name}": value for name, value in self.state.to_arrays().items()}
        if self.held_K is not None:
            arrays["held_K"] = self.held_K
        if self.laws is not None:
            arrays |= {f"laws.{name}": value for name, value in self.laws.to_arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], transfer: float) -> PlanPoint:
        """transfer: that of laws that were saved before laws had one."""
        state, laws = (under(prefix, arrays) for prefix in ("state.", "laws."))
        return cls(
            int(arrays["block"]), PolicyState.from_arrays(state), arrays["last_K"].copy(), arrays["credit_C"].copy(),
            arrays["laid_out_C"].copy(), Laws.from_arrays(laws, transfer) if laws else None, arrays.get("held_K"),
        )  # fmt: skip

    def for_other_data(self, first: PolicyState, old_C: np.ndarray, old_K: np.ndarray, transfer: float) -> PlanPoint:
        """This point for other data: known columns and laws keep what they had, the policy starts from `first`.

        old_C, old_K: the column and the domain of this point that each new one continues, or -1. transfer: that of the
        laws of the new ones.
        """
        samples_K = np.where(old_K >= 0, self.state.samples_K[old_K], 0)
        state = dataclasses.replace(first, step=self.state.step, samples_K=samples_K)
        laws, held_K = self.laws, self.held_K
        if laws is not None:
            params_Kx3 = np.where((old_K >= 0)[:, None], laws.params()[old_K], np.nan)
            laws = Laws.given(params_Kx3, np.where(old_K >= 0, laws.transfer_K[old_K], transfer))
        if held_K is not None:
            held_K = np.where(old_K >= 0, held_K[old_K], 0.0)
            held_K = held_K / held_K.sum() if held_K.any() else None
        laid_out_C = np.where(old_C >= 0, self.laid_out_C[old_C], 0)
        nothing_K = np.full(len(old_K), -1, dtype=np.int64)
        return PlanPoint(self.block, state, nothing_K, np.zeros(len(old_C)), laid_out_C, laws, held_K)


def under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}
