"""ADO's policy: from laws to weights, one step at a time, as a pure function of state, laws and counts.

Source: Jiang, Zhou, Feng, Malladi, Kolter, "Adaptive Data Optimization" (arXiv 2410.11820); equation numbers are those
of ALGORITHM.md. Given the laws and the counts of each block the weights are a deterministic recursion, so a whole
interval of blocks can be planned ahead.

Legend: K domains. mu prior, h credit, rho preference, pi policy (weights), pi_bar its time average.
"""

from __future__ import annotations

import numpy as np

from ado_megatron.policy.options import PolicyOptions
from ado_megatron.policy.simplex import project, project_proportional, rescale_and_clip
from ado_megatron.policy.state import PolicyState, normalised, state_at


class AdoPolicy:
    """Weights from scaling laws (equations 2 to 6)."""

    def __init__(self, config: PolicyOptions, prior_K):
        self.config = config.resolved()
        self.prior_K = normalised(prior_K)
        self.lower_K, self.upper_K = share_bounds(self.config, self.prior_K)

    def initial_state(self) -> PolicyState:
        """Before the first block: everything starts at the prior."""
        return state_at(self._warm_up_weights(), self.prior_K)

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


def share_bounds(config: PolicyOptions, prior_K) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest share of each domain: δ_K = min(δ, c/K), never above 1/K; 0 where the prior is 0."""
    num_domains = len(prior_K)
    delta = min(config.min_share, 1.0 / num_domains)
    if config.min_share_factor > 0:
        delta = min(delta, config.min_share_factor / num_domains)
    lower_K = np.where(np.asarray(prior_K) > 0, delta, 0.0)
    return lower_K, np.full(num_domains, max(config.max_share, 1.0 / num_domains))
