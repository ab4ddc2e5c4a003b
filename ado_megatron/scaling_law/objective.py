"""The objective of the scaling law and its derivatives, for many domains and many starts at once.

Legend: N rows (a domain with a start), T points, 3 = (a, e, α) = (log β, log ε, α). x = log n, y = log loss,
w = weight of a point (0 = absent). Everything is float64; nothing here knows about steps, domains or files.

    F(θ) = Σ_t w_t · Huber_δ(p_t(θ) − y_t) + slope · Σ_i [max(lower_i − θ_i, 0) + max(θ_i − upper_i, 0)]
    p_t(θ) = log(exp(a − α x_t) + exp(e)),    slope = ∞ makes the hinges a box.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

TINY = 1e-300  # what a sum of weights is divided by at least
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

    def rows(self, index_M: np.ndarray) -> Problem:
        """The problems of the given rows."""
        return dataclasses.replace(
            self, x_NxT=self.x_NxT[index_M], y_NxT=self.y_NxT[index_M], w_NxT=self.w_NxT[index_M],
            lower_Nx3=self.lower_Nx3[index_M], upper_Nx3=self.upper_Nx3[index_M],
        )  # fmt: skip

    def bounds_of(self, index_M: np.ndarray) -> Problem:
        """The given rows without their points."""
        empty = np.zeros((len(index_M), 0))
        return Problem(empty, empty, empty, self.lower_Nx3[index_M], self.upper_Nx3[index_M], self.delta, self.slope)

    def hinges(self, theta_Nx3: np.ndarray) -> np.ndarray:
        """slope · distance outside the bounds, summed over the parameters. With a box, callers stay inside it."""
        if np.isinf(self.slope):
            return np.zeros(theta_Nx3.shape[:-1])
        outside = np.maximum(self.lower_Nx3 - theta_Nx3, 0.0) + np.maximum(theta_Nx3 - self.upper_Nx3, 0.0)
        return self.slope * outside.sum(-1)

    def inside(self, theta_Nx3: np.ndarray) -> np.ndarray:
        """theta moved into the box (unchanged under finite penalties)."""
        return np.clip(theta_Nx3, self.lower_Nx3, self.upper_Nx3) if np.isinf(self.slope) else theta_Nx3

    def snapped(self, theta_Nx3: np.ndarray) -> np.ndarray:
        """theta with what lies within rounding of a bound put on it."""
        for bound in (self.lower_Nx3, self.upper_Nx3):
            near = np.abs(theta_Nx3 - bound) <= 1e-12 * (1.0 + np.abs(theta_Nx3))
            theta_Nx3 = np.where(near, bound, theta_Nx3)
        return self.inside(theta_Nx3)


def predict(theta_Nx3: np.ndarray, x_NxT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predicted log loss p and its derivative w.r.t. a, s = exp(a − αx − p) (then ∂p/∂e = 1 − s, ∂p/∂α = −x s)."""
    with np.errstate(over="ignore", under="ignore"):
        gap = theta_Nx3[:, 0, None] - theta_Nx3[:, 2, None] * x_NxT - theta_Nx3[:, 1, None]
        small = np.exp(-np.abs(gap))
        p_NxT = theta_Nx3[:, 1, None] + np.maximum(gap, 0.0) + np.log(1.0 + small)
        s_NxT = np.where(gap > 0, 1.0, small) / (1.0 + small)
    return p_NxT, s_NxT


def cost(problem: Problem, theta_Nx3: np.ndarray) -> np.ndarray:
    """F of every row."""
    size = np.abs(predict(theta_Nx3, problem.x_NxT)[0] - problem.y_NxT)
    capped = np.minimum(size, problem.delta)
    data_N = np.einsum("nt,nt->n", problem.w_NxT, capped * (size - 0.5 * capped))
    return data_N + problem.hinges(theta_Nx3)


def derivatives(
    problem: Problem, theta_Nx3: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """F, the gradient and Hessian of its smooth part, and the Gauss-Newton majoriser.

    With J = (s, 1 − s, −x s), u = (1, −1, −x) and ψ = clip(r, −δ, δ):
        gradient   Σ w ψ J
        Hessian    Σ w [ 1{|r| < δ} J Jᵀ + ψ s(1 − s) u uᵀ ]
        majoriser  Σ w min(1, δ/|r|) J Jᵀ     (iteratively reweighted least squares)
    """
    rows = max(_BLOCK // max(problem.x_NxT.shape[1], 1), 1)
    x_NxT, y_NxT, w_NxT = problem.x_NxT, problem.y_NxT, problem.w_NxT
    parts = []
    for first in range(0, max(len(theta_Nx3), 1), rows):
        part = slice(first, first + rows)
        parts.append(_derivatives(x_NxT[part], y_NxT[part], w_NxT[part], theta_Nx3[part], problem.delta))
    f_N, g, hessian, major = (np.concatenate(part) for part in zip(*parts, strict=True))
    return f_N + problem.hinges(theta_Nx3), g, hessian, major


def _derivatives(
    x: np.ndarray, y: np.ndarray, w: np.ndarray, theta_Nx3: np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`derivatives` without the hinges, for rows that fit in the cache together."""
    p, s = predict(theta_Nx3, x)
    r = p - y
    size = np.abs(r)
    capped = np.minimum(size, delta)
    f_N = weighted_sum(w, capped * (size - 0.5 * capped))
    psi = w * np.copysign(capped, r)
    xs = x * s
    g = np.stack([weighted_sum(psi, s), weighted_sum(psi, 1.0 - s), -weighted_sum(psi, xs)], -1)
    inner = _outer(w * (size < delta), s, xs)
    curved = psi * s * (1.0 - s)
    bent = curved * x
    c0, c1, c2 = curved.sum(-1), bent.sum(-1), weighted_sum(bent, x)
    bend = _symmetric(c0, -c0, -c1, c0, c1, c2)
    major = _outer(w * (delta / np.maximum(size, delta)), s, xs)
    return f_N, g, inner + bend, major


def weighted_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Σ_t a b of every row."""
    return np.einsum("nt,nt->n", a, b)


def _outer(weight: np.ndarray, s: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """Σ weight J Jᵀ with J = (s, 1 − s, −x s)."""
    ws, wx = weight * s, weight * xs
    total, s1, s2 = weight.sum(-1), ws.sum(-1), weighted_sum(ws, s)
    x1, x2 = weighted_sum(wx, s), weighted_sum(wx, xs)
    return _symmetric(s2, s1 - s2, -x1, total - 2 * s1 + s2, -(wx.sum(-1) - x1), x2)


def _symmetric(
    aa: np.ndarray, ae: np.ndarray, al: np.ndarray, ee: np.ndarray, el: np.ndarray, ll: np.ndarray
) -> np.ndarray:
    """Symmetric 3 x 3 matrices from their upper triangles."""
    return np.stack([np.stack([aa, ae, al], -1), np.stack([ae, ee, el], -1), np.stack([al, el, ll], -1)], -2)
