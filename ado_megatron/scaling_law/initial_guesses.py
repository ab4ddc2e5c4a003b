"""Where the solver starts: a grid over (α, ε) on a thinned history, refined, the best few of each domain kept.

Legend: K domains, T points, S thinned points, G starts of a domain, 3 = (log β, log ε, α).
"""

from __future__ import annotations

import numpy as np

from ado_megatron.scaling_law.newton import centre, minimise
from ado_megatron.scaling_law.objective import TINY, Problem, cost, predict

_ALPHAS = (0.002, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.2, 1.8)
_EPSILON_SHARES = (0.05, 0.3, 0.5, 0.65, 0.8, 0.9, 0.96, 0.99)
_MOVES = (0.03, 0.12, 0.4)  # of α, relative
_SAME = 0.003  # candidates this close in log ε and α are one
_FLAT_LOG_BETA = -30.0  # a law whose power term is nothing: constant, or rising, losses


def thin(problem: Problem, points: int) -> Problem:
    """Every problem on at most `points` of its present points, evenly spread, with the weights' sum kept."""
    present = problem.w_NxT > 0
    count_N = present.sum(-1)
    size = min(points, max(int(count_N.max(initial=1)), 1))
    order_NxT = np.argsort(~present, axis=-1, kind="stable")  # present points first, in their order
    fraction_S = (np.arange(size) + 0.5) / size
    pick_NxS = np.minimum((fraction_S * np.maximum(count_N, 1)[:, None]).astype(np.int64), problem.w_NxT.shape[1] - 1)
    index_NxS = np.take_along_axis(order_NxT, pick_NxS, -1)
    x, y, w = (np.take_along_axis(a, index_NxS, -1) for a in (problem.x_NxT, problem.y_NxT, problem.w_NxT))
    w = w * (problem.w_NxT.sum(-1) / np.maximum(w.sum(-1), TINY))[:, None]
    return Problem(x, y, w, problem.lower_Nx3, problem.upper_Nx3, problem.delta, problem.slope)


