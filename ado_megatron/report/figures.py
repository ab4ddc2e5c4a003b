"""The picture of a report, for papers. Every function draws into axes it is given; nothing reads a file.

Legend: K domains, S logging intervals.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from PIL import Image

from ado_megatron.report.data import Run

MOST_POINTS = 400  # intervals drawn at most
MOST_SHOWN = 24  # domains in the picture; the others are one area
GREY = "#8a8f98"
OTHERS = "#d5d9de"
STYLE: dict[str, Any] = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.edgecolor": "#c3c7cd", "axes.labelcolor": "#4a4f57",
    "xtick.color": "#4a4f57", "ytick.color": "#4a4f57", "axes.grid": True, "grid.color": "#eceef1",
    "legend.frameon": False, "text.parse_math": False, "svg.fonttype": "none", "figure.facecolor": "white",
    "axes.axisbelow": True,
}  # fmt: skip
percent = FuncFormatter(lambda value, _: f"{100 * value:g} %")
plain = FuncFormatter(lambda value, _: f"{value:g}")


def colors(num: int) -> list[tuple[float, ...]]:
    """One colour a domain: nine distinct ones, then around the wheel. Grey is the other run's."""
    if num <= 9:
        return [color for k, color in enumerate(matplotlib.colormaps["tab10"](range(10))) if k != 7][:num]
    return [matplotlib.colormaps["hsv"](k / num) for k in range(num)]


def by_weight(run: Run) -> np.ndarray:
    """The domains that are shown in the order of the prior, largest first."""
    return np.argsort(-run.prior_K, kind="stable")[:MOST_SHOWN]


def draw_mixture(axes: Axes, run: Run, title: str) -> None:
    """The weights in force as stacked areas; white dashes where the prior would put the borders."""
    run = run.thinned(MOST_POINTS)
    order, palette = by_weight(run), colors(len(run.names_K))
    step = np.concatenate([[0], run.step_S])
    weights = np.vstack([run.prior_K / max(run.prior_K.sum(), 1e-300), run.weights_SxK])[:, order]
    rest = np.maximum(1 - weights.sum(1), 0)
    axes.stackplot(step, *weights.T, rest, colors=[*(palette[k] for k in order), OTHERS], linewidth=0, step=None)
    for border in np.cumsum(run.prior_K[order])[: len(run.names_K) - 1]:
        axes.axhline(border, color="white", linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set(xlim=(0, step[-1]), ylim=(0, 1), title=title, xlabel="step")
    axes.yaxis.set_major_formatter(percent)
    axes.grid(False)


def draw_legend(axes: Axes, run: Run) -> None:
    """Names beside the stacked areas, in the order of the stack from the top."""
    palette = colors(len(run.names_K))
    handles = [matplotlib.patches.Patch(color=palette[k], label=run.names_K[k]) for k in by_weight(run)[::-1]]
    if len(run.names_K) > len(handles):
        left = f"{len(run.names_K) - len(handles):,} others"
        handles.insert(0, matplotlib.patches.Patch(color=OTHERS, label=left))
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=math.ceil(len(handles) / 26),
                handlelength=0.9, handleheight=0.9, labelspacing=0.35, fontsize=8)  # fmt: skip


def draw_weights(axes: Axes, run: Run, other: Run | None) -> None:
    """Prior, mean over the run, and now, a row a domain, on a logarithmic axis."""
    order = by_weight(run)[::-1]
    palette = colors(len(run.names_K))
    rows = np.arange(len(order))
    mean_K = run.counts_SxK.sum(0) / run.counts_SxK.sum()
    now_K = run.weights_SxK[-1]
    axes.hlines(rows, run.prior_K[order], now_K[order], color=[palette[k] for k in order], linewidth=2, alpha=0.5)
    axes.scatter(run.prior_K[order], rows, facecolors="white", edgecolors="#333333", s=28, label="prior", zorder=3)
    axes.scatter(mean_K[order], rows, marker="|", color="#333333", s=60, label="drawn, whole run", zorder=3)
    axes.scatter(now_K[order], rows, color=[palette[k] for k in order], s=34, label="now", zorder=4)
    if other is not None:
        share_K = other.counts_SxK.sum(0) / other.counts_SxK.sum()
        axes.scatter(share_K[order], rows, marker="x", color=GREY, s=26, label=f"drawn, {other.name}", zorder=2)
    axes.set_yticks(rows, [run.names_K[k] for k in order])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(percent)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title("Weights against the prior")
    legend = axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.45, -0.09), ncols=4, handletextpad=0.2,
                         columnspacing=1.0)  # fmt: skip
    for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
        if text.get_text() == "now":  # of all colours, not of the first domain's
            handle.set_facecolor("#333333")  # type: ignore[union-attr]  # of a scatter plot it is a collection


def draw_domain(axes: Axes, run: Run, k: int, other: Run | None) -> None:
    """One domain's measured losses over steps, its law in force, and the other run in grey."""
    color = colors(len(run.names_K))[k]
    losses = [run.loss_SxK[:, k]]
    if other is not None:
        axes.plot(other.step_S, other.loss_SxK[:, k], ".", color=GREY, markersize=2.5, alpha=0.6)
        losses.append(other.loss_SxK[:, k])
    axes.plot(run.step_S, run.loss_SxK[:, k], ".", color=color, markersize=3.5, alpha=0.75)
    law_SxK = run.laws().loss(run.law_n_SxK)
    if np.isfinite(law_SxK[:, k]).any():
        used = run.step_S > run.config.ignore_steps
        axes.plot(run.step_S[used], law_SxK[used, k], color="#1a1a1a", linewidth=1.3)
    values = np.concatenate(losses)
    values = values[np.isfinite(values)]
    if len(values):  # the first steps fall from log(vocabulary) and would flatten all that follows
        low, high = values.min(), np.quantile(values, 0.97)
        axes.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.1 * (high - low) + 1e-3)
    axes.set_xlim(0, run.step_S[-1])
    axes.set_title(run.names_K[k], color=color)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def overview(run: Run, other: Run | None) -> Figure:
    """One picture of it all: the mixture, the weights against the prior, the losses with their laws."""
    run, other = run.thinned(MOST_POINTS), None if other is None else other.thinned(MOST_POINTS)
    shown = by_weight(run)[:8]
    across = min(4, len(shown))
    down = math.ceil(len(shown) / across)
    figure = Figure(figsize=(12, 3.9 + 1.9 * down), layout="constrained")
    rows = figure.subfigures(2, 1, squeeze=False, height_ratios=[3.6, 0.3 + 1.9 * down])
    top, bottom = rows[0, 0], rows[1, 0]
    left, right = top.subplots(1, 2, width_ratios=[1.9, 1])
    draw_mixture(left, run, "Mixture over the run (dashes: prior)")
    draw_legend(left, run)
    draw_weights(right, run, other)
    for axes, k in zip(bottom.subplots(down, across, squeeze=False).ravel(), shown, strict=False):
        draw_domain(axes, run, k, other)
    note = "Loss of each domain over steps, nats a token. Dots: measured. Line: its scaling law."
    bottom.suptitle(note + (f" Grey: {other.name}." if other is not None else ""), fontsize=9, x=0.01, ha="left")
    return figure


def save_overview(run: Run, other: Run | None, path: Path) -> None:
    """The overview as a PNG of 200 colours: half the size, and no eye sees the difference."""
    drawn = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        overview(run, other).savefig(drawn, dpi=100)
    Image.open(drawn).convert("RGB").quantize(200, dither=Image.Dither.NONE).save(path, optimize=True)
