"""A domain's loss since the last refit: its mean, its error, and what its law had foretold.

Legend: K domains, T rows of the history, 3 = (log β, log ε, α). Losses are logarithms where they are called y.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ado_megatron.scaling_law.laws import Laws, effective_samples

LEAST_ROWS = 8  # rows with tokens of a domain in a window


@dataclass(frozen=True, eq=False)
class Window:
    """Means over the tokens of the last rows of a history. nan where a domain has too few."""

    first_step_K: np.ndarray  # the first step that counts
    y_K: np.ndarray  # log loss
    error_K: np.ndarray  # its standard error
    n_K: np.ndarray  # own samples, in the middle
    total_K: np.ndarray  # those of all domains

    @classmethod
    def of(cls, rows: Mapping[str, np.ndarray], since: int) -> Window:
        """Of the rows from step `since` on, and so many before that there are LEAST_ROWS.

        rows: LossHistory.snapshot."""
        first = int(np.searchsorted(rows["step_T"], since))
        while first > 0 and (_seen(rows, first).sum(0) < LEAST_ROWS).any():  # a long history is seldom needed whole
            first = max(0, first - max(LEAST_ROWS, len(rows["step_T"]) - first))
        seen_TxK, rows = _seen(rows, first), {name: array[first:] for name, array in rows.items()}
        tokens_TxK, loss_TxK = rows["tokens_TxK"], rows["loss_TxK"]
        after_TxK = np.cumsum(seen_TxK[::-1], 0)[::-1]  # seen rows from this one on
        recent_TxK = (rows["step_T"] >= since)[:, None] | (after_TxK <= LEAST_ROWS)
        weight_TxK = np.where(seen_TxK & recent_TxK, tokens_TxK, 0.0)
        enough_K = (weight_TxK > 0).sum(0) >= LEAST_ROWS
        sum_K = np.where(enough_K, weight_TxK.sum(0), np.nan)
        y_TxK = np.log(np.where(weight_TxK > 0, loss_TxK, 1.0))
        first_K = rows["step_T"][np.argmax(weight_TxK > 0, 0)] if len(y_TxK) else np.zeros(len(sum_K))
        return cls(
            first_K, (weight_TxK * y_TxK).sum(0) / sum_K, np.sqrt(_unit_variance(y_TxK, weight_TxK) / sum_K),
            (weight_TxK * rows["n_TxK"]).sum(0) / sum_K, (weight_TxK * rows["total_T"][:, None]).sum(0) / sum_K,
        )  # fmt: skip


def _seen(rows: Mapping[str, np.ndarray], first: int) -> np.ndarray:
    """Which domains have a loss in the rows from the first on, seen_TxK."""
    tokens_TxK, loss_TxK = rows["tokens_TxK"][first:], rows["loss_TxK"][first:]
    with np.errstate(invalid="ignore"):
        return (tokens_TxK > 0) & (loss_TxK > 0) & np.isfinite(loss_TxK)


def _unit_variance(y_TxK: np.ndarray, weight_TxK: np.ndarray) -> np.ndarray:
    """Variance of y for one token, by the differences of neighbours: a trend hardly counts."""
    variance_K = np.full(y_TxK.shape[1], np.nan)
    y_KxT, weight_KxT = np.ascontiguousarray(y_TxK.T), np.ascontiguousarray(weight_TxK.T)  # for the cache
    for k, (y_T, weight_T) in enumerate(zip(y_KxT, weight_KxT, strict=True)):
        seen_T = weight_T > 0
        y, w = y_T[seen_T], weight_T[seen_T]
        if len(y) > 1:
            one = 1 / w
            variance_K[k] = np.add.reduce((y[1:] - y[:-1]) ** 2 / (one[1:] + one[:-1])) / (len(y) - 1)
    return variance_K


@dataclass(frozen=True, eq=False)
class Reference:
    """Laws, and the samples up to which they were fitted."""

    laws: Laws
    n_K: np.ndarray
    total_K: np.ndarray  # of all domains; laws of different refits stand side by side

    def foretold(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """(log of the loss that the laws foretold for a window, its standard error); nan without a law.

        L = ε + P g^(−α) with P = L − ε at the last fitted point and g the growth since. How much of the samples of
        other domains counts is not known well, so g is the least of three: of the law's n, of n_k and of N. An own-n
        law would else call every domain that is drawn more than before a bad one.
        """
        laws = self.laws
        n_K = effective_samples(window.n_K, window.total_K, laws.transfer_K)
        then_K = effective_samples(self.n_K, self.total_K, laws.transfer_K)
        with np.errstate(invalid="ignore", divide="ignore"):
            growth_K = np.minimum(n_K / then_K, np.minimum(window.n_K / self.n_K, window.total_K / self.total_K))
            growth_K = np.maximum(growth_K, 1.0)
            log_n_K = np.log(then_K) + np.log(growth_K)
            loss_K = laws.loss(np.exp(log_n_K))
            part_K = 1.0 - np.exp(laws.log_epsilon_K) / loss_K  # of the loss that is reducible
        slope_Kx3 = np.stack([part_K, 1.0 - part_K, -part_K * log_n_K], -1)
        variance_K = np.einsum("ki,kij,kj->k", slope_Kx3, laws.covariance_Kx3x3, slope_Kx3)
        known_K = laws.ok_K & np.isfinite(loss_K)
        return np.where(known_K, np.log(loss_K), np.nan), np.sqrt(np.maximum(variance_K, 0.0))
