"""A policy of the user's own, kept from doing harm: whatever it does, the weights stay a distribution.

Legend: K domains.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.errors import UserError
from ado_megatron.policy.context import PolicyContext
from ado_megatron.policy.state import PolicyState, state_at
from ado_megatron.scaling_law.laws import Laws

_SUM_ERROR = 1e-6  # more than this from 1, and weights are refused rather than normalised


class GuardedPolicy:
    """Hands every call on to `policy`; where it fails, the last good weights stay and the state's note says why.

    Steps and samples are counted here, so a policy that counts them wrongly changes nothing but its own weights.
    """

    def __init__(self, policy: Any, name: str, context: PolicyContext):
        self.policy, self.name, self.context = policy, name, context

    @classmethod
    def make(cls, factory: Any, name: str, config: Any, context: PolicyContext) -> GuardedPolicy:
        """The guarded policy that `factory` makes. Raises UserError when it cannot be made: nothing has begun yet."""
        try:
            return cls(factory(config, context), name, context)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"--ado-policy {name} cannot be made ({type(error).__name__}: {error}); it is called with "
                "(options, PolicyContext)"
            ) from error

    def initial_state(self) -> PolicyState:
        """The policy's own first state, or that of the prior."""
        start = state_at(self.context.prior_K, self.context.prior_K)
        try:
            return self._checked(self.policy.initial_state(), start, "initial_state")
        except Exception as error:
            return self._failed(start, error, "initial_state")

    def step(self, state: PolicyState, laws: Laws | None, counts_K: ArrayLike) -> PolicyState:
        """As of AdoPolicy."""
        last = state.after(counts_K)
        try:
            return self._checked(self.policy.step(state, laws, counts_K), last, "step")
        except Exception as error:
            return self._failed(last, error, "step")

    def spans(self, first: int, stop: int) -> list[tuple[np.ndarray, int]]:
        """What the policy knows of the weights to come; the prior where it has no such method, or one that fails."""
        prior = [(self.context.prior_K, stop - first)]
        try:
            spans = [(self._weights(weights_K), int(blocks)) for weights_K, blocks in self.policy.spans(first, stop)]
        except Exception:  # a forecast of supply decides no sample
            return prior
        return spans if sum(blocks for _, blocks in spans) == stop - first else prior

    def constant_until(self, state: PolicyState, laws: Laws | None, stop: int) -> int:
        """As of AdoPolicy: nothing is known beyond the next block."""
        return min(state.step + 1, stop)

    def _checked(self, state: Any, last: PolicyState, where: str) -> PolicyState:
        if not isinstance(state, PolicyState):
            raise TypeError(f"{where} returned a {type(state).__name__}, not a PolicyState")
        weights_K = self._weights(state.weights_K)
        arrays = {name: np.asarray(value) for name, value in state.extra.items()}
        if any(value.dtype.hasobject for value in arrays.values()):
            raise TypeError(f"{where} put something into `extra` that is not a plain array")
        state = dataclasses.replace(state, step=last.step, samples_K=last.samples_K, note=str(state.note), extra=arrays)
        for name in ("average_K", "credit_K", "anchor_K"):
            value = np.asarray(getattr(state, name))
            if value.shape != weights_K.shape or value.dtype.kind != "f":
                state = dataclasses.replace(state, **{name: getattr(last, name)})
        return state.at_weights(weights_K)

    def _weights(self, weights_K: Any) -> np.ndarray:
        weights_K = np.asarray(weights_K, np.float64)
        if weights_K.shape != self.context.prior_K.shape:
            raise ValueError(f"weights have shape {weights_K.shape}, not {self.context.prior_K.shape}")
        if not np.isfinite(weights_K).all() or (weights_K < 0).any() or abs(weights_K.sum() - 1) > _SUM_ERROR:
            raise ValueError("weights are not a distribution (finite, not negative, sum 1)")
        return weights_K / weights_K.sum()

    def _failed(self, last: PolicyState, error: Exception, where: str) -> PolicyState:
        reason = " ".join(f"{type(error).__name__} in {where}: {error}".split())
        return dataclasses.replace(last, note=f"policy {self.name} failed, its last good weights stay ({reason})")
