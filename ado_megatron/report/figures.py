"""The pictures of a report. Every function draws into axes it is given or returns a figure; nothing reads a file.

Legend: K domains, S logging intervals, R refits.
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
from ado_megatron.scaling_law.laws import Laws

MOST_POINTS = 400  # intervals drawn at most
MOST_PANELS = 24  # domains with a panel of their own
GREY = "#8a8f98"
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
    """Domains in the order of the prior, largest first."""
    return np.argsort(-run.prior_K, kind="stable")


def draw_mixture(axes: Axes, run: Run, title: str) -> None:
    """The weights in force as stacked areas; white dashes where the prior would put the borders."""
    run = run.thinned(MOST_POINTS)
    order, palette = by_weight(run), colors(len(run.names_K))
    step = np.concatenate([[0], run.step_S])
    weights = np.vstack([run.prior_K / max(run.prior_K.sum(), 1e-300), run.weights_SxK])[:, order]
    axes.stackplot(step, weights.T, colors=[palette[k] for k in order], linewidth=0, step=None)
    for border in np.cumsum(run.prior_K[order])[:-1]:
        axes.axhline(border, color="white", linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set(xlim=(0, step[-1]), ylim=(0, 1), title=title, xlabel="step")
    axes.yaxis.set_major_formatter(percent)
    axes.grid(False)


def draw_legend(axes: Axes, run: Run) -> None:
    """Names beside the stacked areas, in the order of the stack from the top."""
    palette = colors(len(run.names_K))
    handles = [matplotlib.patches.Patch(color=palette[k], label=run.names_K[k]) for k in by_weight(run)[::-1]]
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


def draw_domain(axes: Axes, run: Run, k: int, other: Run | None, *, detail: bool = True) -> None:
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
    if detail and len(run.validation_step_V):
        axes.plot(run.validation_step_V, run.validation_VxK[:, k], "D", color="white", markeredgecolor=color,
                  markersize=4)  # fmt: skip
    values = np.concatenate(losses)
    values = values[np.isfinite(values)]
    if len(values):  # the first steps fall from log(vocabulary) and would flatten all that follows
        low, high = values.min(), np.quantile(values, 0.97)
        axes.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.1 * (high - low) + 1e-3)
    axes.set_xlim(0, run.step_S[-1])
    axes.set_title(run.names_K[k], color=color)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))


def figure_losses(run: Run, other: Run | None) -> Figure:
    """A panel a domain: dots, the law as a line, validation as diamonds."""
    run, other = run.thinned(MOST_POINTS), None if other is None else other.thinned(MOST_POINTS)
    shown = by_weight(run)[:MOST_PANELS]
    across = min(4, len(shown))
    down = math.ceil(len(shown) / across)
    figure = Figure(figsize=(12, 2.3 * down + 0.3), layout="constrained")
    panels = np.atleast_1d(figure.subplots(down, across, squeeze=False)).ravel()
    for axes, k in zip(panels, shown, strict=False):
        draw_domain(axes, run, k, other)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("loss, nats a token", fontsize=9)
    return figure


def figure_mixture(run: Run, other: Run | None) -> Figure:
    """Stacked areas of the run; of the other run below it where there is one whose weights moved."""
    arms = [run]
    if other is not None and not np.allclose(other.weights_SxK, other.weights_SxK[:1], atol=1e-3):
        arms.append(other)
    figure = Figure(figsize=(12, 3.6 * len(arms)), layout="constrained")
    for axes, arm in zip(figure.subplots(len(arms), 1, squeeze=False).ravel(), arms, strict=True):
        draw_mixture(axes, arm, f"Mixture of {arm.name}")
        draw_legend(axes, arm)
    return figure


def figure_speed(run: Run) -> Figure | None:
    """−dL/dn of each refit's laws at the n of that refit; None when no law was fitted."""
    fits = [fit for fit in run.fits if fit.failed is None]
    if not fits:
        return None
    at = np.clip(np.searchsorted(run.step_S, [fit.step for fit in fits]), 0, len(run.step_S) - 1)
    speed_RxK = np.array([
        Laws.given(fit.law_Kx3, fit.transfer_K).speed(run.n_SxK(fit.law_Kx3, fit.transfer_K)[s])
        for fit, s in zip(fits, at, strict=True)
    ])  # fmt: skip
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    axes = figure.subplots()
    for k in by_weight(run):
        ok_R = np.array([fit.ok_K[k] for fit in fits])
        color = colors(len(run.names_K))[k]
        steps_R = np.array([fit.step for fit in fits])
        axes.plot(steps_R, 1000 * speed_RxK[:, k], "-", color=color, linewidth=1, alpha=0.5)
        axes.plot(steps_R[ok_R], 1000 * speed_RxK[ok_R, k], "o", color=color, markersize=3.5, label=run.names_K[k])
        axes.plot(steps_R[~ok_R], 1000 * speed_RxK[~ok_R, k], "x", color=color, markersize=4)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(plain)
    axes.set(title="Learning speed −dL/dn", xlabel="step", ylabel="nats per 1,000 samples")
    draw_legend(axes, run)
    return figure


