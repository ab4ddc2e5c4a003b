"""From a cut history to the points of a fit: smoothed, thinned, weighted.

Legend: K domains, T rows (steps, or bins of steps), n samples seen.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import savgol_filter

from ado_megatron.scaling_law.fit import fit_laws
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.scaling_law.options import LawOptions

_HUGE = 1e100  # a loss of this size is no loss


def fit_history(arrays: dict[str, np.ndarray], config: LawOptions) -> Laws:
    """Laws of a cut history: smooth, thin, fit. A pure function of picklable arrays, fit for a process of its own."""
    config = config.resolved()
    n_TxK, loss_TxK, weight_TxK = fit_points(arrays, config)
    return fit_laws(n_TxK, loss_TxK, config, weight_TxK=weight_TxK)


def fit_points(arrays: dict[str, np.ndarray], config: LawOptions):
    """The points of the fit: n (T or T x K), loss T x K, and weights T x K or None."""
    n = arrays["n_TxK"] if config.own_n else arrays["total_T"]
    loss, tokens = arrays["loss_TxK"], arrays["tokens_TxK"]
    if config.smoothing == "bins":
        return n, loss, (tokens if config.absent == "weight" else None)
    take = slice(config.ignore_steps, None, config.stride)
    loss, tokens = _smoothed(loss, tokens, config, take)
    return n[take], loss, tokens


def _smoothed(loss_TxK, tokens_TxK, config, take):
    """Smoothed losses at the rows taken, and the weights of these points (None: equal)."""
    weight = tokens_TxK
    if config.smoothing == "savgol" and len(loss_TxK) >= config.smoothing_window:
        # the filter is linear over the whole column: one value that is not finite leaves nothing of its domain
        whole_K = (np.abs(loss_TxK) < _HUGE).all(0)
        kept = np.where(whole_K, loss_TxK, 1.0)
        smooth = savgol_filter(kept, config.smoothing_window, config.smoothing_order, axis=0)
        loss_TxK = np.where(whole_K, smooth, np.nan)
        # a smoothed point weighs the tokens of its window
        total = np.concatenate([np.zeros((1, tokens_TxK.shape[1])), np.cumsum(tokens_TxK, 0)])
        half, row_T = config.smoothing_window // 2, np.arange(len(tokens_TxK))
        weight = total[np.minimum(row_T + half + 1, len(tokens_TxK))] - total[np.maximum(row_T - half, 0)]
    return loss_TxK[take], (weight[take] if config.absent == "weight" else None)
