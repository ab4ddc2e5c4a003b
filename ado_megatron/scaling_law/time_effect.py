"""What time does to all losses at once, kept from passing for transfer (ALGORITHM.md, "Transfer").

A learning rate that falls, or warms up, lowers the loss of every domain at the same time, whatever was drawn. In one
domain alone that cannot be told from the transfer s; over several domains it can, because it moves them together and a
shift of the mixture moves them apart.

    log L_k(t) = log law_k(n_k(t) + s_k N(t)) + c(t) + d_k(t)

c is common and d_k the domain's own deviation from it, both piecewise linear: random walks over the knots, of standard
deviation a and _OWN·a at the end of the run. How large a is the losses say: what follows is averaged over _SIZES by
their marginal likelihood. Under a constant rate that leaves next to no effect, and s is as well known as without one.

Legend: K domains, T points, B knots of the effect, Q = 4 unknowns of a domain (log β, log ε, α, log s), P = Q + B
(and d_k at the knots), A amplitudes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ado_megatron.scaling_law.objective import TINY, Problem, predict
from ado_megatron.scaling_law.points import Points
from ado_megatron.scaling_law.standard_errors import cap_of, effective_points, held_at_bounds, robust_scale

_KNOTS = 16  # of the piecewise linear effect
_POINTS_PER_KNOT = 4  # at least
_SIZES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # a, of log loss; the first is no effect
_OWN = 0.3  # size of d_k in units of that of c: gains of a decay differ by about so much
_LAW_SIGMA = 0.1  # of log s that equation 7 itself leaves open: s of one domain in models of other sizes (ALGORITHM.md)
_LONGEST = 0.7  # step of log s
_NOT_HELD = 1e-10  # ridge of a parameter, relative to its own information
_FLAT = 1e-100  # ridge of a parameter without information
_OF_LAW, _LOG_S = 4, 3  # Q, and the place of log s


@dataclass(frozen=True)
class TimeEffect:
    """What is taken off the log loss of each domain, c + d_k. kept_K: the share of what the losses say of log s that is
    left when the effect is unknown (0 to 1; next to 0 for a single domain)."""

    of_domain_KxT: np.ndarray
    kept_K: np.ndarray

    @classmethod
    def none(cls, num_domains: int, num_points: int) -> TimeEffect:
        """Before anything is known of it."""
        return cls(np.zeros((num_domains, num_points)), np.zeros(num_domains))


def refine_time_effect(
    points: Points, problem: Problem, theta_Kx3: np.ndarray, log_s_K: np.ndarray, effect: TimeEffect,
    prior: tuple[float, float],
) -> tuple[TimeEffect, np.ndarray]:  # fmt: skip
    """One Gauss-Newton step of the joint fit of all laws, all transfers and the effect of time: the effect and log s.

    problem: that of exp(log_s_K) with `effect` taken off, of which theta minimises the objective.
    prior: mean and standard deviation of log s. What belongs to one domain is eliminated, which leaves a system of B
    unknowns, so the cost is K·T·B.
    """
    basis_TxB = hats(problem.x_NxT.shape[1])
    if basis_TxB.shape[1] == 0:
        return effect, log_s_K
    normal = _Normal.build(points, problem, theta_Kx3, log_s_K, effect, prior, basis_TxB)
    solved = [normal.solve(size) for size in _SIZES]
    evidence_A = np.array([one.evidence for one in solved])
    weight_A = np.exp(evidence_A - evidence_A.max())
    weight_A /= weight_A.sum()
    step_AxK = np.array([one.step_K for one in solved])
    step_K = weight_A @ step_AxK
    variance_K = weight_A @ (np.array([one.variance_K for one in solved]) + (step_AxK - step_K) ** 2) + _LAW_SIGMA**2
    knots_KxB = np.tensordot(weight_A, np.array([one.knots_KxB for one in solved]), 1)
    # information on log s with the effect unknown, over that with it known
    known_K = normal.precision_K - prior[1] ** -2
    kept_K = np.clip((1.0 / variance_K - prior[1] ** -2) / np.maximum(known_K, _FLAT), 0.0, 1.0)
    return TimeEffect(knots_KxB @ basis_TxB.T, kept_K), log_s_K + np.clip(step_K, -_LONGEST, _LONGEST)


def hats(num_points: int) -> np.ndarray:
    """Piecewise linear functions of the row, basis_TxB; no column when there are too few points for two knots."""
    knots = min(_KNOTS, num_points // _POINTS_PER_KNOT)
    if knots < 2:
        return np.zeros((num_points, 0))
    at_T = np.linspace(0.0, knots - 1.0, num_points)
    return np.maximum(1.0 - np.abs(at_T[:, None] - np.arange(knots)), 0.0)


@dataclass(frozen=True)
class _Solved:
    """The answer at one amplitude: the step of log s, its variance, c + d_k at the knots, the log evidence."""

    step_K: np.ndarray
    variance_K: np.ndarray
    knots_KxB: np.ndarray
    evidence: float


@dataclass(frozen=True)
class _Normal:
    """The normal equations of all domains without the prior of the effect. The effect counts from 0, laws and log s
    from where they are."""

    gram_KxPxP: np.ndarray
    pull_KxP: np.ndarray
    walk_BxB: np.ndarray  # prior precision of a random walk of size 1

    @classmethod
    def build(
        cls, points: Points, problem: Problem, theta_Kx3: np.ndarray, log_s_K: np.ndarray, effect: TimeEffect,
        prior: tuple[float, float], basis_TxB: np.ndarray,
    ) -> _Normal:  # fmt: skip
        """Arguments as of refine_time_effect."""
        residual_KxT, weight_KxT = _weighted(points, problem, theta_Kx3, basis_TxB)
        residual_KxT = residual_KxT + effect.of_domain_KxT
        jac_KxTxQ = _jacobian(points, problem, theta_Kx3, np.exp(log_s_K))
        weighted_KxQxT = (jac_KxTxQ * weight_KxT[:, :, None]).transpose(0, 2, 1)
        law_KxQxQ, cross_KxQxB = weighted_KxQxT @ jac_KxTxQ, weighted_KxQxT @ basis_TxB
        ridge_Q = np.zeros(_OF_LAW)
        ridge_Q[_LOG_S] = prior[1] ** -2
        law_KxQxQ += (np.einsum("kqq->kq", law_KxQxQ) * _NOT_HELD + _FLAT + ridge_Q)[:, :, None] * np.eye(_OF_LAW)
        own_KxBxB = basis_TxB.T @ (weight_KxT[:, :, None] * basis_TxB)
        top_KxQxP = np.concatenate([law_KxQxQ, cross_KxQxB], 2)
        gram_KxPxP = np.concatenate([top_KxQxP, np.concatenate([cross_KxQxB.transpose(0, 2, 1), own_KxBxB], 2)], 1)
        pull_KxQ = (weighted_KxQxT @ residual_KxT[..., None])[..., 0]
        pull_KxQ[:, _LOG_S] += (prior[0] - log_s_K) * ridge_Q[_LOG_S]
        pull_KxP = np.concatenate([pull_KxQ, (weight_KxT * residual_KxT) @ basis_TxB], 1)
        knots = basis_TxB.shape[1]
        step_BxB = np.eye(knots) - np.eye(knots, k=-1)
        return cls(gram_KxPxP, pull_KxP, knots * step_BxB.T @ step_BxB)

    @property
    def precision_K(self) -> np.ndarray:
        """Of log s with the effect known and the law unknown; the prior's in it."""
        law_KxQxQ = self.gram_KxPxP[:, :_OF_LAW, :_OF_LAW]
        rest_KxQx1 = np.linalg.solve(law_KxQxQ[:, :_LOG_S, :_LOG_S], law_KxQxQ[:, :_LOG_S, _LOG_S:])
        return law_KxQxQ[:, _LOG_S, _LOG_S] - (law_KxQxQ[:, _LOG_S, None, :_LOG_S] @ rest_KxQx1)[:, 0, 0]

    def solve(self, size: float) -> _Solved:
        """The answer for a common effect of this size, and own ones of _OWN times it."""
        num, knots = len(self.pull_KxP), len(self.walk_BxB)
        own_BxB = self.walk_BxB / (_OWN * size) ** 2
        gram_KxPxP = self.gram_KxPxP.copy()
        gram_KxPxP[:, _OF_LAW:, _OF_LAW:] += own_BxB
        cross_KxPxB = self.gram_KxPxP[:, :, _OF_LAW:]  # c meets a domain as d_k does
        unit_KxPx1 = np.zeros((num, _OF_LAW + knots, 1))
        unit_KxPx1[:, _LOG_S] = 1.0
        right = np.concatenate([cross_KxPxB, self.pull_KxP[..., None], unit_KxPx1], -1)
        solved = np.linalg.solve(gram_KxPxP, right)
        by_effect_KxPxB, alone_KxP, by_s_KxP = solved[..., :knots], solved[..., knots], solved[..., knots + 1]
        common_BxB = self.walk_BxB / size**2
        system = cross_KxPxB[:, _OF_LAW:].sum(0) - np.einsum("kpb,kpc->bc", cross_KxPxB, by_effect_KxPxB) + common_BxB
        known_B = self.pull_KxP[:, _OF_LAW:].sum(0) - np.einsum("kpb,kp->b", by_effect_KxPxB, self.pull_KxP)
        effect_B = np.linalg.solve(system, known_B)
        step_KxP = alone_KxP - by_effect_KxPxB @ effect_B
        through_KxB = by_effect_KxPxB[:, _LOG_S]
        variance_K = by_s_KxP[:, _LOG_S] + (through_KxB * np.linalg.solve(system, through_KxB.T).T).sum(-1)
        fitted = known_B @ effect_B + np.sum(self.pull_KxP * alone_KxP)
        volume = _log_det(common_BxB) + num * _log_det(own_BxB) - _log_det(system) - _log_det(gram_KxPxP)
        return _Solved(step_KxP[:, _LOG_S], variance_K, effect_B + step_KxP[:, _OF_LAW:], 0.5 * float(fitted + volume))