def figure_credit(run: Run) -> Figure | None:
    """h of each refit; None where the profile does not use the credit, or none was written."""
    fits = [fit for fit in run.fits if np.isfinite(fit.credit_K).all()]
    if run.config.credit_exponent == 0.0 or not fits:
        return None
    figure = Figure(figsize=(12, 3.0), layout="constrained")
    axes = figure.subplots()
    for k in by_weight(run):
        credit_R = [fit.credit_K[k] for fit in fits]
        color = colors(len(run.names_K))[k]
        axes.plot([fit.step for fit in fits], credit_R, "o-", color=color, markersize=3, linewidth=1)
    axes.set(title="Credit h", xlabel="step")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(percent)
    draw_legend(axes, run)
    return figure


def figure_weights(run: Run, other: Run | None) -> Figure:
    """Prior, mean and weights now, a row a domain; beside them what the other run drew."""
    figure = Figure(figsize=(12, 1.4 + 0.28 * len(run.names_K)), layout="constrained")
    draw_weights(figure.subplots(), run, other)
    return figure


def figure_gaps(run: Run, gap_K: np.ndarray, what: str, name: str) -> Figure:
    """The difference of the final losses, a bar a domain."""
    order = by_weight(run)[::-1]
    figure = Figure(figsize=(12, 1.2 + 0.26 * len(order)), layout="constrained")
    axes = figure.subplots()
    palette = colors(len(order))
    axes.barh(np.arange(len(order)), np.nan_to_num(gap_K[order]), color=[palette[k] for k in order], height=0.65)
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set_yticks(np.arange(len(order)), [run.names_K[k] for k in order])
    axes.set(title=f"{what}: {run.name} minus {name}, nats (left of zero: lower here)")
    return figure


def figure_diagnostics(run: Run, other: Run | None) -> Figure:
    """The loss of all tokens, how well the laws fit, what the fits cost, and the speed of training."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    loss_axes, rms_axes, time_axes, rate_axes = figure.subplots(2, 2).ravel()
    for arm, color in [(run, "#2563eb")] + ([(other, GREY)] if other is not None else []):
        for axes, what in ((loss_axes, "loss"), (rate_axes, "samples_per_second")):
            axes.plot(arm.progress["step"], arm.progress[what], color=color, linewidth=1, label=arm.name)
    loss_axes.set_title("Loss of all tokens (depends on the mixture)")
    rate_axes.set_title("Samples a second")
    rate_axes.set_ylim(bottom=0)
    for axes in (loss_axes, rate_axes):
        if axes.lines and other is not None:
            axes.legend(fontsize=8)
    fits = [fit for fit in run.fits if fit.failed is None]
    for k in by_weight(run):
        rms_axes.plot([fit.step for fit in fits], [fit.rms_K[k] for fit in fits], color=colors(len(run.names_K))[k],
                      linewidth=1)  # fmt: skip
    rms_axes.set_title("Residual of the laws, RMS of log loss")
    steps = [fit.step for fit in run.fits]
    line = dict(markersize=3, linewidth=1)
    time_axes.plot(steps, [fit.seconds for fit in run.fits], "o-", label="fit, beside training", **line)
    time_axes.plot(steps, [fit.wait_seconds for fit in run.fits], "s-", label="training waited", **line)
    time_axes.set_title("Seconds of each refit")
    if steps:
        time_axes.legend(fontsize=8)
    for axes in (loss_axes, rms_axes, time_axes, rate_axes):
        axes.set_xlim(0, run.step_S[-1])
        axes.set_xlabel("step", fontsize=8)
    return figure


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
        draw_domain(axes, run, k, other, detail=False)
    note = "Loss of each domain over steps, nats a token. Dots: measured. Line: its scaling law."
    bottom.suptitle(note + (f" Grey: {other.name}." if other is not None else ""), fontsize=9, x=0.01, ha="left")
    return figure


def save_overview(run: Run, other: Run | None, path: Path) -> None:
    """The overview as a PNG of 200 colours: half the size, and no eye sees the difference."""
    drawn = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        overview(run, other).savefig(drawn, dpi=100)
    Image.open(drawn).convert("RGB").quantize(200, dither=Image.Dither.NONE).save(path, optimize=True)
