"""Weights that no law decides: the prior, or declared stages.

Legend: K domains.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.errors import UserError
from ado_megatron.files import read_text
from ado_megatron.policy.context import PolicyContext, as_context
from ado_megatron.policy.options import PolicyOptions
from ado_megatron.policy.state import PolicyState, normalised, state_at
from ado_megatron.scaling_law.laws import Laws


class StaticPolicy:
    """The prior, always."""

    def __init__(self, config: PolicyOptions, context: PolicyContext | ArrayLike):
        """config: nothing of it counts. context: or a prior alone."""
        self.prior_K = as_context(context).prior_K

    def initial_state(self) -> PolicyState:
        """Before the first block."""
        return state_at(self.prior_K, self.prior_K)

    def spans(self, first: int, stop: int) -> list[tuple[np.ndarray, int]]:
        """As of AdoPolicy."""
        return [(self.prior_K, stop - first)]

    def constant_until(self, state: PolicyState, laws: Laws | None, stop: int) -> int:
        """As of AdoPolicy: to the end, but a state that another policy saved has other weights for one block."""
        return stop if np.array_equal(state.weights_K, self.prior_K) else min(state.step + 1, stop)

    def at_block(self, state: PolicyState) -> PolicyState:
        """A state, of whatever origin, with the weights of its block."""
        return state.at_weights(self.prior_K)

    def step(self, state: PolicyState, laws: Laws | None, counts_K: ArrayLike) -> PolicyState:
        """As of AdoPolicy."""
        return state.after(counts_K).at_weights(self.prior_K)

    def step_constant(self, state: PolicyState, laws: Laws | None, counts_SxK: np.ndarray) -> PolicyState:
        """`step` over several blocks before `constant_until`: the same state, bit for bit."""
        return state.after(counts_SxK.sum(axis=0), len(counts_SxK)).at_weights(self.prior_K)


class StagesPolicy:
    """Declared weights from declared blocks on; the prior before the first."""

    def __init__(self, config: PolicyOptions, context: PolicyContext | ArrayLike):
        """config: its `stages` is the file that declares them. Raises UserError for one that does not fit."""
        context = as_context(context)
        self.prior_K = context.prior_K
        if config.stages is None:
            raise UserError("policy=stages needs --ado-stages FILE with the declared stages")
        self.stages = read_stages(config.stages, context.num_domains, context.names_K)

    def _weights(self, block: int) -> np.ndarray:
        return next((w_K for first, w_K in reversed(self.stages) if block >= first), self.prior_K)

    def initial_state(self) -> PolicyState:
        """Before the first block."""
        return state_at(self._weights(0), self.prior_K)

    def spans(self, first: int, stop: int) -> list[tuple[np.ndarray, int]]:
        """As of AdoPolicy; here all is known."""
        begins = [first, *(block for block, _ in self.stages if first < block < stop), stop]
        return [(self._weights(begin), end - begin) for begin, end in itertools.pairwise(begins)]

    def constant_until(self, state: PolicyState, laws: Laws | None, stop: int) -> int:
        """As of AdoPolicy: to the next declared block."""
        return min([block for block, _ in self.stages if block > state.step] + [stop])

    def at_block(self, state: PolicyState) -> PolicyState:
        """A state, of whatever origin, with the weights that are declared for its block."""
        return state.at_weights(self._weights(state.step))

    def step(self, state: PolicyState, laws: Laws | None, counts_K: ArrayLike) -> PolicyState:
        """As of AdoPolicy."""
        return self.at_block(state.after(counts_K))

    def step_constant(self, state: PolicyState, laws: Laws | None, counts_SxK: np.ndarray) -> PolicyState:
        """`step` over several blocks before `constant_until`: the same state, bit for bit."""
        return self.at_block(state.after(counts_SxK.sum(axis=0), len(counts_SxK)))


def read_stages(path: str, num_domains: int, names_K: Sequence[str] | None = None) -> list[tuple[int, np.ndarray]]:
    """Stages of a JSON file: [{"block": 0, "weights": {"wiki": 1, "code": 3}}, {"block": 500, "weights": [2, 1]}].

    A domain that a mapping leaves out gets weight 0. Raises UserError when the file does not say that.
    """
    text = read_text(path, f"cannot read stages from {path}")
    try:
        stages = [(int(entry["block"]), entry["weights"]) for entry in json.loads(text)]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        form = '[{"block": 0, "weights": …}, …]'
        raise UserError(f"cannot read stages from {path}: {error}; expected {form}") from None
    blocks = [block for block, _ in stages]
    if not stages or blocks != sorted(set(blocks)) or blocks[0] < 0:
        raise UserError(f"stages in {path}: blocks must be ascending and not negative, got {blocks}")
    return [(block, _stage_weights(weights, num_domains, names_K, f"block {block} of {path}"))
            for block, weights in stages]


def _stage_weights(weights: Any, num_domains: int, names_K: Sequence[str] | None, where: str) -> np.ndarray:
    if isinstance(weights, dict):
        names_K = names_K or ()
        unknown = sorted(set(weights) - set(names_K))
        if unknown:
            raise UserError(f"stages, {where}: unknown domain {unknown[0]}; the domains are {list(names_K)}")
        weights = [weights.get(name, 0.0) for name in names_K]
    try:
        weights_K = np.asarray(weights, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"stages, {where}: weights must be numbers, got {weights!r}") from None
    if weights_K.shape != (num_domains,):
        raise UserError(f"stages, {where}: {weights_K.size} weights for {num_domains} domains")
    return normalised(weights_K, f"stages, {where}")
