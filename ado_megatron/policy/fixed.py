"""Weights that no law decides: the prior, or declared stages.

Legend: K domains.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib

import numpy as np

from ado_megatron.errors import UserError
from ado_megatron.policy.state import PolicyState, normalised, state_at


class StaticPolicy:
    """The prior, always."""

    def __init__(self, prior_K):
        self.prior_K = normalised(prior_K)

    def initial_state(self) -> PolicyState:
        return state_at(self.prior_K, self.prior_K)

    def spans(self, first: int, stop: int) -> list[tuple[np.ndarray, int]]:
        """As of AdoPolicy."""
        return [(self.prior_K, stop - first)]

    def step(self, state: PolicyState, laws, counts_K) -> PolicyState:
        samples_K = state.samples_K + np.asarray(counts_K, np.int64)
        return dataclasses.replace(state, step=state.step + 1, samples_K=samples_K, weights_K=self.prior_K)


class StagesPolicy:
    """Declared weights from declared blocks on; the prior before the first.

    stages: list of (first block, weights_K), in ascending order of the block.
    """

    def __init__(self, stages, prior_K):
        self.prior_K = normalised(prior_K)
        self.stages = [(int(block), normalised(weights_K)) for block, weights_K in stages]

    def _weights(self, block):
        return next((w_K for first, w_K in reversed(self.stages) if block >= first), self.prior_K)

    def initial_state(self) -> PolicyState:
        return state_at(self._weights(0), self.prior_K)

    def spans(self, first: int, stop: int) -> list[tuple[np.ndarray, int]]:
        """As of AdoPolicy; here all is known."""
        begins = [first, *(block for block, _ in self.stages if first < block < stop), stop]
        return [(self._weights(begin), end - begin) for begin, end in itertools.pairwise(begins)]

    def step(self, state: PolicyState, laws, counts_K) -> PolicyState:
        samples_K = state.samples_K + np.asarray(counts_K, np.int64)
        step = state.step + 1
        return dataclasses.replace(state, step=step, samples_K=samples_K, weights_K=self._weights(step))


def read_stages(path: str, num_domains: int, names_K=None) -> list[tuple[int, np.ndarray]]:
    """Stages of a JSON file: [{"block": 0, "weights": {"wiki": 1, "code": 3}}, {"block": 500, "weights": [2, 1]}].

    A domain that a mapping leaves out gets weight 0. Raises UserError when the file does not say that.
    """
    try:
        entries = json.loads(pathlib.Path(path).read_text())
        stages = [(int(entry["block"]), entry["weights"]) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError) as error:
        form = '[{"block": 0, "weights": …}, …]'
        raise UserError(f"cannot read stages from {path}: {error}; expected {form}") from None
    blocks = [block for block, _ in stages]
    if not stages or blocks != sorted(set(blocks)) or blocks[0] < 0:
        raise UserError(f"stages in {path}: blocks must be ascending and not negative, got {blocks}")
    return [(block, _stage_weights(weights, num_domains, names_K, f"block {block} of {path}"))
            for block, weights in stages]


def _stage_weights(weights, num_domains, names_K, where):
    if isinstance(weights, dict):
        unknown = sorted(set(weights) - set(names_K or ()))
        if unknown:
            raise UserError(f"stages, {where}: unknown domain {unknown[0]}; the domains are {list(names_K or ())}")
        weights = [weights.get(name, 0.0) for name in names_K]
    try:
        weights_K = np.asarray(weights, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"stages, {where}: weights must be numbers, got {weights!r}") from None
    if weights_K.shape != (num_domains,):
        raise UserError(f"stages, {where}: {weights_K.size} weights for {num_domains} domains")
    return normalised(weights_K, f"stages, {where}")
