"""The HTML page of a report: one file, pictures inside it, no script, nothing loaded from anywhere.

What is on the page stands in templates/page.html; every text is escaped there.
"""

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
from ado_megatron.report.table import LEFT, columns, comparison_text, final_losses, gap_lines

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph and a picture (SVG in base64). note: the paragraph is set apart."""

    heading: str
    words: str
    svg: str
    note: bool = False


def svg_of(figure: Figure) -> str:
    """The figure as SVG in base64, so that it lies inside the page and stays sharp."""
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return base64.b64encode(out.getvalue()).decode()


def facts(run: Run) -> str:
    """What the run was and what its fits cost, in a sentence or two."""
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
    """The sections of the page that have something to show, in order."""
    for heading, words, figure in _mixture_and_losses(run, other):
        if figure is not None:
            yield Section(heading, words, svg_of(figure))
    if other is not None:
        what, ours_K, theirs_K = final_losses(run, other)
        gaps = figures.figure_gaps(run, ours_K - theirs_K, what[0].upper() + what[1:], other.name)
        yield Section(f"Against {other.name}", " ".join(comparison_text(run, other)), svg_of(gaps), note=True)
    yield Section("Diagnostics", "", svg_of(figures.figure_diagnostics(run, other)))


def _mixture_and_losses(run: Run, other: Run | None) -> Iterator[tuple[str, str, Figure | None]]:
    grey = f" Grey: {other.name}." if other is not None else ""
    n = {"own": "samples of the domain itself", "shared": "samples of all domains"}.get(
        run.config.transfer_text, "its own samples plus s times those of all domains"
    )
    yield ("Mixture", "The weights in force, stacked. White dashes: where the prior puts the borders.",
           figures.figure_mixture(run, other))  # fmt: skip
    yield ("Weights against the prior", "On a logarithmic axis: the same distance is the same factor.",
           figures.figure_weights(run, other))  # fmt: skip
    yield (
        "Losses and their laws",
        "Dots: mean loss of the domain's training tokens in a logging interval. Diamonds: validation. "
        f"Line: the law in force, L(n) = ε + β n^−α, n counted in {n}.{grey}"
        + (f" The {figures.MOST_PANELS} largest domains are shown." if len(run.names_K) > figures.MOST_PANELS else ""),
        figures.figure_losses(run, other),
    )
    yield (
        "Learning speed",
        "What one more thousand samples take off the loss by the law of each refit. "
        "Crosses: laws that were not accepted; the one before stayed in force.",
        figures.figure_speed(run),
    )
    yield "Credit", "The share of each domain in what was drawn lately.", figures.figure_credit(run)


def page(run: Run, other: Run | None) -> str:
    """The page's text. A variable that the template lacks is an error, not an empty place."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    table = columns(run)
    return environment.get_template("page.html").render(
        run=run, facts=facts(run), table=table, rows=list(zip(*(cells for _, cells in table), strict=True)), left=LEFT,
        gaps=gap_lines(run), sections=sections(run, other), options=json.dumps(run.config.to_dict(), indent=1),
    )  # fmt: skip


def save_page(run: Run, other: Run | None, path: Path) -> None:
    """Write the page. Raises OSError."""
    with matplotlib.rc_context(figures.STYLE):
        path.write_text(page(run, other), encoding="utf-8")
