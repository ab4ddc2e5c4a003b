"""What runs out, and what was drawn and not measured.

Legend: K domains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ado_megatron.blend.epoch_caps import forecast

LEAST_SAMPLES = 500  # of a domain between two refits, to speak of its tokens
ASTRAY = 0.03  # of the tokens of a sample


@dataclass(frozen=True, eq=False)
class Supply:
    """What each domain has, and how much of the run is left. cap_K: the most samples of each; None: no caps."""

    weights_K: np.ndarray
    length_K: np.ndarray
    drawn_K: np.ndarray
    cap_K: np.ndarray | None
    samples_left: float
    block_size: int


def runs_out_at(supply: Supply) -> dict[int, tuple[int, float, float]]:
    """domain → (blocks until it is at its cap, epochs drawn, cap in epochs), of those that get there before the end."""
    if supply.cap_K is None or supply.samples_left <= 0 or not supply.weights_K.sum() > 0:
        return {}
    out_K = forecast(supply.weights_K, supply.length_K, supply.drawn_K, supply.samples_left, supply.cap_K).runs_out_C
    length_K = np.maximum(supply.length_K, 1)
    return {
        int(k): (int(np.ceil(out_K[k] / supply.block_size)), supply.drawn_K[k] / length_K[k],
                 supply.cap_K[k] / length_K[k])
        for k in np.flatnonzero((out_K < supply.samples_left) & (supply.weights_K > 0))
    }  # fmt: skip


def tokens_astray(
    samples_K: np.ndarray, tokens_K: np.ndarray, per_sample_K: np.ndarray
) -> dict[int, tuple[float, float]]:
    """domain → (tokens of a sample now, before), of those that have clearly changed. All ranks' sums: a rank that does
    not train, or trains on other samples than the table gave it, is missed in them."""
    now_K = tokens_K / np.maximum(samples_K, 1)
    with np.errstate(invalid="ignore"):
        astray_K = (np.abs(now_K / per_sample_K - 1) > ASTRAY) & (samples_K >= LEAST_SAMPLES)
    return {int(k): (float(now_K[k]), float(per_sample_K[k])) for k in np.flatnonzero(astray_K)}
