"""The points of a fit, checked, and the objectives that they make for a given transfer.

Legend: K domains, T points, 3 = (log β, log ε, α).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.scaling_law.laws import effective_samples
from ado_megatron.scaling_law.objective import TINY, Problem
from ado_megatron.scaling_law.options import LawOptions


@dataclass(frozen=True)
class Points:
    """What was observed. Absent points have weight 0, loss 1 and n 1."""

    n_KxT: np.ndarray  # own samples; where total_T is None, the n of the law as it is
    total_T: np.ndarray | None  # samples of all domains
    y_KxT: np.ndarray  # log loss
    w_KxT: np.ndarray  # weights, scaled as the objective asks: their sum is T (sum) or 1 (mean)
    present_KxT: np.ndarray
    lower_Kx3: np.ndarray
    upper_Kx3: np.ndarray
    options: LawOptions  # resolved

    @classmethod
    def build(
        cls, n_T: ArrayLike, loss_TxK: ArrayLike, weight_TxK: ArrayLike | None, total_T: ArrayLike | None,
        transfer_K: np.ndarray, options: LawOptions,
    ) -> Points:  # fmt: skip
        """Points out of the arguments of `fit_laws`; transfer_K decides which n must be positive.

        Raises ValueError when the shapes do not fit together.
        """
        loss_TxK = np.asarray(loss_TxK, np.float64)
        if loss_TxK.ndim != 2:
            raise ValueError(f"loss_TxK must have two dimensions, not shape {loss_TxK.shape}")
        if len(loss_TxK) == 0:  # no rows: one absent point
            loss_TxK, n_T, weight_TxK = np.full((1, loss_TxK.shape[1]), np.nan), np.ones(1), None
            total_T = None if total_T is None else np.ones(1)
        n = np.asarray(n_T, np.float64)
        n_TxK = np.broadcast_to(n[:, None] if n.ndim == 1 else n, loss_TxK.shape)
        weight_TxK = 1.0 if weight_TxK is None else np.asarray(weight_TxK, np.float64)
        weight_TxK = np.broadcast_to(weight_TxK, loss_TxK.shape)
        if total_T is not None:
            total_T = np.broadcast_to(np.asarray(total_T, np.float64), loss_TxK.shape[:1])
        with np.errstate(invalid="ignore"):
            counted_TxK = n_TxK if total_T is None else effective_samples(n_TxK, total_T[:, None], transfer_K)
            present = (loss_TxK > 0) & np.isfinite(loss_TxK) & (counted_TxK > 0) & np.isfinite(counted_TxK)
            present &= (weight_TxK > 0) & np.isfinite(weight_TxK)
        y_KxT = np.log(np.where(present, loss_TxK, 1.0)).T
        bounds = _bounds(options, np.where(present.T, y_KxT, np.inf).min(-1, initial=np.inf))
        w_KxT = _scaled(np.where(present, weight_TxK, 0.0).T, present.sum(0), options)
        n_KxT = np.where(present | (n_TxK > 0), n_TxK, 1.0).T
        y_KxT, w_KxT = np.ascontiguousarray(y_KxT), np.ascontiguousarray(w_KxT)
        return cls(n_KxT, total_T, y_KxT, w_KxT, present.T, *bounds, options)

    def rows(self, index_M: np.ndarray) -> Points:
        """The points of the given domains."""
        names = ("n_KxT", "y_KxT", "w_KxT", "present_KxT", "lower_Kx3", "upper_Kx3")
        return dataclasses.replace(self, **{name: getattr(self, name)[index_M] for name in names})

    def problem(self, transfer_K: np.ndarray, time_effect_T: np.ndarray | float = 0.0) -> Problem:
        """The objectives for a transfer of each domain, with a common effect of time (of log loss) taken off."""
        n_KxT = self.n_KxT
        if self.total_T is not None:
            n_KxT = effective_samples(n_KxT, self.total_T, transfer_K[:, None])
        slope = np.inf if self.options.fit_bounds == "box" else self.options.fit_penalty
        x_KxT = np.log(np.where(self.present_KxT, n_KxT, 1.0))
        return Problem(np.ascontiguousarray(x_KxT), self.y_KxT - time_effect_T, self.w_KxT, self.lower_Kx3,
                       self.upper_Kx3, self.options.huber_delta, slope)


def _scaled(w_KxT: np.ndarray, count_K: np.ndarray, options: LawOptions) -> np.ndarray:
    """Weights whose sum is the number of points, or 1."""
    per_point = 1.0 / np.maximum(w_KxT.sum(-1), TINY)
    if options.fit_reduce == "sum":
        per_point = count_K * per_point
    return w_KxT * per_point[:, None]


def _bounds(options: LawOptions, lowest_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of (log β, log ε, α). Relative bounds of ε are shares of the lowest loss, whose logarithm is lowest_K."""
    lowest_K = np.where(np.isfinite(lowest_K), lowest_K, 0.0)
    lower, upper = np.full((len(lowest_K), 3), -np.inf), np.full((len(lowest_K), 3), np.inf)
    upper[:, 0] = options.log_beta_max
    lower[:, 2], upper[:, 2] = options.alpha_min, options.alpha_max
    if options.epsilon_bounds == "absolute":
        lower[:, 1] = options.log_epsilon_min
    else:
        lower[:, 1] = lowest_K + np.log(options.epsilon_min_share)
        upper[:, 1] = lowest_K + np.log(options.epsilon_max_share)
    return lower, upper
