"""The picture of `ado-megatron simulate`: gains over the prior, and the mixture of every arm over its run.

Legend: K domains, S blocks, R seeds.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ado_megatron.report.figures import GREY, MOST_POINTS, STYLE, colors, percent
from ado_megatron.simulate.arms import ArmResult, Comparison


def draw(result: Comparison, path: Path) -> None:
    """Write the picture; the format follows the suffix of the path."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.5 + 2.6 * len(result.arms), 3.6), layout="constrained")
        first, *rest = figure.subplots(1, 1 + len(result.arms), width_ratios=[1.5, *[1] * len(result.arms)])
        draw_gains(first, result)
        for axes, arm in zip(rest, result.arms, strict=True):
            draw_shares(axes, result, arm)
        names_K = result.setting.file.names_K
        palette = zip(colors(len(names_K)), names_K, strict=True)
        handles = [matplotlib.patches.Patch(color=color, label=name) for color, name in palette]
        figure.legend(handles=handles[::-1], loc="outside right upper", fontsize=8)
        figure.savefig(path, dpi=120)


def draw_gains(axes: Axes, result: Comparison) -> None:
    """A point a seed, a bar at their mean; dashes at the best fixed mixture."""
    place = np.arange(len(result.arms))[::-1]
    for y, arm in zip(place, result.arms, strict=True):
        axes.barh(y, arm.gain_R.mean(), height=0.55, color=GREY, alpha=0.6)
        axes.scatter(arm.gain_R, np.full(len(arm.gain_R), y), color="#333333", s=14, zorder=3)
    axes.axvline(0.0, color="#333333", linewidth=0.8)
    axes.axvline(result.prior_loss - result.best_loss, color="#333333", linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_yticks(place, [arm.name for arm in result.arms])
    axes.set(xlabel="nats over the prior (dashes: best fixed)", title="gain")
    axes.grid(False, axis="y")


def draw_shares(axes: Axes, result: Comparison, arm: ArmResult) -> None:
    """The weights of the first seed as stacked areas; white dashes where the prior would put the borders."""
    weights_SxK = arm.first.weights_SxK
    at_S = np.unique(np.linspace(0, len(weights_SxK) - 1, MOST_POINTS).astype(int))
    axes.stackplot(at_S, weights_SxK[at_S].T, colors=colors(weights_SxK.shape[1]), linewidth=0)
    for border in np.cumsum(result.setting.prior_K)[:-1]:
        axes.axhline(border, color="white", linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set(xlim=(0, max(at_S[-1], 1)), ylim=(0, 1), title=arm.name, xlabel="step")
    axes.yaxis.set_major_formatter(percent)
    axes.grid(False)
