"""What alarms remember from one refit to the next; a sidecar keeps it.

Legend: A kinds of alarms, K domains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ado_megatron.alarms.losses import Reference
from ado_megatron.npz import nest, unnest
from ado_megatron.scaling_law.laws import Laws

KINDS = ("above_law", "worse", "runs_out", "draws", "fits")
# What a domain has that was never seen, by field.
_NEW: dict[str, float] = {
    "best_K": np.inf, "best_error_K": 0.0, "best_step_K": 0, "above_K": 0, "worse_K": 0, "rejected_K": 0,
    "per_sample_K": np.nan,
}  # fmt: skip


@dataclasses.dataclass(eq=False)
class Memory:
    """since: step of the last refit. failed: fits that failed in a row. best_K: lowest log loss of a window so far, its
    error, and its step. above_K, worse_K, rejected_K: refits in a row. per_sample_K: tokens of a sample, as they were.
    standing_AxK1: what was bad at the last refit; the last column is of all domains. reference: laws to hold against.
    """

    since: int
    failed: int
    best_K: np.ndarray
    best_error_K: np.ndarray
    best_step_K: np.ndarray
    above_K: np.ndarray
    worse_K: np.ndarray
    rejected_K: np.ndarray
    per_sample_K: np.ndarray
    standing_AxK1: np.ndarray
    reference: Reference | None = None

    @classmethod
    def new(cls, num_domains: int) -> Memory:
        """Before the first refit."""
        values: dict[str, Any] = {name: np.full(num_domains, value) for name, value in _NEW.items()}
        return cls(0, 0, **values, standing_AxK1=np.zeros((len(KINDS), num_domains + 1), bool))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """For a sidecar."""
        arrays = {name: np.asarray(getattr(self, name)) for name in ("since", "failed", *_NEW, "standing_AxK1")}
        if self.reference is not None:
            arrays |= {"n_K": self.reference.n_K, "total_K": self.reference.total_K}
            arrays |= nest("laws.", self.reference.laws.to_arrays())
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], old_K: np.ndarray) -> Memory:
        """The inverse, for a run whose domain k is the saved domain old_K[k] (-1: none, it begins anew)."""
        known_K = old_K >= 0
        values: dict[str, Any] = {
            name: np.where(known_K, arrays[name][old_K], new).astype(arrays[name].dtype) for name, new in _NEW.items()
        }
        standing_AxK = arrays["standing_AxK1"][:, :-1][:, old_K] & known_K
        memory = cls(int(arrays["since"]), int(arrays["failed"]), **values,
                     standing_AxK1=np.column_stack([standing_AxK, arrays["standing_AxK1"][:, -1]]))  # fmt: skip
        laws_arrays = unnest("laws.", dict(arrays))
        if laws_arrays:
            laws = Laws.from_arrays({name: value[old_K] for name, value in laws_arrays.items()})
            laws = dataclasses.replace(laws, ok_K=laws.ok_K & known_K)
            memory.reference = Reference(laws, arrays["n_K"][old_K], arrays["total_K"][old_K])
        return memory
