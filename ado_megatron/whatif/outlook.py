"""Losses at the end of a course by the laws, and how well they are known.

    L = ε + P g^(−α),   P = L − ε at the last fitted point,   g = E/E₀,   E = m(n) + s N

as the plan of horizon.py has it: m is the worth of repeated data, s the transfer. The variance of a loss, and of the
difference of two, is a sum of four, domain by domain:

    law       gᵀ C g: C the covariance of (log β, log ε, α), g the gradient (delta method). Of a difference, g is the
              difference of the gradients: the two share the law, so what is unknown alike in both cancels.
    transfer  the mean square of what other values of s give, over three nodes of its distribution (Gauss-Hermite):
              the posterior of a fit that estimated it; else its prior, for then the run has said nothing about s.
    mixture   domains help one another more or less than s says of all alike: if the help of each differs from s by
              SPREAD · s, samples that move by Δn_j change E by s · SPREAD · √Σ_j≠k Δn_j² (one standard deviation).
    model     (m L Δlog g)², an error of the law's slope that no fit shows (--ado-plan-model-error, and MODEL at least).

Legend: K domains, 3 = (log β, log ε, α), Q nodes of s.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from ado_megatron.policy.horizon import worth
from ado_megatron.scaling_law.laws import Laws, effective_samples
from ado_megatron.scaling_law.transfer import PRIOR_MEDIAN, PRIOR_SIGMA
from ado_megatron.whatif.course import Course
from ado_megatron.whatif.situation import Situation

Z95 = 1.959964  # standard errors of a 95 % interval
SPREAD = 1.0  # of the help from domain to domain, as a part of s
MODEL = 0.025  # least model error: part of the loss for each factor e of samples, by which simulated intervals hold
_TO_80_PERCENT = 1.2815515655446004
_NODE_Q = np.array([-math.sqrt(3.0), 0.0, math.sqrt(3.0)])
_WEIGHT_Q = np.array([1 / 6, 2 / 3, 1 / 6])
_ENDS = (0.005, 8.0)  # what 0 and ∞ stand for on the scale of log s, as in transfer.py


@dataclasses.dataclass(frozen=True, eq=False)
class Outlook:
    """What the laws say of two courses, nats. nan where a domain has no law. error: standard error.

    now_K, other_K: losses at the end; difference_K: other − now. target_now, target_other, target_difference: Σ τ L
    over the domains that have a law; unknown: the part of τ that has none.
    """

    now_K: np.ndarray
    now_error_K: np.ndarray
    other_K: np.ndarray
    other_error_K: np.ndarray
    difference_K: np.ndarray
    difference_error_K: np.ndarray
    target_now: float
    target_other: float
    target_difference: float
    target_error: float
    unknown: float


def outlook(
    situation: Situation, now: Course, other: Course, target: Mapping[str, float] | None = None
) -> Outlook | None:
    """The losses at the end of both courses; None where no law was fitted yet. target: weights by name that are
    proposed (None: the run's)."""
    laws = situation.laws
    if laws is None or not len(situation.rows["step_T"]):
        return None
    law = _Prediction(situation, laws)
    values, errors = [], []
    for course in (now, other):
        values.append(law.loss(course, law.s_K))
        errors.append(law.error((course, 1.0)))
    difference_K, error_K = values[1] - values[0], law.error((other, 1.0), (now, -1.0))
    target_K = _target(situation, target)
    known_K = np.isfinite(values[0]) & np.isfinite(values[1])
    tau_K = np.where(known_K, target_K, 0.0)
    totals = [float(tau_K @ np.where(known_K, v_K, 0.0)) for v_K in (*values, difference_K)]
    error = float(np.sqrt(np.sum((tau_K * np.where(known_K, error_K, 0.0)) ** 2)))
    return Outlook(
        values[0], errors[0], values[1], errors[1], difference_K, error_K, totals[0], totals[1], totals[2], error,
        float(target_K[~known_K].sum()),
    )  # fmt: skip


def _target(situation: Situation, target: Mapping[str, float] | None) -> np.ndarray:
    """τ, sum 1."""
    if target is not None:
        target_K = np.array([target.get(name, 0.0) for name in situation.domains.names_K])
    else:
        target_K = situation.domains.prior_K if situation.target_K is None else situation.target_K
    return target_K / target_K.sum()


class _Prediction:
    """The laws at the last fitted point, and from there to the end of any course."""

    def __init__(self, situation: Situation, laws: Laws):
        rows = situation.rows
        last_K = rows["n_TxK"].max(0)  # where a domain is absent from a row it has no n there
        self._n_K, self._total = np.maximum(last_K, 1.0), float(rows["total_T"][-1])
        self._laws, self._length_K = laws, np.maximum(situation.length_K, 1.0)
        self._reuse = situation.config.plan_repeat
        self._model = max(situation.config.plan_model_error, MODEL)
        self.known_K = laws.ok_K & np.isfinite(laws.params()).all(-1)
        self.s_K = np.where(self.known_K, laws.transfer_K, 0.0)
        self._log_n_K = np.log(effective_samples(self._n_K, np.full_like(self._n_K, self._total), self.s_K))
        self._log_s_K, self._sigma_K = _distribution(laws, self.known_K)

    def _log_growth(self, course: Course, s_K: np.ndarray) -> np.ndarray:
        """log g of each domain at the end of a course."""
        end_K, total = course.drawn_K, float(course.drawn_K.sum())
        ends = [
            effective_samples(worth(n_K, self._length_K, self._reuse)[0], np.full_like(n_K, all_), s_K)
            for n_K, all_ in ((np.maximum(end_K, 1.0), total), (self._n_K, self._total))
        ]
        return np.log(np.maximum(ends[0] / ends[1], 1.0))

    def _excess(self, course: Course, s_K: np.ndarray) -> np.ndarray:
        """P g^(−α), nats."""
        laws = self._laws
        with np.errstate(invalid="ignore", over="ignore"):
            return np.exp(laws.log_beta_K - laws.alpha_K * (self._log_n_K + self._log_growth(course, s_K)))

    def loss(self, course: Course, s_K: np.ndarray) -> np.ndarray:
        """The loss at the end of a course; nan without a law."""
        return np.where(self.known_K, np.exp(self._laws.log_epsilon_K) + self._excess(course, s_K), np.nan)

    def error(self, *parts: tuple[Course, float]) -> np.ndarray:
        """Standard error of Σ factor · loss over courses."""
        laws = self._laws
        gradient_Kx3 = np.zeros((len(self.s_K), 3))
        log_g_K, level_K = np.zeros(len(self.s_K)), np.zeros(len(self.s_K))
        for course, factor in parts:
            excess_K, grown_K = self._excess(course, self.s_K), self._log_growth(course, self.s_K)
            epsilon_K = np.exp(laws.log_epsilon_K)
            gradient_Kx3 += factor * np.stack([excess_K, epsilon_K, -excess_K * (self._log_n_K + grown_K)], -1)
            log_g_K += factor * grown_K
            level_K = np.maximum(level_K, excess_K + epsilon_K)
        variance_K = np.einsum("ki,kij,kj->k", gradient_Kx3, laws.covariance_Kx3x3, gradient_Kx3)
        variance_K = np.maximum(variance_K, 0.0) + (self._model * level_K * log_g_K) ** 2
        variance_K += self._transfer_variance(parts) + self._mixture_variance(parts)
        return np.where(self.known_K, np.sqrt(variance_K), np.nan)

    def _transfer_variance(self, parts: tuple[tuple[Course, float], ...]) -> np.ndarray:
        """Mean square of what other transfers change."""
        known_K = sum(factor * self._excess(course, self.s_K) for course, factor in parts)
        mean_K = np.zeros(len(self.s_K))
        for node, weight in zip(_NODE_Q, _WEIGHT_Q, strict=True):
            s_K = np.exp(self._log_s_K + node * self._sigma_K)
            mean_K += weight * (sum(factor * self._excess(course, s_K) for course, factor in parts) - known_K) ** 2
        return mean_K


    def _mixture_variance(self, parts: tuple[tuple[Course, float], ...]) -> np.ndarray:
        """Mean square of what a shift among the other domains may change. Of one course, against the shares so far."""
        moved_K = np.sum([factor * course.drawn_K for course, factor in parts], axis=0)
        moved_K = moved_K - moved_K.sum() * self._n_K / self._n_K.sum()
        others_K = np.sqrt(np.maximum((moved_K**2).sum() - moved_K**2, 0.0))
        course = parts[0][0]
        total, worth_K = course.drawn_K.sum(), worth(course.drawn_K, self._length_K, self._reuse)[0]
        mean_K = np.zeros(len(self.s_K))
        for node, weight in zip(_NODE_Q, _WEIGHT_Q, strict=True):
            s_K = np.exp(self._log_s_K + node * self._sigma_K)
            log_e_K = SPREAD * s_K * others_K / (worth_K + s_K * total)
            mean_K += weight * (self._laws.alpha_K * self._excess(course, s_K) * log_e_K) ** 2
        return mean_K


def _distribution(laws: Laws, known_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of log s: of the estimate, or of the prior where s was given."""
    low_K, high_K = laws.transfer_low_K, laws.transfer_high_K
    with np.errstate(invalid="ignore"):
        estimated_K = known_K & (high_K > low_K)
    low_K, high_K = (np.clip(np.where(estimated_K, s_K, 1.0), *_ENDS) for s_K in (low_K, high_K))
    middle_K = np.log(np.clip(np.where(estimated_K, laws.transfer_K, PRIOR_MEDIAN), *_ENDS))
    return middle_K, np.where(estimated_K, np.log(high_K / low_K) / (2 * _TO_80_PERCENT), PRIOR_SIGMA)