def _log_det(matrix: np.ndarray) -> float:
    """log of the determinant, summed over a stack."""
    return float(np.linalg.slogdet(matrix)[1].sum())


def _weighted(
    points: Points, problem: Problem, theta_Kx3: np.ndarray, basis_TxB: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Residuals y − p, outliers clipped, and their precision; together they weigh as many points as are effective.

    Noise is what the knots cannot follow, so that an effect that is not yet known does not pass for noise.
    """
    residual = np.where(points.present_KxT, problem.y_NxT - predict(theta_Kx3, problem.x_NxT)[0], 0.0)
    share = points.w_KxT / np.maximum(points.w_KxT.sum(-1), TINY)[:, None]
    gram_KxBxB = basis_TxB.T @ (share[:, :, None] * basis_TxB) + 1e-9 * np.eye(basis_TxB.shape[1])
    knots_KxBx1 = np.linalg.solve(gram_KxBxB, ((share * residual) @ basis_TxB)[..., None])
    smooth = knots_KxBx1[..., 0] @ basis_TxB.T
    rough = np.where(points.present_KxT, residual - smooth, 0.0)
    cap_K = cap_of(rough, share)
    scale_K = robust_scale(rough, share, cap_K)
    effective_K = effective_points(rough, points.w_KxT, scale_K)
    scale_K = np.maximum(scale_K, 1e-6)  # losses without noise: nothing is known to more than a millionth
    clipped = smooth + np.clip(rough, -cap_K[:, None], cap_K[:, None])
    return np.where(points.present_KxT, clipped, 0.0), share * (effective_K / scale_K**2)[:, None]


def _jacobian(points: Points, problem: Problem, theta_Kx3: np.ndarray, transfer_K: np.ndarray) -> np.ndarray:
    """Derivatives of p by log β, log ε, α (0 where one is held at a bound) and log s; jac_KxTxQ."""
    x = problem.x_NxT
    _, s = predict(theta_Kx3, x)
    held = held_at_bounds(problem, theta_Kx3)
    of_law = np.where(held[:, None, :], 0.0, np.stack([s, 1.0 - s, -x * s], -1))
    shared = np.where(points.present_KxT, transfer_K[:, None] * points.total_T / np.exp(x), 0.0)
    return np.concatenate([of_law, (-theta_Kx3[:, 2:] * s * shared)[..., None]], -1)
