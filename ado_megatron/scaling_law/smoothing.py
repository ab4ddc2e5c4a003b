"""From the snapshot of a history to the points of a fit: smoothed, thinned, weighted.

Legend: K domains, T rows (steps, or bins of steps), n samples seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.signal import savgol_filter

from ado_megatron.scaling_law.fit import fit_laws
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.scaling_law.options import LawOptions

_HUGE = 1e100  # a loss of this size is no loss


class FitPoints(NamedTuple):
    """What `fit_laws` takes."""

    n_TxK: np.ndarray  # own samples
    total_T: np.ndarray  # samples of all domains
    loss_TxK: np.ndarray
    weight_TxK: np.ndarray | None  # None: equal


def fit_history(
    arrays: Mapping[str, np.ndarray], options: LawOptions, transfer_K: ArrayLike | None = None
) -> Laws:
    """Laws of a snapshot: smooth, thin, fit. A pure function of picklable arrays, fit for a process of its own.

    transfer_K: s of each domain, where the options leave it to a file; None: what the options say.
    """
    options = options.resolved()
    points = fit_points(arrays, options)
    return fit_laws(points.n_TxK, points.loss_TxK, options, weight_TxK=points.weight_TxK, total_T=points.total_T,
                    transfer_K=transfer_K)


def fit_points(arrays: Mapping[str, np.ndarray], options: LawOptions) -> FitPoints:
    """The points of the fit. arrays: those of `LossHistory.snapshot`; options: resolved."""
    n, total, loss, tokens = (arrays[name] for name in ("n_TxK", "total_T", "loss_TxK", "tokens_TxK"))
    if options.smoothing == "bins":
        return FitPoints(n, total, loss, tokens if options.absent == "weight" else None)
    take = slice(options.ignore_steps, None, options.stride)
    return FitPoints(n[take], total[take], *_smoothed(loss, tokens, options, take))


def _smoothed(
    loss_TxK: np.ndarray, tokens_TxK: np.ndarray, options: LawOptions, take: slice
) -> tuple[np.ndarray, np.ndarray | None]:
    """Smoothed losses at the rows taken, and the weights of these points (None: equal)."""
    weight = tokens_TxK
    if options.smoothing == "savgol" and len(loss_TxK) >= options.smoothing_window:
        # the filter is linear over the whole column: one value that is not finite leaves nothing of its domain
        whole_K = (np.abs(loss_TxK) < _HUGE).all(0)
        kept = np.where(whole_K, loss_TxK, 1.0)
        smooth = savgol_filter(kept, options.smoothing_window, options.smoothing_order, axis=0)
        loss_TxK = np.where(whole_K, smooth, np.nan)
        # a smoothed point weighs the tokens of its window
        total = np.concatenate([np.zeros((1, tokens_TxK.shape[1])), np.cumsum(tokens_TxK, 0)])
        half, row_T = options.smoothing_window // 2, np.arange(len(tokens_TxK))
        weight = total[np.minimum(row_T + half + 1, len(tokens_TxK))] - total[np.maximum(row_T - half, 0)]
    return loss_TxK[take], (weight[take] if options.absent == "weight" else None)
