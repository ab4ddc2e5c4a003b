"""The transfer of each domain, estimated from what its loss did when its share moved (ALGORITHM.md, "Transfer").

Legend: K domains, T points, G grid of transfers, F fine grid of log s, 3 = (log β, log ε, α). s transfer (laws.py,
equation 7), c_T common effect of time on log loss.

The posterior of s is the profile likelihood over a grid times a log-normal prior. While no share has moved the
likelihood is flat, since n_k + s N is then proportional to N for every s: the posterior is the prior, and a note says
so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ado_megatron.scaling_law.newton import centre, minimise
from ado_megatron.scaling_law.objective import TINY, Problem, predict
from ado_megatron.scaling_law.points import Points
from ado_megatron.scaling_law.standard_errors import cap_of, effective_points, robust_scale
from ado_megatron.scaling_law.time_effect import TimeEffect, refine_time_effect

GRID = (0.0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 4.0, np.inf)
PRIOR_MEDIAN, PRIOR_SIGMA = 0.1, 1.3  # log-normal; domains of the Pile at 70M to 410M, source in ALGORITHM.md
ENDS = (0.005, 8.0)  # what s = 0 and s = ∞ stand for on the scale of log s
COVERED = 0.8  # of the central interval
_START = GRID.index(0.08)  # the node of the grid next to the prior's median
_FINE = 401  # nodes of the fine grid
_STEPS = 4  # Gauss-Newton steps of the joint fit before a profile
_PRIOR = (math.log(PRIOR_MEDIAN), PRIOR_SIGMA)  # of log s
_UNKNOWN = 0.8  # a posterior wider than this share of the prior has learnt nothing worth telling

Solver = Callable[[Problem], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class TransferEstimate:
    """s of each domain, its central 80 % interval, and what to know about it ("" when nothing)."""

    transfer_K: np.ndarray
    low_K: np.ndarray
    high_K: np.ndarray
    note_K: Sequence[str]

    @classmethod
    def given(cls, transfer_K: np.ndarray) -> TransferEstimate:
        """Transfers that somebody named: the interval is the value."""
        return cls(transfer_K, transfer_K, transfer_K, [""] * len(transfer_K))


def estimate_transfer(points: Points, solve: Solver) -> TransferEstimate:
    """Posterior mean of log s and its interval for each domain. points: with the samples of all domains.

    solve: the minimisers of problems from nothing, theta_Kx3 and F_K; it is called once.
    """
    num = len(points.n_KxT)
    nothing = np.tile(np.log(ENDS), (num, 1)), np.zeros((num, 2))  # a flat likelihood
    mean_K, low_K, high_K, width_K = _posterior(*nothing)
    theta_Kx3, _ = solve(points.problem(np.full(num, PRIOR_MEDIAN)))
    some = np.flatnonzero(np.isfinite(theta_Kx3).all(-1))
    if some.size:
        found = _posterior(*_profiles(points.rows(some), theta_Kx3[some]))
        mean_K[some], low_K[some], high_K[some], width_K[some] = found
    note = f"the transfer is not identified: its share has hardly moved, so s is close to the prior's {PRIOR_MEDIAN:g}"
    return TransferEstimate(np.exp(mean_K), low_K, high_K,
                            [note if width > _UNKNOWN * PRIOR_SIGMA else "" for width in width_K])


def _profiles(points: Points, theta_Kx3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes of log s, ascending, and the log likelihood there, both K x G: the grid, and finer where it is highest.

    theta_Kx3: the laws at the prior's median.
    """
    num = len(points.n_KxT)
    log_s_K = np.full(num, np.log(PRIOR_MEDIAN))
    effect = TimeEffect.none(*points.y_KxT.shape)
    for final in (False, True):
        for _ in range(_STEPS):
            problem = points.problem(np.exp(log_s_K), effect.of_domain_KxT)
            theta_Kx3, _ = minimise(problem, theta_Kx3, iterations=30)
            effect, log_s_K = refine_time_effect(points, problem, theta_Kx3, log_s_K, effect, _PRIOR)
            log_s_K = np.clip(log_s_K, *np.log(ENDS))
        profile = _Profile(points, effect, theta_Kx3, log_s_K)
        profile.walk_grid()
        if final:
            profile.refine(1 / 3)
            profile.refine(1 / 9)
        nodes_KxG, like_KxG = profile.log_likelihood()
        log_s_K = _posterior(nodes_KxG, like_KxG)[0]
    return nodes_KxG, like_KxG


