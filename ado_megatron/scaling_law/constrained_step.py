"""One step on a quadratic model plus hinges, solved exactly (ALGORITHM.md, "The solver", point 3).

Legend: N rows, C faces of the hinges, M right-hand sides, 3 = (log β, log ε, α).
"""

from __future__ import annotations

import functools
import itertools

import numpy as np

from ado_megatron.scaling_law.objective import TINY, Problem


@functools.cache
def _faces(
    has_lower_3: tuple[bool, ...], has_upper_3: tuple[bool, ...], box: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The faces of the hinges, grouped by which parameters are free: list of (free_3, place_Cx3).

    A parameter is below (0), at its lower bound (1), between (2), at its upper bound (3) or above (4); a box has
    no outside, and a bound that is infinite for every problem has no face.
    """
    places = [[place for place, there in enumerate((low and not box, low, True, high, high and not box)) if there]
              for low, high in zip(has_lower_3, has_upper_3, strict=True)]
    groups: dict[tuple[bool, ...], list[tuple[int, ...]]] = {}
    for pattern in itertools.product(*places):
        groups.setdefault(tuple(place not in (1, 3) for place in pattern), []).append(pattern)
    return [(np.array(free), np.array(patterns)) for free, patterns in groups.items()]


def constrained_step(
    problem: Problem, theta_Nx3: np.ndarray, g_Nx3: np.ndarray, a_Nx3x3: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The exact minimiser of g·d + ½ dᵀA d + hinges(θ + d), A positive definite, and its predicted decrease.

    Most steps stay on the face they are on, which is checked by the optimality condition; the others search all
    faces. Returns (step_Nx3, decrease_N).
    """
    step_Nx3, settled_N = _step_on_face(problem, theta_Nx3, g_Nx3, a_Nx3x3)
    other = np.flatnonzero(~settled_N)
    if other.size:
        step_Nx3[other] = _step_over_faces(problem.bounds_of(other), theta_Nx3[other], g_Nx3[other], a_Nx3x3[other])
    quadratic_N = ((g_Nx3 + 0.5 * np.einsum("nij,nj->ni", a_Nx3x3, step_Nx3)) * step_Nx3).sum(-1)
    return step_Nx3, problem.hinges(theta_Nx3) - problem.hinges(theta_Nx3 + step_Nx3) - quadratic_N


def _step_on_face(
    problem: Problem, theta_Nx3: np.ndarray, g_Nx3: np.ndarray, a_Nx3x3: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The minimiser on the face of theta, and whether it is that of the whole problem.

    A parameter at a bound is held; the others keep their slopes. It is the whole minimum if none of the others
    crosses a bound and the pull on each held one lies between the slopes on its two sides (the subdifferential).
    """
    lower, upper, box = problem.lower_Nx3, problem.upper_Nx3, np.isinf(problem.slope)
    at_lower, at_upper = theta_Nx3 == lower, theta_Nx3 == upper
    held = at_lower | at_upper
    slope_Nx3 = 0.0 if box else problem.slope * ((theta_Nx3 > upper) * 1.0 - (theta_Nx3 < lower))
    free_Nx3x3 = ~held[:, :, None] & ~held[:, None, :]
    reduced_Nx3x3 = np.where(free_Nx3x3, a_Nx3x3, np.eye(3) * held[:, None, :])
    pull_Nx3 = np.where(held, 0.0, g_Nx3 + slope_Nx3)
    step_Nx3 = -solve_3x3(reduced_Nx3x3, pull_Nx3[..., None])[..., 0]
    end_Nx3 = theta_Nx3 + step_Nx3
    stays = ((end_Nx3 >= lower) == (theta_Nx3 >= lower)) & ((end_Nx3 <= upper) == (theta_Nx3 <= upper))
    force_Nx3 = g_Nx3 + np.einsum("nij,nj->ni", a_Nx3x3, step_Nx3)
    slope = problem.slope
    holds = np.where(at_lower, (force_Nx3 <= slope) & (force_Nx3 >= 0.0), (force_Nx3 >= -slope) & (force_Nx3 <= 0.0))
    return step_Nx3, np.where(held, holds, stays).all(-1)


def _step_over_faces(
    problem: Problem, theta_Nx3: np.ndarray, g_Nx3: np.ndarray, a_Nx3x3: np.ndarray
) -> np.ndarray:
    """The minimiser over all faces.

    The hinges are separable and piecewise linear, so the minimiser of this convex function lies on a face: each
    parameter in one of its (at most) five places. On a face the problem is linear. Every candidate is a point, so
    the least value among them, with the true hinges, is the minimum: no feasibility test is needed.
    """
    box = bool(np.isinf(problem.slope))
    lower, upper = problem.lower_Nx3[:, None], problem.upper_Nx3[:, None]
    has_lower, has_upper = np.isfinite(problem.lower_Nx3).any(0), np.isfinite(problem.upper_Nx3).any(0)
    theta_Nx1x3 = theta_Nx3[:, None]
    best_N, step_Nx3 = np.full(len(theta_Nx3), np.inf), np.zeros_like(theta_Nx3)
    for free_3, place_Cx3 in _faces(tuple(has_lower.tolist()), tuple(has_upper.tolist()), box):
        pinned_NxCx3 = np.where(place_Cx3 == 1, lower, upper) - theta_Nx1x3
        pinned_NxCx3 = np.where(free_3 | ~np.isfinite(pinned_NxCx3), 0.0, pinned_NxCx3)
        slope_Cx3 = 0.0 if box else problem.slope * ((place_Cx3 == 4) * 1.0 - (place_Cx3 == 0))
        pull_NxCx3 = g_Nx3[:, None] + slope_Cx3 + pinned_NxCx3 @ a_Nx3x3
        d_NxCx3 = pinned_NxCx3 - pull_NxCx3 @ _free_inverse(a_Nx3x3, free_3)
        if box:
            d_NxCx3 = np.clip(theta_Nx1x3 + d_NxCx3, lower, upper) - theta_Nx1x3
        value_NxC = ((g_Nx3[:, None] + 0.5 * (d_NxCx3 @ a_Nx3x3)) * d_NxCx3).sum(-1)
        if not box:
            point = theta_Nx1x3 + d_NxCx3
            outside = np.maximum(lower - point, 0.0) + np.maximum(point - upper, 0.0)
            value_NxC = value_NxC + problem.slope * outside.sum(-1)
        choice_N = value_NxC.argmin(-1)
        row_N = np.arange(len(choice_N))
        better_N = value_NxC[row_N, choice_N] < best_N
        best_N = np.where(better_N, value_NxC[row_N, choice_N], best_N)
        step_Nx3 = np.where(better_N[:, None], d_NxCx3[row_N, choice_N], step_Nx3)
    return step_Nx3


def _free_inverse(a_Nx3x3: np.ndarray, free_3: np.ndarray) -> np.ndarray:
    """The inverse of the free block of A, zero elsewhere."""
    both = free_3[:, None] & free_3
    return np.where(both, solve_3x3(np.where(both, a_Nx3x3, np.diag(~free_3) * 1.0), np.eye(3)), 0.0)


def solve_3x3(a_Nx3x3: np.ndarray, b_Nx3xM: np.ndarray) -> np.ndarray:
    """A⁻¹ B for positive definite A, by elimination in units of A's diagonal; a pivot that vanished is kept tiny.

    Unlike a library solver it has no exception: a row without information gives a long step, which is then refused.
    """
    root = np.sqrt(np.maximum(np.einsum("nii->ni", a_Nx3x3), TINY))
    a = a_Nx3x3 / (root[:, :, None] * root[:, None, :])
    b = np.broadcast_to(b_Nx3xM, (len(a), *np.shape(b_Nx3xM)[-2:])) / root[:, :, None]
    l10, l20 = a[:, 1, 0], a[:, 2, 0]
    d1 = np.maximum(1.0 - l10 * l10, 1e-15)
    l21 = (a[:, 2, 1] - l20 * l10) / d1
    d2 = np.maximum(1.0 - l20 * l20 - l21 * l21 * d1, 1e-15)
    z0 = b[:, 0]
    z1 = b[:, 1] - l10[:, None] * z0
    z2 = (b[:, 2] - l20[:, None] * z0 - l21[:, None] * z1) / d2[:, None]
    z1 = z1 / d1[:, None] - l21[:, None] * z2
    return np.stack([z0 - l10[:, None] * z1 - l20[:, None] * z2, z1, z2], 1) / root[:, :, None]
