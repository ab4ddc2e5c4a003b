"""Minimising the objective of the scaling law, for many domains and many starts at once (ALGORITHM.md, "The solver").

Legend: N rows (a domain with a start), T points, 3 = (a, e, α) = (log β, log ε, α). x = log n, y = log loss,
w = weight of a point (0 = absent). Everything is float64; nothing here knows about steps, domains or files.

    F(θ) = Σ_t w_t · Huber_δ(p_t(θ) − y_t) + slope · Σ_i [max(lower_i − θ_i, 0) + max(θ_i − upper_i, 0)]
    p_t(θ) = log(exp(a − α x_t) + exp(e)),    slope = ∞ makes the hinges a box.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np

_BLOCK = 50_000  # points handled at a time, so that the work arrays stay in the cache


@dataclass(frozen=True)
class Problem:
    """N objectives over T points each. Bounds may be ±inf; slope may be inf."""

    x_NxT: np.ndarray
    y_NxT: np.ndarray
    w_NxT: np.ndarray
    lower_Nx3: np.ndarray
    upper_Nx3: np.ndarray
    delta: float
    slope: float

    def rows(self, index_M) -> "Problem":
        """The problems of the given rows."""
        per_row = (self.x_NxT, self.y_NxT, self.w_NxT, self.lower_Nx3, self.upper_Nx3)
        return Problem(*(array[index_M] for array in per_row), self.delta, self.slope)

    def bounds_of(self, index_M) -> "Problem":
        """The given rows without their points."""
        empty = np.zeros((len(index_M), 0))
        return Problem(empty, empty, empty, self.lower_Nx3[index_M], self.upper_Nx3[index_M], self.delta, self.slope)

    def hinges(self, theta_Nx3) -> np.ndarray:
        """slope · distance outside the bounds, summed over the parameters. With a box, callers stay inside it."""
        if np.isinf(self.slope):
            return np.zeros(theta_Nx3.shape[:-1])
        outside = np.maximum(self.lower_Nx3 - theta_Nx3, 0.0) + np.maximum(theta_Nx3 - self.upper_Nx3, 0.0)
        return self.slope * outside.sum(-1)

    def inside(self, theta_Nx3) -> np.ndarray:
        """theta moved into the box (unchanged under finite penalties)."""
        return np.clip(theta_Nx3, self.lower_Nx3, self.upper_Nx3) if np.isinf(self.slope) else theta_Nx3

    def snapped(self, theta_Nx3) -> np.ndarray:
        """theta with what lies within rounding of a bound put on it."""
        for bound in (self.lower_Nx3, self.upper_Nx3):
            near = np.abs(theta_Nx3 - bound) <= 1e-12 * (1.0 + np.abs(theta_Nx3))
            theta_Nx3 = np.where(near, bound, theta_Nx3)
        return self.inside(theta_Nx3)


def predict(theta_Nx3, x_NxT):
    """Predicted log loss p and its derivative w.r.t. a, s = exp(a − αx − p) (then ∂p/∂e = 1 − s, ∂p/∂α = −x s)."""
    with np.errstate(over="ignore", under="ignore"):
        gap = theta_Nx3[:, 0, None] - theta_Nx3[:, 2, None] * x_NxT - theta_Nx3[:, 1, None]
        small = np.exp(-np.abs(gap))
        p_NxT = theta_Nx3[:, 1, None] + np.maximum(gap, 0.0) + np.log(1.0 + small)
        s_NxT = np.where(gap > 0, 1.0, small) / (1.0 + small)
    return p_NxT, s_NxT


def cost(problem: Problem, theta_Nx3) -> np.ndarray:
    """F of every row."""
    size = np.abs(predict(theta_Nx3, problem.x_NxT)[0] - problem.y_NxT)
    capped = np.minimum(size, problem.delta)
    data_N = np.einsum("nt,nt->n", problem.w_NxT, capped * (size - 0.5 * capped))
    return data_N + problem.hinges(theta_Nx3)


def derivatives(problem: Problem, theta_Nx3):
    """F, the gradient and Hessian of its smooth part, and the Gauss-Newton majoriser.

    With J = (s, 1 − s, −x s), u = (1, −1, −x) and ψ = clip(r, −δ, δ):
        gradient   Σ w ψ J
        Hessian    Σ w [ 1{|r| < δ} J Jᵀ + ψ s(1 − s) u uᵀ ]
        majoriser  Σ w min(1, δ/|r|) J Jᵀ     (iteratively reweighted least squares)
    """
    rows = max(_BLOCK // max(problem.x_NxT.shape[1], 1), 1)
    parts = [_derivatives(*(array[first : first + rows] for array in
                            (problem.x_NxT, problem.y_NxT, problem.w_NxT, theta_Nx3)), problem.delta)
             for first in range(0, max(len(theta_Nx3), 1), rows)]
    f_N, g, hessian, major = (np.concatenate(part) for part in zip(*parts, strict=True))
    return f_N + problem.hinges(theta_Nx3), g, hessian, major


def _derivatives(x, y, w, theta_Nx3, delta):
    """`derivatives` without the hinges, for rows that fit in the cache together."""
    p, s = predict(theta_Nx3, x)
    r = p - y
    size = np.abs(r)
    capped = np.minimum(size, delta)
    f_N = _dot(w, capped * (size - 0.5 * capped))
    psi = w * np.copysign(capped, r)
    xs = x * s
    g = np.stack([_dot(psi, s), _dot(psi, 1.0 - s), -_dot(psi, xs)], -1)
    inner = _outer(w * (size < delta), s, xs)
    curved = psi * s * (1.0 - s)
    bent = curved * x
    c0, c1, c2 = curved.sum(-1), bent.sum(-1), _dot(bent, x)
    bend = _symmetric(c0, -c0, -c1, c0, c1, c2)
    major = _outer(w * (delta / np.maximum(size, delta)), s, xs)
    return f_N, g, inner + bend, major


def _dot(a, b):
    return np.einsum("nt,nt->n", a, b)


def _outer(weight, s, xs):
    """Σ weight J Jᵀ with J = (s, 1 − s, −x s)."""
    ws, wx = weight * s, weight * xs
    total, s1, s2 = weight.sum(-1), ws.sum(-1), _dot(ws, s)
    x1, x2 = _dot(wx, s), _dot(wx, xs)
    return _symmetric(s2, s1 - s2, -x1, total - 2 * s1 + s2, -(wx.sum(-1) - x1), x2)


def _symmetric(aa, ae, al, ee, el, ll):
    return np.stack([np.stack([aa, ae, al], -1), np.stack([ae, ee, el], -1), np.stack([al, el, ll], -1)], -2)


@functools.cache
def _faces(has_lower_3, has_upper_3, box):
    """The faces of the hinges, grouped by which parameters are free: list of (free_3, place_Cx3).

    A parameter is below (0), at its lower bound (1), between (2), at its upper bound (3) or above (4); a box has
    no outside, and a bound that is infinite for every problem has no face.
    """
    places = [[place for place, there in enumerate((low and not box, low, True, high, high and not box)) if there]
              for low, high in zip(has_lower_3, has_upper_3, strict=True)]
    groups = {}
    for pattern in itertools.product(*places):
        groups.setdefault(tuple(place not in (1, 3) for place in pattern), []).append(pattern)
    return [(np.array(free), np.array(patterns)) for free, patterns in groups.items()]


def constrained_step(problem: Problem, theta_Nx3, g_Nx3, a_Nx3x3):
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


def _step_on_face(problem, theta_Nx3, g_Nx3, a_Nx3x3):
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


def _step_over_faces(problem, theta_Nx3, g_Nx3, a_Nx3x3):
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


def _free_inverse(a_Nx3x3, free_3):
    """The inverse of the free block of A, zero elsewhere."""
    both = free_3[:, None] & free_3
    return np.where(both, solve_3x3(np.where(both, a_Nx3x3, np.diag(~free_3) * 1.0), np.eye(3)), 0.0)


def solve_3x3(a_Nx3x3, b_Nx3xM):
    """A⁻¹ B for positive definite A, by elimination in units of A's diagonal; a pivot that vanished is kept tiny.

    Unlike a library solver it has no exception: a row without information gives a long step, which is then refused.
    """
    root = np.sqrt(np.maximum(np.einsum("nii->ni", a_Nx3x3), 1e-300))
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


def minimise(problem: Problem, theta_Nx3, iterations=60, tolerance=1e-11):
    """Damped Newton steps with exact treatment of the hinges, from every row's start. Returns (theta_Nx3, F_N).

    Rows that have converged leave the computation. F never increases; a row whose F is not finite is returned as is.
    """
    theta_Nx3 = problem.snapped(np.array(theta_Nx3, np.float64))
    f_N = np.empty(len(theta_Nx3))
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
        damping, newton = _adapted(damping, newton, good, (f - f_new) / np.maximum(decrease, 1e-300))
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
    return _dot(problem.w_NxT, problem.x_NxT) / np.maximum(problem.w_NxT.sum(-1), 1e-300)


def along_valley(problem: Problem, theta_Nx3, step_Nx3, centre_N) -> np.ndarray:
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


def _adapted(damping_N, newton_N, good_N, ratio_N):
    """The next damping, and whether the Hessian is tried next: a step refused under it tries the majoriser first."""
    after_good = np.where(ratio_N > 0.7, damping_N / 8, np.where(ratio_N < 0.2, damping_N * 3, damping_N))
    after_bad = np.where(newton_N, damping_N, damping_N * 8)
    return np.clip(np.where(good_N, after_good, after_bad), 1e-12, 1e12), good_N | ~newton_N


def _damped(h_Nx3x3, major_Nx3x3, damping_N):
    """H plus damping and, where H is not positive definite, plus what makes it so; both in units of the majoriser."""
    scale_Nx3 = np.einsum("nii->ni", major_Nx3x3)
    scale_Nx3 = np.maximum(scale_Nx3, 1e-12 * scale_Nx3.max(-1, keepdims=True) + 1e-30)
    root = np.sqrt(scale_Nx3)
    unit = h_Nx3x3 / (root[:, :, None] * root[:, None, :])
    low_N = np.linalg.eigvalsh(unit)[:, 0]
    shift_N = damping_N + np.maximum(-low_N, 0.0) * 1.1 + 1e-12
    return h_Nx3x3 + shift_N[:, None, None] * scale_Nx3[:, None, :] * np.eye(3)
