"""A common effect of time on all losses, kept from passing for transfer (ALGORITHM.md, "Transfer").

A learning rate that falls, or warms up, lowers the loss of every domain at the same time, whatever was drawn. In one
domain alone that cannot be told from the transfer s; over several domains it can, because it moves them together and a
shift of the mixture moves them apart.

Legend: K domains, T points, B knots of the effect, P = 5 unknowns of a domain (log β, log ε, α, gain, log s).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ado_megatron.scaling_law.objective import TINY, Problem, predict
from ado_megatron.scaling_law.points import Points
from ado_megatron.scaling_law.standard_errors import cap_of, effective_points, held_at_bounds, robust_scale

_KNOTS = 16  # of the piecewise linear effect
_POINTS_PER_KNOT = 4  # at least
_SIZE = 0.1  # prior standard deviation of the effect at a knot, of log loss
_GAIN_SIGMA = 0.4  # of a domain's gain, about 1
_LONGEST = 0.7  # step of log s
_NOT_HELD = 1e-10  # ridge of a parameter, relative to its own information
_FLAT = 1e-100  # ridge of a parameter without information


@dataclass(frozen=True)
class TimeEffect:
    """The effect on log loss of domain k is gain_k · time_t. kept_K: the share of what the losses say of log s that is
    left when the effect is unknown (0 to 1; next to 0 for a single domain)."""

    time_T: np.ndarray
    gain_K: np.ndarray
    kept_K: np.ndarray

    @classmethod
    def none(cls, num_domains: int, num_points: int) -> TimeEffect:
        """Before anything is known of it."""
        return cls(np.zeros(num_points), np.ones(num_domains), np.zeros(num_domains))

    @property
    def of_domain_KxT(self) -> np.ndarray:
        """What is taken off the log loss."""
        return self.gain_K[:, None] * self.time_T


def refine_time_effect(
    points: Points, problem: Problem, theta_Kx3: np.ndarray, log_s_K: np.ndarray, effect: TimeEffect,
    prior: tuple[float, float],
) -> tuple[TimeEffect, np.ndarray]:  # fmt: skip
    """One Gauss-Newton step of the joint fit of all laws, all transfers and one effect of time: its effect and log s.

    problem: that of exp(log_s_K) with `effect` taken off, of which theta minimises the objective.
    prior: mean and standard deviation of log s. Laws, transfers and gains are eliminated, which leaves a system of B
    unknowns, so the cost is K·T·B.
    """
    basis_TxB = hats(len(effect.time_T))
    if basis_TxB.shape[1] == 0:
        return effect, log_s_K
    residual_KxT, weight_KxT = _weighted(points, problem, theta_Kx3)
    jac_KxTxP = _jacobian(points, problem, theta_Kx3, np.exp(log_s_K), effect.time_T)
    ridge_P = np.array([0.0, 0.0, 0.0, _GAIN_SIGMA**-2, prior[1] ** -2])
    zero_K = np.zeros(len(log_s_K))
    away_KxP = np.stack([zero_K, zero_K, zero_K, 1.0 - effect.gain_K, prior[0] - log_s_K], -1)
    weighted_KxPxT = (jac_KxTxP * weight_KxT[:, :, None]).transpose(0, 2, 1)
    gram_KxPxP = weighted_KxPxT @ jac_KxTxP
    gram_KxPxP += (np.einsum("kpp->kp", gram_KxPxP) * _NOT_HELD + _FLAT + ridge_P)[:, :, None] * np.eye(5)
    gains_K = effect.gain_K
    cross_KxPxB = (weighted_KxPxT @ basis_TxB) * gains_K[:, None, None]
    pull_KxP = (weighted_KxPxT @ residual_KxT[..., None])[..., 0] + ridge_P * away_KxP
    solved_KxPxB = np.linalg.solve(gram_KxPxP, cross_KxPxB)
    total_T = (weight_KxT * gains_K[:, None] ** 2).sum(0)
    system = basis_TxB.T @ (total_T[:, None] * basis_TxB) - np.einsum("kpb,kpc->bc", cross_KxPxB, solved_KxPxB)
    system = system + np.eye(len(system)) / _SIZE**2
    known_B = basis_TxB.T @ (weight_KxT * residual_KxT * gains_K[:, None]).sum(0)
    known_B = known_B - np.einsum("kpb,kp->b", solved_KxPxB, pull_KxP)
    # the prior pulls at the whole effect, not at its change
    old_B = np.linalg.lstsq(basis_TxB, effect.time_T, rcond=None)[0]
    change_B = np.linalg.solve(system, known_B - old_B / _SIZE**2)
    step_KxP = np.linalg.solve(gram_KxPxP, (pull_KxP - cross_KxPxB @ change_B)[..., None])[..., 0]
    kept_K = _kept(gram_KxPxP, cross_KxPxB, system, prior[1])
    new = TimeEffect(basis_TxB @ (old_B + change_B), np.clip(gains_K + step_KxP[:, 3], 0.2, 3.0), kept_K)
    return new, log_s_K + np.clip(step_KxP[:, 4], -_LONGEST, _LONGEST)


def hats(num_points: int) -> np.ndarray:
    """Piecewise linear functions of the row, basis_TxB; no column when there are too few points for two knots."""
    knots = min(_KNOTS, num_points // _POINTS_PER_KNOT)
    if knots < 2:
        return np.zeros((num_points, 0))
    at_T = np.linspace(0.0, knots - 1.0, num_points)
    return np.maximum(1.0 - np.abs(at_T[:, None] - np.arange(knots)), 0.0)


def _weighted(points: Points, problem: Problem, theta_Kx3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Residuals y − p, clipped, and the precision of each; together they weigh as many points as are effective."""
    residual = np.where(points.present_KxT, problem.y_NxT - predict(theta_Kx3, problem.x_NxT)[0], 0.0)
    share = points.w_KxT / np.maximum(points.w_KxT.sum(-1), TINY)[:, None]
    cap_K = cap_of(residual, share)
    scale_K = robust_scale(residual, share, cap_K)
    effective_K = effective_points(residual, points.w_KxT, scale_K)
    scale_K = np.maximum(scale_K, 1e-6)  # losses without noise: nothing is known to more than a millionth
    return np.clip(residual, -cap_K[:, None], cap_K[:, None]), share * (effective_K / scale_K**2)[:, None]


