"""What a policy carries from block to block, and weights in their normal form.

Legend: K domains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.errors import UserError
from ado_megatron.npz import nest, unnest

_EXTRA = "extra."  # prefix of the arrays that a policy of the user's own carries


@dataclass(frozen=True)
class PolicyState:
    """All that a policy carries from block to block. Weights are those in force for block number `step`.

    base_K and anchor_K may be left out; they are then the weights.
    """

    step: int  # blocks laid out so far
    weights_K: np.ndarray  # π
    average_K: np.ndarray  # π̄
    credit_K: np.ndarray  # h
    samples_K: np.ndarray  # int64, samples laid out of each domain
    base_K: np.ndarray = None  # type: ignore[assignment]  # π without its probe (probe.py)
    anchor_K: np.ndarray = None  # type: ignore[assignment]  # π when the present laws came into force
    solved_for: int = 0  # which laws and options the weights were decided for (63 bits of a digest); 0: none
    note: str = ""  # what the policy has to say; a caller logs it when it changes
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)  # for policies of the user's own

    def __post_init__(self) -> None:
        if self.base_K is None:
            object.__setattr__(self, "base_K", self.weights_K)
        if self.anchor_K is None:
            object.__setattr__(self, "anchor_K", self.weights_K)

    def after(self, counts_K: ArrayLike, blocks: int = 1) -> PolicyState:
        """The state `blocks` later, in which counts_K samples were laid out, at the weights without probe."""
        samples_K = self.samples_K + np.asarray(counts_K, np.int64)
        return dataclasses.replace(self, step=self.step + blocks, samples_K=samples_K, weights_K=self.base_K)

    def at_weights(self, weights_K: np.ndarray) -> PolicyState:
        """The same state with other weights, without probe."""
        return dataclasses.replace(self, weights_K=weights_K, base_K=weights_K)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Every field as an array, for a checkpoint."""
        names = [spec.name for spec in dataclasses.fields(self) if spec.name != "extra"]
        arrays = {name: np.asarray(getattr(self, name)) for name in names}
        return arrays | nest(_EXTRA, self.extra)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> PolicyState:
        """The inverse of to_arrays. States that were saved before there were plans lack the newer fields."""
        names = {spec.name for spec in dataclasses.fields(cls)}
        values: dict = {name: np.array(value) for name, value in arrays.items() if name in names}
        values["step"] = int(values["step"])
        values["solved_for"] = int(values.get("solved_for", 0))
        values["note"] = str(values.get("note", ""))
        extra = {name: np.array(value) for name, value in unnest(_EXTRA, arrays).items()}
        return cls(**values, extra=extra)


def state_at(weights_K: np.ndarray, prior_K: np.ndarray) -> PolicyState:
    """The state before the first block, with `weights_K` in force."""
    return PolicyState(0, weights_K, prior_K, prior_K, np.zeros(len(prior_K), np.int64))


def normalised(weights_K: ArrayLike, what: str = "prior") -> np.ndarray:
    """Weights that sum to 1, float64. UserError, saying `what`, if they are negative, not finite or all zero."""
    weights_K = np.asarray(weights_K, np.float64)
    total = weights_K.sum() if weights_K.ndim == 1 and weights_K.size else 0.0
    if not np.isfinite(weights_K).all() or (weights_K < 0).any() or not (0 < total < np.inf):
        raise UserError(f"{what}: weights must be finite, not negative and not all zero, got {weights_K}")
    return weights_K / total
