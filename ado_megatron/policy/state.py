"""What a policy carries from block to block, and weights in their normal form.

Legend: K domains.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from ado_megatron.errors import UserError


@dataclass(frozen=True)
class PolicyState:
    """All that a policy carries from block to block. Weights are those in force for block number `step`."""

    step: int  # blocks laid out so far
    weights_K: np.ndarray  # pi
    average_K: np.ndarray  # pi_bar
    credit_K: np.ndarray  # h
    samples_K: np.ndarray  # int64, samples laid out of each domain

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Every field as an array, for a checkpoint."""
        return {spec.name: np.asarray(getattr(self, spec.name)) for spec in dataclasses.fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> PolicyState:
        """The inverse of to_arrays."""
        values = {spec.name: np.array(arrays[spec.name]) for spec in dataclasses.fields(cls)}
        return cls(**(values | {"step": int(values["step"])}))


def state_at(weights_K, prior_K) -> PolicyState:
    """The state before the first block, with `weights_K` in force."""
    return PolicyState(0, weights_K, prior_K, prior_K, np.zeros(len(prior_K), np.int64))


def normalised(weights_K, what="prior"):
    weights_K = np.asarray(weights_K, np.float64)
    total = weights_K.sum() if weights_K.ndim == 1 and weights_K.size else 0.0
    if not np.isfinite(weights_K).all() or (weights_K < 0).any() or not (0 < total < np.inf):
        raise UserError(f"{what}: weights must be finite, not negative and not all zero, got {weights_K}")
    return weights_K / total
