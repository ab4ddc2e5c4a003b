"""ADO's policy: from laws to weights, one step at a time, as a pure function of state, laws and counts.

Source: Jiang, Zhou, Feng, Malladi, Kolter, "Adaptive Data Optimization" (arXiv 2410.11820); equation numbers are those
of ALGORITHM.md. Given the laws and the counts of each block the weights are a deterministic recursion, so a whole
interval of blocks can be planned ahead.

Legend: K domains. mu prior, tau target, h credit, rho preference, pi policy (weights), pi_bar its time average.
"""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.policy.bounds import share_bounds, within_change
from ado_megatron.policy.context import PolicyContext, as_context
from ado_megatron.policy.options import PolicyOptions
from ado_megatron.policy.simplex import project, project_proportional, rescale_and_clip
from ado_megatron.policy.state import PolicyState, state_at
from ado_megatron.scaling_law.laws import Laws


@dataclasses.dataclass(frozen=True, eq=False)
class _Terms:
    """Of laws in force, what does not change from block to block.

    log −dL/dn = log_gain − slope · log n, operation by operation as Laws.log_speed. own: all transfers are 0, so n is
    the own samples. all_known: every law has a speed whatever n is (finite numbers only; −inf is a speed of 0).
    """

    laws: Laws
    log_gain_K: np.ndarray
    slope_K: np.ndarray
    own: bool
    all_known: bool
    mark: int

    @classmethod
    def of(cls, laws: Laws, alpha_floor: float, unit: str) -> _Terms:
        with np.errstate(divide="ignore"):
            log_gain_K = np.log(np.maximum(laws.alpha_K, alpha_floor)) + laws.log_beta_K
        slope_K = laws.alpha_K + 1.0
        known = unit == "sample" and bool(np.isfinite(slope_K).all() and (log_gain_K < np.inf).all())
        return cls(laws, log_gain_K, slope_K, not laws.transfer_K.any(), known, _mark(laws))


class AdoPolicy:
    """Weights from scaling laws (equations 2 to 6)."""

    def __init__(self, config: PolicyOptions, context: PolicyContext | ArrayLike):
        """config: need not be resolved. context: or a prior alone, which is then the target, too."""
        self.config, self.context = config.resolved(), as_context(context)
        self.prior_K = self.context.prior_K
        # What equation 4 weighs the speeds with: μ, unless the user has another target. A prior of 0 stays 0.
        self.goal_K = np.where(self.prior_K > 0, self.context.known_target_K, 0.0)
        self.lower_K, self.upper_K = share_bounds(self.config, self.prior_K)
        with np.errstate(divide="ignore"):  # log 0 = −inf is a share of zero
            self._log_goal_K = np.log(self.goal_K)
        self._last_terms: _Terms | None = None
        on_policy = self.config.clip_target in ("policy", "both")
        self._warm_up_K = self._clip(self.prior_K) if self.config.clip_prior and on_policy else self.prior_K

    def initial_state(self) -> PolicyState:
        """Before the first block: everything starts at the prior."""
        return state_at(self._warm_up_weights(), self.prior_K)

    def _warm_up_weights(self) -> np.ndarray:
        return self._warm_up_K

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
            weights_K, rate = rho_K, config.preference_rate
            if rate < 1:
                weights_K = rate * rho_K + (1 - rate) * state.average_K
            average_K = state.average_K + (rho_K - state.average_K) / (t + 1)
            if config.clip_target in ("policy", "both"):
                weights_K = self._clip(weights_K)
            if config.max_change < 1:
                if (mark := self._terms(laws).mark) != solved_for:  # the first block under these laws
                    anchor_K, solved_for = state.base_K, mark
                weights_K = within_change(weights_K, anchor_K, config.max_change)
        return PolicyState(
            t + 1, weights_K, average_K, credit_K, samples_K, anchor_K=anchor_K, solved_for=solved_for
        )  # fmt: skip

    def step_constant(self, state: PolicyState, laws: Laws | None, counts_SxK: np.ndarray) -> PolicyState:
        """`step` over several blocks before `constant_until`: the same state, bit for bit."""
        credit_K = state.credit_K
        if self.config.credit_source == "policy":
            for _ in counts_SxK:
                credit_K = self._mixed(state.weights_K, credit_K)
        else:
            for counts_K in counts_SxK:
                if (size := counts_K.sum()) > 0:
                    credit_K = self._mixed(counts_K / size, credit_K)
        return PolicyState(
            state.step + len(counts_SxK), self._warm_up_weights(), state.average_K, credit_K,
            state.samples_K + counts_SxK.sum(axis=0), anchor_K=state.anchor_K, solved_for=state.solved_for,
        )  # fmt: skip

    def _credit(self, state: PolicyState, counts_K: np.ndarray) -> np.ndarray:
        """(3)  h ← γ1·π + (1−γ1)·h, with π or with the shares that were realised."""
        share_K = state.weights_K
        if self.config.credit_source == "counts":
            if counts_K.sum() == 0:
                return state.credit_K
            share_K = counts_K / counts_K.sum()
        return self._mixed(share_K, state.credit_K)

    def _mixed(self, share_K: np.ndarray, credit_K: np.ndarray) -> np.ndarray:
        return self.config.credit_rate * share_K + (1 - self.config.credit_rate) * credit_K

    def preference(self, laws: Laws, samples_K: np.ndarray, credit_K: np.ndarray) -> np.ndarray:
        """(4)  ρ_k ∝ τ_k · h_k^s · (−dL_k/dn)^γ, normalised. A domain without a usable law keeps its prior share."""
        config = self.config
        terms = self._terms(laws)
        n_K = np.maximum(samples_K.astype(np.float64) if terms.own else laws.effective_n(samples_K), 1.0)  # (7)
        log_speed_K = terms.log_gain_K - terms.slope_K * np.log(n_K)  # (2), as Laws.log_speed
        if config.speed_unit == "log":
            log_speed_K = log_speed_K + _log_of_unit(laws, samples_K, n_K)
        known_K = None if terms.all_known else ~np.isnan(log_speed_K) & (log_speed_K < np.inf)
        score_K = self._log_goal_K
        if config.credit_exponent > 0:
            with np.errstate(divide="ignore"):  # log 0 = −inf is a share of zero
                score_K = score_K + config.credit_exponent * np.log(credit_K)
        if (exponent := config.speed_exponent) > 0:  # else the speed does not count, not even one of zero
            known_speed_K = log_speed_K if known_K is None else np.where(known_K, log_speed_K, 0.0)
            score_K = score_K + (known_speed_K if exponent == 1 else exponent * known_speed_K)
        if known_K is not None:
            score_K = np.where(known_K, score_K, -np.inf)
        highest = score_K[score_K.argmax()]
        if highest == -np.inf:
            return self.prior_K
        share_K = np.exp(score_K - highest)
        if known_K is None:
            return share_K * (1.0 / share_K.sum())
        rest = 1.0 - self.prior_K[~known_K].sum()
        return np.where(known_K, share_K * (rest / share_K.sum()), self.prior_K)

    def _terms(self, laws: Laws) -> _Terms:
        """What equation 4 takes from the laws alone, computed once for laws that stay."""
        if self._last_terms is None or self._last_terms.laws is not laws:
            self._last_terms = _Terms.of(laws, self.config.alpha_floor, self.config.speed_unit)
        return self._last_terms

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
