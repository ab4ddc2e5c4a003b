"""From laws to weights: the equations of ADO, one step at a time, as a pure function of state, laws and counts.

Source: Jiang, Zhou, Feng, Malladi, Kolter, "Adaptive Data Optimization" (arXiv 2410.11820); equation numbers are those
of ALGORITHM.md. Given the laws and the counts of each block the weights are a deterministic recursion, so a whole
interval of blocks can be planned ahead.

Legend: K domains. mu prior, h credit, rho preference, pi policy (weights), pi_bar its time average.

A policy has `initial_state()` and `step(state, laws, counts_K)`; another one (a bandit, another law) is a class with
these two methods in a file of its own, and one more line in `make_policy`.
"""

import dataclasses
import itertools
import json
import pathlib
from dataclasses import dataclass

import numpy as np

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.simplex import project, project_proportional, rescale_and_clip


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
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "PolicyState":
        """The inverse of to_arrays."""
        values = {spec.name: np.array(arrays[spec.name]) for spec in dataclasses.fields(cls)}
        return cls(**(values | {"step": int(values["step"])}))


class AdoPolicy:
    """Weights from scaling laws (equations 2 to 6)."""

    def __init__(self, config: AdoConfig, prior_K):
        self.config = config.resolved()
        self.prior_K = _normalised(prior_K)
        self.lower_K, self.upper_K = share_bounds(self.config, self.prior_K)

    def initial_state(self) -> PolicyState:
        """Before the first block: everything starts at the prior."""
        return _state_at(self._warm_up_weights(), self.prior_K)

    def _warm_up_weights(self):
        on_policy = self.config.clip_target in ("policy", "both")
        return self._clip(self.prior_K) if self.config.clip_prior and on_policy else self.prior_K

    def spans(self, first: int, stop: int) -> list[tuple[np.ndarray, int]]:
        """What is known of the weights of the blocks first … stop − 1: (weights_K, number of blocks), in order."""
        return [(self.prior_K, stop - first)]

    def step(self, state: PolicyState, laws, counts_K) -> PolicyState:
        """Advances over one block that was laid out with `counts_K` samples; `laws` are those in force after it.

        laws: Laws, or None while none is fitted. The new state's weights are for the next block.
        """
        config, t = self.config, state.step
        counts_K = np.asarray(counts_K, np.int64)
        samples_K = state.samples_K + counts_K
        credit_K = self._credit(state, counts_K)
        weights_K, average_K = self._warm_up_weights(), state.average_K
        if laws is not None and t >= config.start_step:
            rho_K = self.preference(laws, samples_K, credit_K)
            if config.clip_target in ("preference", "both"):
                rho_K = self._clip(rho_K)
            # (5)  π = γ2·ρ + (1−γ2)·π̄ ;  π̄ ← π̄ + (ρ − π̄)/(t+1)
            weights_K = config.preference_rate * rho_K + (1 - config.preference_rate) * state.average_K
            average_K = state.average_K + (rho_K - state.average_K) / (t + 1)
            if config.clip_target in ("policy", "both"):
                weights_K = self._clip(weights_K)
        return PolicyState(t + 1, weights_K, average_K, credit_K, samples_K)

    def _credit(self, state, counts_K):
        """(3)  h ← γ1·π + (1−γ1)·h, with π or with the shares that were realised."""
        share_K = state.weights_K
        if self.config.credit_source == "counts":
            if counts_K.sum() == 0:
                return state.credit_K
            share_K = counts_K / counts_K.sum()
        return self.config.credit_rate * share_K + (1 - self.config.credit_rate) * state.credit_K

    def preference(self, laws, samples_K, credit_K) -> np.ndarray:
        """(4)  ρ_k ∝ μ_k · h_k^s · (−dL_k/dn)^γ, normalised. A domain without a usable law keeps its prior share."""
        config = self.config
        n_K = samples_K if config.own_n else np.full(samples_K.shape, samples_K.sum())
        n_K = np.maximum(n_K, 1).astype(np.float64)
        log_speed_K = laws.log_speed(n_K, alpha_floor=config.alpha_floor)  # (2)
        if config.speed_unit == "log":
            log_speed_K = log_speed_K + np.log(n_K)
        known_K = ~np.isnan(log_speed_K) & (log_speed_K < np.inf)
        with np.errstate(divide="ignore"):  # log 0 = −inf is a share of zero
            score_K = np.log(self.prior_K)
            if config.credit_exponent > 0:
                score_K = score_K + config.credit_exponent * np.log(credit_K)
        score_K = np.where(known_K, score_K + config.speed_exponent * np.where(known_K, log_speed_K, 0.0), -np.inf)
        if not np.any(score_K > -np.inf):
            return self.prior_K
        share_K = np.exp(score_K - score_K.max())
        rest = 1.0 - self.prior_K[~known_K].sum()
        return np.where(known_K, share_K * (rest / share_K.sum()), self.prior_K)

    def _clip(self, p_K):
        """(6)  no domain under its least share."""
        if self.config.clip == "none":
            return p_K
        if self.config.clip == "rescale":
            return rescale_and_clip(p_K, self.config.min_share)
        operation = project if self.config.clip == "euclidean" else project_proportional
        return operation(p_K, self.lower_K, self.upper_K)


