"""Standard errors of fitted laws from the curvature of the objective (ALGORITHM.md, "Standard errors").

Legend: K domains, T points, 3 = (log β, log ε, α).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ado_megatron.scaling_law.constrained_step import solve_3x3
from ado_megatron.scaling_law.objective import TINY, Problem, predict

_RIDGE = 1e-12
_NO_INFORMATION = 1e-200  # of a parameter; its error is then huge, and finite
_CAP = 4.5  # residuals above so many medians are clipped


@dataclass(frozen=True)
class LawErrors:
    """How well laws are known."""

    covariance_Kx3x3: np.ndarray  # of (log β, log ε, α); rows and columns of a parameter at its bound are 0
    speed_K: np.ndarray  # standard error of the speed at the last point, relative to the speed
    rms_K: np.ndarray  # root mean square of the residuals of log loss


def standard_errors(problem: Problem, theta_Kx3: np.ndarray) -> LawErrors:
    """Errors of the laws theta, which minimise `problem`. A parameter at a bound is held there: its error is 0."""
    x, w = problem.x_NxT, problem.w_NxT
    p, s = predict(theta_Kx3, x)
    r = np.where(w > 0, p - problem.y_NxT, 0.0)
    share = w / np.maximum(w.sum(-1), TINY)[:, None]
    # a robust scale: for Huber's ψ, variance of the estimator is E[ψ²] / E[ψ']² times (Σ J Jᵀ)⁻¹; with a small δ
    # the density at zero is badly estimated, so the scale is taken as at least δ and as the RMS of clipped residuals
    scale_K = robust_scale(r, share, cap_of(r, share))
    held = held_at_bounds(problem, theta_Kx3)
    jac = np.where(held[:, None, :], 0.0, np.stack([s, 1.0 - s, -x * s], -1))
    information = np.einsum("kt,kti,ktj->kij", share, jac, jac)
    diagonal = np.einsum("kii->ki", information)
    root = np.sqrt(np.maximum(diagonal, _NO_INFORMATION))
    unit = information / (root[:, :, None] * root[:, None, :])
    unit = unit + np.eye(3) * np.where(diagonal > _NO_INFORMATION, _RIDGE, 1.0)[:, None, :]
    covariance = solve_3x3(unit, np.eye(3)) / (root[:, :, None] * root[:, None, :])
    covariance = np.where(held[:, :, None] | held[:, None, :], 0.0, covariance)
    freedom_K = np.maximum(effective_points(r, w, scale_K) - (~held).sum(-1), 0.5)
    covariance = covariance * (scale_K**2 / freedom_K)[:, None, None]
    rms_K = np.sqrt((share * r * r).sum(-1))
    return LawErrors(covariance, _speed_error(theta_Kx3, covariance, np.where(w > 0, x, -np.inf)), rms_K)


def _speed_error(theta_Kx3: np.ndarray, covariance_Kx3x3: np.ndarray, x_KxT: np.ndarray) -> np.ndarray:
    """Relative error of the speed at the last point: log speed = log α + a − (α + 1) log n, and the delta method."""
    last_K = x_KxT.max(-1, initial=-np.inf)
    last_K = np.where(np.isfinite(last_K), last_K, 0.0)
    one = np.ones_like(last_K)
    slope = np.stack([one, 0.0 * one, 1.0 / np.maximum(theta_Kx3[:, 2], 1e-3) - last_K], -1)
    return np.sqrt(np.maximum(np.einsum("ki,kij,kj->k", slope, covariance_Kx3x3, slope), 0.0))


def held_at_bounds(problem: Problem, theta_Kx3: np.ndarray) -> np.ndarray:
    """Which parameters lie at a bound, held_Kx3."""
    return (theta_Kx3 <= problem.lower_Nx3 + 1e-9) | (theta_Kx3 >= problem.upper_Nx3 - 1e-9)


def cap_of(r_KxT: np.ndarray, share_KxT: np.ndarray) -> np.ndarray:
    """The size at which residuals are clipped: 4.5 times their weighted median size. share_KxT sums to 1 over T."""
    size = np.abs(r_KxT)
    order = np.argsort(size, axis=-1)
    cumulative = np.cumsum(np.take_along_axis(share_KxT, order, -1), -1)
    middle = np.minimum((cumulative < 0.5).sum(-1), size.shape[1] - 1)
    return _CAP * np.take_along_axis(np.take_along_axis(size, order, -1), middle[:, None], -1)[:, 0]


def robust_scale(r_KxT: np.ndarray, share_KxT: np.ndarray, cap_K: np.ndarray) -> np.ndarray:
    """Weighted RMS of the residuals, clipped at cap_K."""
    capped = np.minimum(np.abs(r_KxT), cap_K[:, None])
    return np.sqrt((share_KxT * capped**2).sum(-1)) + 1e-12


def effective_points(r_KxT: np.ndarray, w_KxT: np.ndarray, scale_K: np.ndarray) -> np.ndarray:
    """The number of points, divided by how many neighbours count as one.

    That is 1 + 2·Σ autocorrelations of the residuals, over lags up to a quarter of the points and at most 40, and up to
    the first one that is not clearly positive.
    """
    z = np.where(w_KxT > 0, np.clip(r_KxT / scale_K[:, None], -3, 3), 0.0)
    here = (w_KxT > 0).astype(np.float64)
    factor_K, alive_K = np.ones(len(z)), np.ones(len(z), bool)
    variance_K = np.maximum((z * z).sum(-1) / np.maximum(here.sum(-1), 1), TINY)
    for lag in range(1, min(z.shape[1] // 4, 40) + 1):
        pairs_K = np.maximum((here[:, lag:] * here[:, :-lag]).sum(-1), 1.0)
        rho_K = (z[:, lag:] * z[:, :-lag]).sum(-1) / pairs_K / variance_K
        alive_K &= rho_K > 0.05
        if not alive_K.any():
            break
        factor_K += np.where(alive_K, 2.0 * np.minimum(rho_K, 1.0), 0.0)
    return here.sum(-1) / factor_K
