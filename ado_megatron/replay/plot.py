"""The drawing of `ado-megatron replay`: one column a variant; weights above, losses and the last laws below.

Legend: K domains, T steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ado_megatron.replay.trace import Trace

if TYPE_CHECKING:
    from ado_megatron.replay.command import Replay

NAMED = 12  # domains in the legend, those with the largest weights


def draw(path: str | Path, trace: Trace, results: dict[str, Replay]) -> None:
    """Writes the image. results: label → Replay. Raises OSError, and ValueError for a format that is not known."""
    with matplotlib.rc_context({"text.parse_math": False}):  # a domain may have dollars in its name
        figure = Figure(figsize=(5.5 * len(results), 7), layout="tight")
        axes = figure.subplots(2, len(results), squeeze=False, sharex=True, sharey="row")
        for column, (label, result) in enumerate(results.items()):
            _draw_weights(axes[0, column], trace, result, label)
            _draw_losses(axes[1, column], trace, result)
        axes[0, 0].set_ylabel("weight")
        axes[1, 0].set_ylabel("loss (points) and last law (line), nats")
        figure.savefig(path, dpi=120)


def _in_order(result: Replay) -> list[tuple[int, tuple[float, ...]]]:
    """(domain, colour), the domains with the largest weights first."""
    order = np.argsort(-result.weights_TxK.max(0)).tolist()
    return [(k, matplotlib.colormaps["tab20"](k % 20)) for k in order]


def _draw_weights(axes: Axes, trace: Trace, result: Replay, label: str) -> None:
    for place, (k, color) in enumerate(_in_order(result)):
        axes.plot(result.weights_TxK[:, k], color=color, lw=1, label=trace.names_K[k] if place < NAMED else None)
    axes.set_title(label, fontsize=9)
    axes.legend(fontsize=6)


def _draw_losses(axes: Axes, trace: Trace, result: Replay) -> None:
    own_TxK = np.maximum(np.cumsum(trace.counts_TxK, 0), 1)
    last = result.fits_R[-1] if result.fits_R else None
    law_TxK = None if last is None else last.loss(last.effective_n(own_TxK))
    for k, color in _in_order(result):
        seen_T = np.where(trace.counts_TxK[:, k] > 0, trace.loss_TxK[:, k], np.nan)
        axes.plot(seen_T, color=color, lw=0.4, alpha=0.5)
        if law_TxK is not None and result.fits_R[-1].ok_K[k]:
            axes.plot(law_TxK[:, k], color=color, lw=1)
    axes.set_xlabel("step")
    measured = trace.loss_TxK[np.isfinite(trace.loss_TxK)]
    if len(measured):  # the first steps fall from log(vocabulary) and would flatten all that follows
        low, high = np.quantile(measured, [0.001, 0.999])
        axes.set_ylim(0.9 * low, 1.05 * high + 1e-9)
