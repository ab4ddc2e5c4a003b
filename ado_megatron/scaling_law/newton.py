"""Minimising the objective of the scaling law (ALGORITHM.md, "The solver"): damped Newton steps along its valley.

Legend: N rows (a domain with a start), T points, 3 = (a, e, α) = (log β, log ε, α). x = log n.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.scaling_law.constrained_step import constrained_step
from ado_megatron.scaling_law.objective import TINY, Problem, cost, derivatives, predict, weighted_sum


def minimise(
    problem: Problem, theta_Nx3: ArrayLike, iterations: int = 60, tolerance: float = 1e-11
) -> tuple[np.ndarray, np.ndarray]:
    """Damped Newton steps with exact treatment of the hinges, from every row's start. Returns (theta_Nx3, F_N).

    Rows that have converged leave the computation. F never increases; a row whose F is not finite is returned as is.
    """
    theta_Nx3 = problem.snapped(np.array(theta_Nx3, np.float64))
    f_N = cost(problem, theta_Nx3)
    finite_N = np.isfinite(f_N)
    if not finite_N.all():
        theta_Nx3[finite_N], f_N[finite_N] = minimise(
            problem.rows(finite_N), theta_Nx3[finite_N], iterations, tolerance
        )
        return theta_Nx3, f_N
    live, sub, at = np.arange(len(theta_Nx3)), problem, theta_Nx3
    f, g, hessian, major = derivatives(sub, at)
    f_N[:] = f
    damping, newton, middle = np.full(len(live), 1e-2), np.ones(len(live), bool), centre(problem)
    for _ in range(iterations):
        a = _damped(np.where(newton[:, None, None], hessian, major), major, damping)
        step, decrease = constrained_step(sub, at, g, a)
        end = along_valley(sub, at, step, middle)
        f_new, *rest = derivatives(sub, end)
        good = f_new < f
        damping, newton = _adapted(damping, newton, good, (f - f_new) / np.maximum(decrease, TINY))
        at, f = np.where(good[:, None], end, at), np.where(good, f_new, f)
        g, hessian, major = (np.where(good.reshape(-1, *[1] * (old.ndim - 1)), new, old)
                             for new, old in zip(rest, (g, hessian, major), strict=True))
        theta_Nx3[live], f_N[live] = at, f
        keep = np.isfinite(f) & (decrease > tolerance * np.abs(f) + 1e-18) & (damping < 1e12)
        if not keep.any():
            break
        if keep.mean() < 0.7:  # copying the points costs about as much as a step
            live, at, f, g, hessian, major = (v[keep] for v in (live, at, f, g, hessian, major))
            damping, newton, middle, sub = damping[keep], newton[keep], middle[keep], sub.rows(keep)
    return theta_Nx3, f_N


def centre(problem: Problem) -> np.ndarray:
    """Weighted mean of x of every row."""
    return weighted_sum(problem.w_NxT, problem.x_NxT) / np.maximum(problem.w_NxT.sum(-1), TINY)


def along_valley(
    problem: Problem, theta_Nx3: np.ndarray, step_Nx3: np.ndarray, centre_N: np.ndarray
) -> np.ndarray:
    """theta + step to first order, bent so that it follows the curved valley of the objective.

    The data fix the level P = p and the slope M = −dp/dx = α s at the centre of x; α alone is loose. The step is
    taken in (P, M, α), with its first-order changes, and mapped back:

        s = M/α,   a = P + log s + α x,   e = P + log(1 − s).

    Where a parameter is at a bound, or would meet one, or s leaves (0, 1), the straight step is taken.
    """
    straight = problem.snapped(theta_Nx3 + step_Nx3)
    a, e, alpha = theta_Nx3.T
    da, de, dalpha = step_Nx3.T
    with np.errstate(all="ignore"):
        p, s = (value[:, 0] for value in predict(theta_Nx3, centre_N[:, None]))
        dgap = da - dalpha * centre_N - de
        level = p + de + s * dgap
        new_s = (alpha * s + dalpha * s + alpha * s * (1.0 - s) * dgap) / (alpha + dalpha)
        new_a = level + np.log(new_s) + (alpha + dalpha) * centre_N
        bent = np.stack([new_a, level + np.log1p(-new_s), alpha + dalpha], -1)
    lower, upper = problem.lower_Nx3, problem.upper_Nx3
    side = [(point > lower) * 1 + (point >= lower) + (point >= upper) + (point > upper)
            for point in (theta_Nx3, straight, bent)]
    same = (side[0] == side[1]) & (side[0] == side[2]) & (straight != lower) & (straight != upper)
    use_N = np.isfinite(bent).all(-1) & same.all(-1)
    return np.where(use_N[:, None], bent, straight)


def _adapted(
    damping_N: np.ndarray, newton_N: np.ndarray, good_N: np.ndarray, ratio_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The next damping, and whether the Hessian is tried next: a step refused under it tries the majoriser first."""
    after_good = np.where(ratio_N > 0.7, damping_N / 8, np.where(ratio_N < 0.2, damping_N * 3, damping_N))
    after_bad = np.where(newton_N, damping_N, damping_N * 8)
    return np.clip(np.where(good_N, after_good, after_bad), 1e-12, 1e12), good_N | ~newton_N


def _damped(h_Nx3x3: np.ndarray, major_Nx3x3: np.ndarray, damping_N: np.ndarray) -> np.ndarray:
    """H plus damping and, where H is not positive definite, plus what makes it so; both in units of the majoriser."""
    scale_Nx3 = np.einsum("nii->ni", major_Nx3x3)
    scale_Nx3 = np.maximum(scale_Nx3, 1e-12 * scale_Nx3.max(-1, keepdims=True) + 1e-30)
    root = np.sqrt(scale_Nx3)
    unit = h_Nx3x3 / (root[:, :, None] * root[:, None, :])
    low_N = np.linalg.eigvalsh(unit)[:, 0]
    shift_N = damping_N + np.maximum(-low_N, 0.0) * 1.1 + 1e-12
    return h_Nx3x3 + shift_N[:, None, None] * scale_Nx3[:, None, :] * np.eye(3)
