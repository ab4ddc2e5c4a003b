"""The HTML page of a report: one file, pictures inside it, no script, nothing loaded from anywhere."""
from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2
import matplotlib
from matplotlib.figure import Figure

from ado_megatron.report import figures
from ado_megatron.report.data import Run
from ado_megatron.report.table import LEFT, columns, comparison_text, final_losses


@dataclass(frozen=True)
class Section:
    """One picture of the page. note: its words stand apart from the text."""

    heading: str
    words: str
    figure: Figure | None
    note: bool = False

    @property
    def svg(self) -> str:
        """The picture as base64 of an SVG, so that it stays sharp and nothing has to be loaded."""
        out = io.BytesIO()
        assert self.figure is not None, "a section without a picture is left out"
        self.figure.savefig(out, format="svg", metadata={"Date": None})
        return base64.b64encode(out.getvalue()).decode()


def facts(run: Run) -> str:
    """Steps, samples, refits: the first line of the page."""
    samples, tokens = run.counts_SxK.sum(), run.tokens_SxK.sum()
    made = [fit for fit in run.fits if fit.failed is None]
    words = f"{run.step_S[-1]:,} steps, {samples:,} samples, {tokens:,.0f} tokens. Policy {run.config.policy}"
    words += f", profile {run.config.profile}. " if run.config.policy == "ado" else ". "
    words += f"{len(made)} refits" + (f", {len(run.fits) - len(made)} failed" if len(made) < len(run.fits) else "")
    if run.fits:
        words += f", {sum(fit.seconds for fit in run.fits):.2f} s of fitting beside the training, which waited "
        words += f"{sum(fit.wait_seconds for fit in run.fits):.2f} s for it"
    return words + "."


def sections(run: Run, other: Run | None) -> Iterator[Section]:
    """The sections of the page, in order."""
    grey = f" Grey: {other.name}." if other is not None else ""
    n = "samples of the domain itself" if run.config.own_n else "samples of all domains"
    yield Section("Mixture", "The weights in force, stacked. White dashes: where the prior puts the borders.",
                  figures.figure_mixture(run, other))  # fmt: skip
    yield Section("Weights against the prior", "On a logarithmic axis: the same distance is the same factor.",
                  figures.figure_weights(run, other))  # fmt: skip
    yield Section(
        "Losses and their laws",
        "Dots: mean loss of the domain's training tokens in a logging interval. Diamonds: validation. "
        f"Line: the law in force, L(n) = ε + β n^−α, n counted in {n}.{grey}"
        + (f" The {figures.MOST_PANELS} largest domains are shown." if len(run.names_K) > figures.MOST_PANELS else ""),
        figures.figure_losses(run, other),
    )
    yield Section(
        "Learning speed",
        "What one more thousand samples take off the loss by the law of each refit. "
        "Crosses: laws that were not accepted; the one before stayed in force.",
        figures.figure_speed(run),
    )
    yield Section("Credit", "The share of each domain in what was drawn lately.", figures.figure_credit(run))
    if other is not None:
        what, ours_K, theirs_K = final_losses(run, other)
        gaps = figures.figure_gaps(run, ours_K - theirs_K, what[0].upper() + what[1:], other.name)
        yield Section(f"Against {other.name}", " ".join(comparison_text(run, other)), gaps, note=True)
    yield Section("Diagnostics", "", figures.figure_diagnostics(run, other))


def page(run: Run, other: Run | None) -> str:
    """The whole page, from templates/page.html; every text in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ado_megatron.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )  # fmt: skip
    table = columns(run)
    return environment.get_template("page.html").render(
        name=run.name,
        facts=facts(run),
        table=[{"heading": heading, "left": heading in LEFT} for heading, _ in table],
        rows=list(zip(*(cells for _, cells in table), strict=True)),
        sections=[section for section in sections(run, other) if section.figure is not None],
        options=json.dumps(run.config.to_dict(), indent=1),
    )


def save_page(run: Run, other: Run | None, path: Path) -> None:
    """Write the page."""
    with matplotlib.rc_context(figures.STYLE):
        path.write_text(page(run, other), encoding="utf-8")
