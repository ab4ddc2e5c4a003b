"""The HTML page of a report: one file, pictures inside it, no script, nothing loaded from anywhere."""
from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from ado_megatron.report import figures
from ado_megatron.report.data import Run
from ado_megatron.report.table import LEFT, columns, comparison_text, final_losses

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .3rem; }
p { max-width: 60rem; } .quiet { color: #5b626b; } img { width: 100%; } code { font-size: .9em; }
table { border-collapse: collapse; font-size: .85rem; } td, th { padding: .25rem .6rem; text-align: right; }
th { border-bottom: 1px solid #c3c7cd; } td { border-bottom: 1px solid #eceef1; font-variant-numeric: tabular-nums; }
.left { text-align: left; } .scroll { overflow-x: auto; }
.note { display: block; background: #f6f7f9; padding: .6rem 1rem; }
pre { background: #f6f7f9; padding: 1rem; font-size: .8rem; overflow-x: auto; }
"""


def picture(figure: Figure, words: str) -> str:
    """The figure as an image inside the page: SVG, so that it stays sharp."""
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img alt="{html.escape(words)}" src="data:image/svg+xml;base64,{data}">'


def html_table(run: Run) -> str:
    table = columns(run)
    left = [' class="left"' if heading in LEFT else "" for heading, _ in table]
    head = "".join(f"<th{side}>{html.escape(heading)}</th>" for side, (heading, _) in zip(left, table, strict=True))
    rows = [
        "<tr>" + "".join(f"<td{side}>{html.escape(cell)}</td>" for side, cell in zip(left, row, strict=True)) + "</tr>"
        for row in zip(*(cells for _, cells in table), strict=True)
    ]
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def facts(run: Run) -> str:
    samples, tokens = run.counts_SxK.sum(), run.tokens_SxK.sum()
    made = [fit for fit in run.fits if fit.failed is None]
    words = f"{run.step_S[-1]:,} steps, {samples:,} samples, {tokens:,.0f} tokens. Policy {run.config.policy}"
    words += f", profile {run.config.profile}. " if run.config.policy == "ado" else ". "
    words += f"{len(made)} refits" + (f", {len(run.fits) - len(made)} failed" if len(made) < len(run.fits) else "")
    if run.fits:
        words += f", {sum(fit.seconds for fit in run.fits):.2f} s of fitting beside the training, which waited "
        words += f"{sum(fit.wait_seconds for fit in run.fits):.2f} s for it"
    return words + "."


def sections(run: Run, other: Run | None) -> Iterator[tuple[str, str, Figure | None]]:
    """(heading, paragraph, picture) of the page, in order."""
    grey = f" Grey: {html.escape(other.name)}." if other is not None else ""
    n = "samples of the domain itself" if run.config.own_n else "samples of all domains"
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
    if other is not None:
        what, ours_K, theirs_K = final_losses(run, other)
        words = " ".join(html.escape(line) for line in comparison_text(run, other))
        gaps = figures.figure_gaps(run, ours_K - theirs_K, what[0].upper() + what[1:], other.name)
        yield f"Against {other.name}", f'<span class="note">{words}</span>', gaps
    yield "Diagnostics", "", figures.figure_diagnostics(run, other)


def page(run: Run, other: Run | None) -> str:
    parts = [
        f"<h1>Data mixture of {html.escape(run.name)}</h1>",
        f'<p class="quiet">{html.escape(facts(run))}</p>',
        html_table(run),
        '<p class="quiet">tokens: trained on. epochs: times the domain\'s samples were gone through, now and at the '
        "end of the run if the weights stay. runs out: the step after which it is at its cap. last: over the "
        "last twentieth of the run. at 2n: the loss that the law expects after as many samples again. "
        "± is one standard error.</p>",
    ]
    for heading, words, figure in sections(run, other):
        if figure is not None:
            parts.append(f"<h2>{html.escape(heading)}</h2><p>{words}</p>{picture(figure, heading)}")
    options = json.dumps(run.config.to_dict(), indent=1)
    parts.append(f"<h2>Options</h2><details><summary>all of them</summary><pre>{html.escape(options)}</pre></details>")
    head = f"<meta charset='utf-8'><title>{html.escape(run.name)}: data mixture</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def save_page(run: Run, other: Run | None, path: Path) -> None:
    with matplotlib.rc_context(figures.STYLE):
        path.write_text(page(run, other), encoding="utf-8")
