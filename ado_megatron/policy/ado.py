"""ADO's policy: from laws to weights, one step at a time, as a pure function of state, laws and counts.

Source: Jiang, Zhou, Feng, Malladi, Kolter, "Adaptive Data Optimization" (arXiv 2410.11820); equation numbers are those
of ALGORITHM.md. Given the laws and the counts of each block the weights are a deterministic recursion, so a whole
interval of blocks can be planned ahead.

Legend: K domains. mu prior, tau target, h credit, rho preference, pi policy (weights), pi_bar its time average.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.policy.bounds import share_bounds, within_change
from ado_megatron.policy.context import PolicyContext, as_context
from ado_megatron.policy.options import PolicyOptions
from ado_megatron.policy.simplex import project, project_proportional, rescale_and_clip
from ado_megatron.policy.state import PolicyState, state_at
from ado_megatron.scaling_law.laws import Laws


class AdoPolicy:
    """Weights from scaling laws (equations 2 to 6)."""

    def __init__(self, config: PolicyOptions, context: PolicyContext | ArrayLike):
        """config: need not be resolved. context: or a prior alone, which is then the target, too."""
        self.config, self.context = config.resolved(), as_context(context)
        self.prior_K = self.context.prior_K
        # What equation 4 weighs the speeds with: μ, unless the user has another target. A prior of 0 stays 0.
        self.goal_K = np.where(self.prior_K > 0, self.context.known_target_K, 0.0)
        self.lower_K, self.upper_K = share_bounds(self.config, self.prior_K)

    def initial_state(self) -> PolicyState:
        """Before the first block: everything starts at the prior."""
        return state_at(self._warm_up_weights(), self.prior_K)

    def _warm_up_weights(self) -> np.ndarray:
        on_policy = self.config.clip_target in ("policy", "both")
        return self._clip(self.prior_K) if self.config.clip_prior and on_policy else self.prior_K

    def spans(self, first: int, stop: int) -> list[tuple[np.ndarray, int]]:
        """What is known of the weights of the blocks first … stop − 1: (weights_K, number of blocks), in order."""
        return [(self.prior_K, stop - first)]

    def constant_until(self, state: PolicyState, laws: Laws | None, stop: int) -> int:
        """The first block ≤ stop whose weights may differ from those of block state.step, while `laws` stay."""
        if laws is not None and state.step >= self.config.start_step:
            return min(state.step + 1, stop)
        return stop if laws is None else min(self.config.start_step + 1, stop)

    def step(self, state: PolicyState, laws: Laws | None, counts_K: ArrayLike) -> PolicyState:
        """Advances over one block that was laid out with `counts_K` samples; `laws` are those in force after it.

        laws: Laws, or None while none is fitted. The new state's weights are for the next block.
        """
        config, t = self.config, state.step
        counts_K = np.asarray(counts_K, np.int64)
        samples_K = state.samples_K + counts_K
        credit_K = self._credit(state, counts_K)
        weights_K, average_K = self._warm_up_weights(), state.average_K
        anchor_K, solved_for = state.anchor_K, state.solved_for
        if laws is not None and t >= config.start_step:
            rho_K = self.preference(laws, samples_K, credit_K)
            if config.clip_target in ("preference", "both"):
                rho_K = self._clip(rho_K)
            # (5)  π = γ2·ρ + (1−γ2)·π̄ ;  π̄ ← π̄ + (ρ − π̄)/(t+1)
            weights_K = config.preference_rate * rho_K + (1 - config.preference_rate) * state.average_K
            average_K = state.average_K + (rho_K - state.average_K) / (t + 1)
            if config.clip_target in ("policy", "both"):
                weights_K = self._clip(weights_K)
            if config.max_change < 1:
                if (mark := _mark(laws)) != solved_for:  # the first block under these laws
                    anchor_K, solved_for = state.base_K, mark
                weights_K = within_change(weights_K, anchor_K, config.max_change)
        return PolicyState(
            t + 1, weights_K, average_K, credit_K, samples_K, anchor_K=anchor_K, solved_for=solved_for
        )  # fmt: skip

    def _credit(self, state: PolicyState, counts_K: np.ndarray) -> np.ndarray:
        """(3)  h ← γ1·π + (1−γ1)·h, with π or with the shares that were realised."""
        share_K = state.weights_K
        if self.config.credit_source == "counts":
            if counts_K.sum() == 0:
                return state.credit_K
            share_K = counts_K / counts_K.sum()
        return self.config.credit_rate * share_K + (1 - self.config.credit_rate) * state.credit_K

    def preference(self, laws: Laws, samples_K: np.ndarray, credit_K: np.ndarray) -> np.ndarray:
        """(4)  ρ_k ∝ τ_k · h_k^s · (−dL_k/dn)^γ, normalised. A domain without a usable law keeps its prior share."""
        config = self.config
        n_K = np.maximum(laws.effective_n(samples_K), 1.0)  # (7)
        log_speed_K = laws.log_speed(n_K, alpha_floor=config.alpha_floor)  # (2)
        if config.speed_unit == "log":
            log_speed_K = log_speed_K + _log_of_unit(laws, samples_K, n_K)
        known_K = ~np.isnan(log_speed_K) & (log_speed_K < np.inf)
        with np.errstate(divide="ignore"):  # log 0 = −inf is a share of zero
            score_K = np.log(self.goal_K)
            if config.credit_exponent > 0:
                score_K = score_K + config.credit_exponent * np.log(credit_K)
        if config.speed_exponent > 0:  # else the speed does not count, not even one of zero
            score_K = score_K + config.speed_exponent * np.where(known_K, log_speed_K, 0.0)
        score_K = np.where(known_K, score_K, -np.inf)
        if not np.any(score_K > -np.inf):
            return self.prior_K
        share_K = np.exp(score_K - score_K.max())
        rest = 1.0 - self.prior_K[~known_K].sum()
        return np.where(known_K, share_K * (rest / share_K.sum()), self.prior_K)

    def _clip(self, p_K: np.ndarray) -> np.ndarray:
        """(6)  no domain under its least share."""
        if self.config.clip == "none":
            return p_K
        if self.config.clip == "rescale":
            return rescale_and_clip(p_K, self.config.min_share)
        operation = project if self.config.clip == "euclidean" else project_proportional
        return operation(p_K, self.lower_K, self.upper_K)


def _log_of_unit(laws: Laws, samples_K: np.ndarray, n_K: np.ndarray) -> np.ndarray:
    """log of what a speed per sample is multiplied with to be one per log n: −dL/dlog n_k = n_k · (−dL/dn).

    With transfer that is the own elasticity e_k = α_k (L_k − ε_k) · n_k / (n_k + s_k N): only own samples can be
    chosen. A domain with s = ∞ has e = 0 beside others; where all have it, no sample is anyone's own, and n is N.
    """
    shared_K = np.isinf(laws.transfer_K)
    if shared_K.all():
        return np.log(n_K)
    return np.where(shared_K, -np.inf, np.log(np.maximum(samples_K, 1)))


def _mark(laws: Laws) -> int:
    """A number that tells these laws from the last ones, positive."""
    return zlib.crc32(np.ascontiguousarray(laws.params()).tobytes(), zlib.crc32(laws.transfer_K.tobytes())) + 1