class _Profile:
    """Fits at many transfers, each started from that of a neighbour, and their residuals.

    effect: taken off the log losses; theta_Kx3: minimisers at the transfers exp(log_s_K).
    """

    def __init__(self, points: Points, effect: TimeEffect, theta_Kx3: np.ndarray, log_s_K: np.ndarray):
        self._points, self._effect = points, effect
        self._start = points.problem(np.exp(log_s_K), effect.of_domain_KxT), theta_Kx3
        self._nodes: list[np.ndarray] = []  # log s of each fit, K
        self._fits: list[tuple[Problem, np.ndarray]] = []
        self._f: list[np.ndarray] = []
        self._residuals: list[np.ndarray] = []  # K x T

    def walk_grid(self) -> None:
        """The nodes of GRID, up and down from the prior's median; s = 0 and s = ∞ stand at ENDS."""
        node_G = np.log([ENDS[0], *GRID[1:-1], ENDS[1]])
        num = len(self._points.n_KxT)
        for order in (range(_START, len(GRID)), range(_START - 1, -1, -1)):
            near = self._start
            for g in order:
                near = self._add(np.full(num, node_G[g]), np.full(num, GRID[g]), near)

    def refine(self, octaves: float) -> None:
        """Four more nodes about the best one of each domain, `octaves` apart."""
        best_K = np.argmin(self._f, 0)
        rows = np.arange(len(best_K))
        centre_K = np.array(self._nodes)[best_K, rows]
        theta_Kx3 = np.array([theta for _, theta in self._fits])[best_K, rows]
        at = self._points.problem(np.exp(centre_K), self._effect.of_domain_KxT)
        for move in (-2, -1, 1, 2):
            node_K = np.clip(centre_K + move * octaves * np.log(2.0), *np.log(ENDS))
            self._add(node_K, np.exp(node_K), (at, theta_Kx3))

    def _add(
        self, node_K: np.ndarray, transfer_K: np.ndarray, near: tuple[Problem, np.ndarray]
    ) -> tuple[Problem, np.ndarray]:
        """A fit at transfer_K, which stands at log s = node_K, from the problem and minimisers `near`."""
        problem = self._points.problem(transfer_K, self._effect.of_domain_KxT)
        theta_Kx3, f_K = minimise(problem, _moved(near[0], problem, near[1]), iterations=30, tolerance=1e-8)
        self._nodes.append(node_K)
        self._fits.append((problem, theta_Kx3))
        self._f.append(f_K)
        residual_KxT = predict(theta_Kx3, problem.x_NxT)[0] - problem.y_NxT
        self._residuals.append(np.where(self._points.present_KxT, residual_KxT, 0.0))
        return problem, theta_Kx3

    def log_likelihood(self) -> tuple[np.ndarray, np.ndarray]:
        """Nodes of log s, ascending, and the log likelihood there less that of the best one, both K x G.

        −T_eff log σ(s): the scale is not known, so it is fitted too. What is an outlier, and how many points count as
        one, is decided by the residuals of the best s and is the same for all.
        """
        w_KxT = self._points.w_KxT
        share_KxT = w_KxT / np.maximum(w_KxT.sum(-1), TINY)[:, None]
        residual_GxKxT = np.array(self._residuals)
        best_KxT = np.take_along_axis(residual_GxKxT, np.argmin(self._f, 0)[None, :, None], 0)[0]
        cap_K = cap_of(best_KxT, share_KxT)
        scale_GxK = np.array([robust_scale(r_KxT, share_KxT, cap_K) for r_KxT in residual_GxKxT])
        effective_K = np.maximum(effective_points(best_KxT, w_KxT, scale_GxK.min(0)) - 4.0, 0.0)
        like_KxG = -(effective_K * self._effect.kept_K * np.log(scale_GxK / scale_GxK.min(0))).T
        nodes_KxG = np.array(self._nodes).T
        order = np.argsort(nodes_KxG, -1, kind="stable")
        return np.take_along_axis(nodes_KxG, order, -1), np.take_along_axis(like_KxG, order, -1)


def _moved(old: Problem, new: Problem, theta_Kx3: np.ndarray) -> np.ndarray:
    """The start at a new transfer: log β moves so that the level in the middle of the points stays."""
    shift_K = centre(new) - centre(old)
    return new.inside(theta_Kx3 + np.stack([theta_Kx3[:, 2] * shift_K, 0 * shift_K, 0 * shift_K], -1))


def _posterior(nodes_KxG: np.ndarray, like_KxG: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean of log s, the interval of s, and the standard deviation of log s, each of shape K.

    The likelihood is linear in log s between the nodes. What the prior has beyond the end nodes lies on them; there
    the interval is open: low 0, high ∞.
    """
    fine_F = np.linspace(math.log(ENDS[0]), math.log(ENDS[1]), _FINE)
    edge_F = (np.concatenate([[-np.inf], (fine_F[1:] + fine_F[:-1]) / 2, [np.inf]]) - _PRIOR[0]) / _PRIOR[1]
    prior_F = np.log(np.diff([0.5 * math.erfc(-edge / math.sqrt(2.0)) for edge in edge_F]))
    log_KxF = np.array([np.interp(fine_F, *row) for row in zip(nodes_KxG, like_KxG, strict=True)]) + prior_F
    mass_KxF = np.exp(log_KxF - log_KxF.max(-1, keepdims=True))
    mass_KxF /= mass_KxF.sum(-1, keepdims=True)
    mean_K = mass_KxF @ fine_F
    width_K = np.sqrt(np.maximum(mass_KxF @ fine_F**2 - mean_K**2, 0.0))
    below_KxF = np.cumsum(mass_KxF, -1)
    low_K, high_K = (_quantile(below_KxF, fine_F, tail) for tail in ((1 - COVERED) / 2, (1 + COVERED) / 2))
    low_K = np.where(low_K <= fine_F[0], 0.0, np.exp(low_K))
    high_K = np.where(high_K >= fine_F[-1], np.inf, np.exp(high_K))
    return mean_K, low_K, high_K, width_K


def _quantile(below_KxF: np.ndarray, fine_F: np.ndarray, tail: float) -> np.ndarray:
    """The node of the fine grid at which the cumulative mass reaches `tail`."""
    return fine_F[np.minimum((below_KxF < tail).sum(-1), len(fine_F) - 1)]