def grid(problem: Problem) -> np.ndarray:
    """Starts theta_KxGx3: for each (α, ε) the log β that fits the median of log(L − ε) + α log n; and a flat law."""
    lowest_K = np.where(problem.w_NxT > 0, problem.y_NxT, np.inf).min(-1)
    shares = lowest_K[:, None] + np.log(_EPSILON_SHARES)
    kinks = np.where(np.isfinite(problem.lower_Nx3[:, 1:2]), problem.lower_Nx3[:, 1:2], shares[:, :1])
    e_KxE = np.concatenate([shares, kinks], -1)
    if np.isinf(problem.slope):
        e_KxE = np.clip(e_KxE, problem.lower_Nx3[:, 1:2], problem.upper_Nx3[:, 1:2])
    above_KxExS = problem.y_NxT[:, None, :] - e_KxE[:, :, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rest_KxExS = np.log(np.maximum(np.expm1(above_KxExS), 1e-6)) + e_KxE[:, :, None]
    alphas = np.array(_ALPHAS)
    power = rest_KxExS[:, None] + alphas[:, None, None] * problem.x_NxT[:, None, None, :]
    a_KxAxE = np.median(power, axis=-1)
    theta = np.empty((*a_KxAxE.shape, 3))
    theta[..., 0], theta[..., 1], theta[..., 2] = a_KxAxE, e_KxE[:, None], alphas[:, None]
    theta = theta.reshape(len(theta), -1, 3)
    level_K = np.where(problem.w_NxT > 0, problem.y_NxT, np.nan)
    level_K = np.nanmedian(level_K, axis=-1)
    flat = np.stack([np.full_like(level_K, _FLAT_LOG_BETA), level_K, np.full_like(level_K, 0.3)], -1)
    return np.concatenate([theta, flat[:, None]], 1)


def starts(problem: Problem, keep: int, points: int = 64) -> np.ndarray:
    """The `keep` most promising starts of every problem, theta_KxMx3."""
    small = thin(problem, points)
    theta_KxGx3 = grid(small)
    num, size = theta_KxGx3.shape[:2]
    row_N = np.repeat(np.arange(num), size)
    tiled = small.rows(row_N)
    theta_Nx3 = tiled.inside(theta_KxGx3.reshape(-1, 3))
    value_KxG = cost(tiled, theta_Nx3).reshape(num, size)
    chosen = _profile_minima(value_KxG[:, :-1].reshape(num, len(_ALPHAS), -1), size - 1)
    theta_KxMx3 = np.take_along_axis(theta_Nx3.reshape(num, size, 3), chosen[..., None], 1)
    rows = small.rows(np.repeat(np.arange(num), chosen.shape[1]))
    theta_Nx3, f_N = minimise(rows, theta_KxMx3.reshape(-1, 3), iterations=12, tolerance=1e-6)
    theta_KxMx3 = distinct(theta_Nx3.reshape(num, -1, 3), f_N.reshape(num, -1), keep - 1)
    return np.concatenate([theta_KxMx3, theta_KxGx3[:, -1:]], 1)  # the flat law is tried on all points, always


def _profile_minima(value_KxAxE: np.ndarray, flat: int) -> np.ndarray:
    """Of each α the best ε, of each ε the best α, and the flat law: indices into the grid."""
    num, alphas, epsilons = value_KxAxE.shape
    per_alpha = value_KxAxE.argmin(2) + np.arange(alphas) * epsilons
    per_epsilon = value_KxAxE.argmin(1) * epsilons + np.arange(epsilons)
    return np.concatenate([per_alpha, per_epsilon, np.full((num, 1), flat)], -1)


def lowest(theta_KxMx3: np.ndarray, f_KxM: np.ndarray) -> np.ndarray:
    """The candidate with the least F of every problem, theta_Kx3."""
    return np.take_along_axis(theta_KxMx3, f_KxM.argmin(-1)[:, None, None], 1)[:, 0]


def valley(problem: Problem, theta_Kx3: np.ndarray) -> np.ndarray:
    """Points theta_KxMx3 along the floor of the valley through theta: α moves, level and slope at the centre stay."""
    moves_M = np.concatenate([_MOVES, -np.array(_MOVES)])
    alpha_KxM = theta_Kx3[:, 2:] + moves_M * np.maximum(theta_Kx3[:, 2:], 0.05)
    if np.isinf(problem.slope):
        alpha_KxM = np.clip(alpha_KxM, problem.lower_Nx3[:, 2:], problem.upper_Nx3[:, 2:])
    centre_Kx1 = centre(problem)[:, None]
    p, s = predict(theta_Kx3, centre_Kx1)
    new_s = np.clip(theta_Kx3[:, 2:] * s / np.where(alpha_KxM == 0, 1.0, alpha_KxM), 1e-12, 1 - 1e-6)
    return np.stack([p + np.log(new_s) + alpha_KxM * centre_Kx1, p + np.log1p(-new_s), alpha_KxM], -1)


def distinct(theta_KxMx3: np.ndarray, f_KxM: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` lowest of M candidates of every problem, those in one and the same place counted once."""
    f_KxM = np.where(np.isfinite(f_KxM), f_KxM, np.inf)
    order = np.argsort(f_KxM, axis=-1, kind="stable")
    theta_KxMx3 = np.take_along_axis(theta_KxMx3, order[..., None], 1)
    gap = np.abs(theta_KxMx3[:, :, None, 1:] - theta_KxMx3[:, None, :, 1:]).max(-1)
    earlier = np.tri(gap.shape[1], k=-1, dtype=bool)
    same_KxM = ((gap < _SAME) & earlier).any(-1)
    order = np.argsort(same_KxM, axis=-1, kind="stable")[:, :keep]
    return np.take_along_axis(theta_KxMx3, order[..., None], 1)
