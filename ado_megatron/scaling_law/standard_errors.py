"""Standard errors of fitted laws from the curvature of the objective (ALGORITHM.md, "Standard errors").

Legend: K domains, T points, 3 = (log β, log ε, α).
"""

import numpy as np

from ado_megatron.scaling_law.newton import Problem, predict, solve_3x3

_RIDGE = 1e-12
_NO_INFORMATION = 1e-200  # of a parameter; its error is then huge, and finite


def standard_errors(problem: Problem, theta_Kx3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Covariance of the parameters, error of the speed relative to itself, and the RMS of the residuals.

    Returns (covariance_Kx3x3, speed_error_K, rms_K). A parameter at a bound is held there: its row and column are 0.
    """
    x, w = problem.x_NxT, problem.w_NxT
    p, s = predict(theta_Kx3, x)
    r = np.where(w > 0, p - problem.y_NxT, 0.0)
    total_K = np.maximum(w.sum(-1), 1e-300)
    rms_K = np.sqrt((w * r * r).sum(-1) / total_K)
    share = w / total_K[:, None]
    points_K = (w > 0).sum(-1)
    # a robust scale: for Huber's ψ, variance of the estimator is E[ψ²] / E[ψ']² times (Σ J Jᵀ)⁻¹; with a small δ
    # the density at zero is badly estimated, so the scale is taken as at least δ and as the RMS of clipped residuals
    scale_K = _scale(r, share)
    effective_K = points_K / _correlation(r, w, scale_K)
    jac = np.stack([s, 1.0 - s, -x * s], -1)
    held = (theta_Kx3 <= problem.lower_Nx3 + 1e-9) | (theta_Kx3 >= problem.upper_Nx3 - 1e-9)
    jac = np.where(held[:, None, :], 0.0, jac)
    information = np.einsum("kt,kti,ktj->kij", share, jac, jac)
    diagonal = np.einsum("kii->ki", information)
    root = np.sqrt(np.maximum(diagonal, _NO_INFORMATION))
    unit = information / (root[:, :, None] * root[:, None, :])
    unit = unit + np.eye(3) * np.where(diagonal > _NO_INFORMATION, _RIDGE, 1.0)[:, None, :]
    covariance = solve_3x3(unit, np.eye(3)) / (root[:, :, None] * root[:, None, :])
    covariance = np.where(held[:, :, None] | held[:, None, :], 0.0, covariance)
    freedom_K = np.maximum(effective_K - (~held).sum(-1), 0.5)
    covariance = covariance * (scale_K**2 / freedom_K)[:, None, None]
    last_K = np.where(w > 0, x, -np.inf).max(-1, initial=-np.inf)
    last_K = np.where(np.isfinite(last_K), last_K, 0.0)
    # log speed = log α + a − (α + 1) log n
    one = np.ones_like(last_K)
    slope = np.stack([one, 0.0 * one, 1.0 / np.maximum(theta_Kx3[:, 2], 1e-3) - last_K], -1)
    speed_K = np.sqrt(np.maximum(np.einsum("ki,kij,kj->k", slope, covariance, slope), 0.0))
    return covariance, speed_K, rms_K


def _scale(r, share):
    """Weighted RMS of the residuals clipped at three times their weighted median size."""
    size = np.abs(r)
    order = np.argsort(size, axis=-1)
    cumulative = np.cumsum(np.take_along_axis(share, order, -1), -1)
    middle = np.minimum((cumulative < 0.5).sum(-1), size.shape[1] - 1)
    median_K = np.take_along_axis(np.take_along_axis(size, order, -1), middle[:, None], -1)[:, 0]
    capped = np.minimum(size, 4.5 * median_K[:, None])
    return np.sqrt((share * capped**2).sum(-1)) + 1e-12


def _correlation(r, w, scale_K):
    """How many neighbouring points count as one: 1 + 2·Σ autocorrelations, over a window of T^(1/3) lags or more."""
    z = np.where(w > 0, np.clip(r / scale_K[:, None], -3, 3), 0.0)
    here = (w > 0).astype(np.float64)
    factor_K, alive_K = np.ones(len(z)), np.ones(len(z), bool)
    variance_K = np.maximum((z * z).sum(-1) / np.maximum(here.sum(-1), 1), 1e-300)
    for lag in range(1, min(z.shape[1] // 4, 40) + 1):
        pairs_K = np.maximum((here[:, lag:] * here[:, :-lag]).sum(-1), 1.0)
        rho_K = (z[:, lag:] * z[:, :-lag]).sum(-1) / pairs_K / variance_K
        alive_K &= rho_K > 0.05
        if not alive_K.any():
            break
        factor_K += np.where(alive_K, 2.0 * np.minimum(rho_K, 1.0), 0.0)
    return factor_K