class StaticPolicy:
    """The prior, always."""

    def __init__(self, prior_K):
        self.prior_K = _normalised(prior_K)

    def initial_state(self) -> PolicyState:
        return _state_at(self.prior_K, self.prior_K)

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
        self.prior_K = _normalised(prior_K)
        self.stages = [(int(block), _normalised(weights_K)) for block, weights_K in stages]

    def _weights(self, block):
        return next((w_K for first, w_K in reversed(self.stages) if block >= first), self.prior_K)

    def initial_state(self) -> PolicyState:
        return _state_at(self._weights(0), self.prior_K)

    def spans(self, first: int, stop: int) -> list[tuple[np.ndarray, int]]:
        """As of AdoPolicy; here all is known."""
        begins = [first, *(block for block, _ in self.stages if first < block < stop), stop]
        return [(self._weights(begin), end - begin) for begin, end in itertools.pairwise(begins)]

    def step(self, state: PolicyState, laws, counts_K) -> PolicyState:
        samples_K = state.samples_K + np.asarray(counts_K, np.int64)
        step = state.step + 1
        return dataclasses.replace(state, step=step, samples_K=samples_K, weights_K=self._weights(step))


def make_policy(config: AdoConfig, prior_K, names_K=None):
    """The policy that the config names. `names_K` (domain names) is needed for stages that name their domains."""
    if config.policy == "static" or config.shadow:
        return StaticPolicy(prior_K)
    if config.policy == "stages":
        return StagesPolicy(read_stages(config.stages, len(prior_K), names_K), prior_K)
    return AdoPolicy(config, prior_K)


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
    return _normalised(weights_K, f"stages, {where}")


def share_bounds(config: AdoConfig, prior_K) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest share of each domain: δ_K = min(δ, c/K), never above 1/K; 0 where the prior is 0."""
    num_domains = len(prior_K)
    delta = min(config.min_share, 1.0 / num_domains)
    if config.min_share_factor > 0:
        delta = min(delta, config.min_share_factor / num_domains)
    lower_K = np.where(np.asarray(prior_K) > 0, delta, 0.0)
    return lower_K, np.full(num_domains, max(config.max_share, 1.0 / num_domains))


def _state_at(weights_K, prior_K):
    return PolicyState(0, weights_K, prior_K, prior_K, np.zeros(len(prior_K), np.int64))


def _normalised(weights_K, what="prior"):
    weights_K = np.asarray(weights_K, np.float64)
    total = weights_K.sum() if weights_K.ndim == 1 and weights_K.size else 0.0
    if not np.isfinite(weights_K).all() or (weights_K < 0).any() or not (0 < total < np.inf):
        raise UserError(f"{what}: weights must be finite, not negative and not all zero, got {weights_K}")
    return weights_K / total
