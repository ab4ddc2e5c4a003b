"""Minimising the objective of the scaling law, for many domains and many starts at once (ALGORITHM.md, "The solver").

Legend: N rows (a domain with a start), T points, 3 = (a, e, α) = (log β, log ε, α). x = log n, y = log loss,
w = weight of a point (0 = absent). Everything is float64; nothing here knows about steps, domains or files.

    F(θ) = Σ_t w_t · Huber_δ(p_t(θ) − y_t) + slope · Σ_i [max(lower_i − θ_i, 0) + max(θ_i − upper_i, 0)]
    p_t(θ) = log(exp(a − α x_t) + exp(e)),    slope = ∞ makes the hinges a box.
"""

from dataclasses import dataclass

import numpy as np


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

    def hinges(self, theta_Nx3) -> np.ndarray:
        """slope · distance outside the bounds, summed over the parameters. With a box, callers stay inside it."""
        if np.isinf(self.slope):
            return np.zeros(theta_Nx3.shape[:-1])
        outside = np.maximum(self.lower_Nx3 - theta_Nx3, 0.0) + np.maximum(theta_Nx3 - self.upper_Nx3, 0.0)
        return self.slope * outside.sum(-1)

    def inside(self, theta_Nx3) -> np.ndarray:
        """theta moved into the box (unchanged under finite penalties)."""
        return np.clip(theta_Nx3, self.lower_Nx3, self.upper_Nx3) if np.isinf(self.slope) else theta_Nx3


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
    x, w, delta = problem.x_NxT, problem.w_NxT, problem.delta
    p, s = predict(theta_Nx3, x)
    r = p - problem.y_NxT
    size = np.abs(r)
    capped = np.minimum(size, delta)
    f_N = np.einsum("nt,nt->n", w, capped * (size - 0.5 * capped)) + problem.hinges(theta_Nx3)
    psi = w * np.copysign(capped, r)
    xs = x * s
    g = np.stack([_dot(psi, s), _dot(psi, 1.0 - s), -_dot(psi, xs)], -1)
    inner = _outer(w * (size < delta), s, xs)
    curved = psi * s * (1.0 - s)
    c0, c1, c2 = curved.sum(-1), _dot(curved, x), np.einsum("nt,nt,nt->n", curved, x, x)
    bend = _symmetric(c0, -c0, -c1, c0, c1, c2)
    with np.errstate(divide="ignore", invalid="ignore"):
        major = _outer(w * np.where(size > delta, delta / size, 1.0), s, xs)
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


def _patterns():
    """All ways for the three parameters to lie: below, at lower, between, at upper, above (125 x 3, as 0..4)."""
    return np.stack(np.meshgrid(*[np.arange(5)] * 3, indexing="ij"), -1).reshape(-1, 3)


_PATTERNS_Cx3 = _patterns()


def constrained_step(problem: Problem, theta_Nx3, g_Nx3, a_Nx3x3):
    """The exact minimiser of g·d + ½ dᵀA d + hinges(θ + d), A positive definite, and its predicted decrease.

    The hinges are separable and piecewise linear, so the minimiser of this convex function lies on a face: each
    parameter in one of its (at most) five places. On a face the problem is linear. Every candidate is a point, so
    the least value among them, with the true hinges, is the minimum: no feasibility test is needed.
    """
    box = np.isinf(problem.slope)
    finite_3x2 = np.stack([np.isfinite(problem.lower_Nx3).any(0), np.isfinite(problem.upper_Nx3).any(0)], -1)
    can = np.stack([finite_3x2[:, 0] & (not box), finite_3x2[:, 0], np.ones(3, bool), finite_3x2[:, 1],
                    finite_3x2[:, 1] & (not box)], -1)  # 3 x 5
    patterns = _PATTERNS_Cx3[can[np.arange(3), _PATTERNS_Cx3].all(-1)]
    best_value = np.full(len(theta_Nx3), np.inf)
    best_step = np.zeros_like(theta_Nx3)
    base = problem.hinges(theta_Nx3)
    for free in np.unique(~np.isin(patterns, (1, 3)), axis=0):
        inverse = _free_inverse(a_Nx3x3, free)
        for pattern in patterns[(~np.isin(patterns, (1, 3)) == free).all(-1)]:
            pinned = np.where(pattern == 1, problem.lower_Nx3, problem.upper_Nx3) - theta_Nx3
            pinned = np.where(free | ~np.isfinite(pinned), 0.0, pinned)
            slopes = 0.0 if box else problem.slope * ((pattern == 4) * 1.0 - (pattern == 0))
            pull = g_Nx3 + slopes + np.einsum("nij,nj->ni", a_Nx3x3, pinned)
            step = problem.inside(theta_Nx3 + pinned - np.einsum("nij,nj->ni", inverse, pull)) - theta_Nx3
            quadratic = np.einsum("ni,ni->n", g_Nx3 + 0.5 * np.einsum("nij,nj->ni", a_Nx3x3, step), step)
            value = quadratic + problem.hinges(theta_Nx3 + step) - base
            better = value < best_value
            best_value = np.where(better, value, best_value)
            best_step[better] = step[better]
    return best_step, -best_value