def _jacobian(
    points: Points, problem: Problem, theta_Kx3: np.ndarray, transfer_K: np.ndarray, time_T: np.ndarray
) -> np.ndarray:
    """Derivatives of p by log β, log ε, α (0 where one is held at a bound), gain and log s; jac_KxTxP."""
    x = problem.x_NxT
    _, s = predict(theta_Kx3, x)
    held = held_at_bounds(problem, theta_Kx3)
    of_law = np.where(held[:, None, :], 0.0, np.stack([s, 1.0 - s, -x * s], -1))
    shared = np.where(points.present_KxT, transfer_K[:, None] * points.total_T / np.exp(x), 0.0)
    of_gain = np.broadcast_to(time_T, x.shape)
    return np.concatenate([of_law, of_gain[..., None], (-theta_Kx3[:, 2:] * s * shared)[..., None]], -1)


def _kept(gram_KxPxP: np.ndarray, cross_KxPxB: np.ndarray, system: np.ndarray, log_s_sigma: float) -> np.ndarray:
    """Information on log s with the effect unknown, over that with it known.

    With the law and the gain of its domain eliminated, let P be the precision of log s (the prior's in it) and u its
    coupling with the effect. The posterior variance is then 1/P + uᵀ S⁻¹ u / P², where S is the system of the effect
    with all laws and transfers eliminated (block inversion).
    """
    rest_Kx4x1 = np.linalg.solve(gram_KxPxP[:, :4, :4], gram_KxPxP[:, :4, 4:])
    precision_K = gram_KxPxP[:, 4, 4] - (gram_KxPxP[:, 4, None, :4] @ rest_Kx4x1)[:, 0, 0]
    coupling_KxB = cross_KxPxB[:, 4] - (rest_Kx4x1.transpose(0, 2, 1) @ cross_KxPxB[:, :4])[:, 0]
    prior = log_s_sigma**-2
    spread_K = (coupling_KxB * np.linalg.solve(system, coupling_KxB.T).T).sum(-1)
    precision_K = np.maximum(precision_K, prior)
    variance_K = 1.0 / precision_K + spread_K / precision_K**2
    return np.clip((1.0 / variance_K - prior) / np.maximum(precision_K - prior, _FLAT), 0.0, 1.0)