def _free_inverse(a_Nx3x3, free_3):
    """The inverse of the free block of A, zero elsewhere."""
    out = np.zeros_like(a_Nx3x3)
    index = np.flatnonzero(free_3)
    if index.size:
        block = np.ix_(np.arange(len(out)), index, index)
        out[block] = np.linalg.inv(a_Nx3x3[block])
    return out


def minimise(problem: Problem, theta_Nx3, iterations=60, tolerance=1e-11):
    """Damped Newton steps with exact treatment of the hinges, from every row's start. Returns (theta_Nx3, F_N).

    Rows that have converged leave the computation. F never increases; a row whose F is not finite is returned as is.
    """
    theta_Nx3 = problem.inside(np.array(theta_Nx3, np.float64))
    f_N = np.full(len(theta_Nx3), np.inf)
    live = np.arange(len(theta_Nx3))
    at, sub = theta_Nx3.copy(), problem
    f, g, hessian, major = derivatives(sub, at)
    damping, newton = np.full(len(live), 1e-2), np.ones(len(live), bool)
    f_N[:] = f
    for _ in range(iterations):
        a = _damped(np.where(newton[:, None, None], hessian, major), major, damping)
        step, decrease = constrained_step(sub, at, g, a)
        f_new, *rest = derivatives(sub, at + step)
        ratio = (f - f_new) / np.maximum(decrease, 1e-300)
        good = f_new < f
        at = np.where(good[:, None], at + step, at)
        f = np.where(good, f_new, f)
        g, hessian, major = (np.where(good.reshape(-1, *[1] * (old.ndim - 1)), new, old)
                             for new, old in zip(rest, (g, hessian, major), strict=True))
        newton, damping = (np.where(good, True, ~newton),
                           np.clip(np.where(good, np.where(ratio > 0.7, damping / 8, np.where(ratio < 0.2, damping * 3, damping)),
                                            np.where(newton, damping, damping * 8)), 1e-12, 1e12))
        theta_Nx3[live], f_N[live] = at, f
        small = decrease <= tolerance * np.abs(f) + 1e-18
        keep = ~(small & (good | (damping >= 1e3) | (decrease <= 1e-15 * np.abs(f) + 1e-18))) & (damping < 1e12)
        keep &= np.isfinite(f)
        if not keep.any():
            break
        if not keep.all():
            live, at, f, g, hessian, major = (v[keep] for v in (live, at, f, g, hessian, major))
            damping, newton, sub = damping[keep], newton[keep], sub.rows(keep)
    return theta_Nx3, f_N


def _damped(h_Nx3x3, major_Nx3x3, damping_N):
    """H plus damping and, where H is not positive definite, plus what makes it so; both in units of the majoriser."""
    scale_Nx3 = np.einsum("nii->ni", major_Nx3x3)
    scale_Nx3 = np.maximum(scale_Nx3, 1e-12 * scale_Nx3.max(-1, keepdims=True) + 1e-30)
    root = np.sqrt(scale_Nx3)
    unit = h_Nx3x3 / (root[:, :, None] * root[:, None, :])
    low_N = np.linalg.eigvalsh(unit)[:, 0]
    shift_N = damping_N + np.maximum(-low_N, 0.0) * 1.1 + 1e-12
    return h_Nx3x3 + shift_N[:, None, None] * scale_Nx3[:, None, :] * np.eye(3)
