"""The HTML page of a report: one file with the data, the plotting library and a little script, nothing loaded from
anywhere.

What is on the page stands in templates/; every text is escaped there. plotly.js comes from the plotly package.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import jinja2

from ado_megatron.errors import UserError
from ado_megatron.report.arms import Arm
from ado_megatron.report.data import Run
from ado_megatron.report.events import MOST_NAMED
from ado_megatron.report.payload import packed, payload
from ado_megatron.report.series import Columns
from ado_megatron.report.table import LEFT, columns, gap_lines
from ado_megatron.report.target import target_lines

TEMPLATES = Path(__file__).parent / "templates"


@functools.cache
def packed_plotly() -> str:
    """The library's code, with its licence in its first lines, packed. UserError where the package is missing."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError("the page needs plotly: pip install 'ado-megatron[report]'") from error
    return packed(get_plotlyjs().encode())


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


def counted(run: Run) -> str:
    """What the n of the laws counts, in words."""
    words = {"own": "samples of the domain itself", "shared": "samples of all domains"}
    return words.get(run.config.transfer_text, "its own samples plus s times those of all domains")


def page(arms: Sequence[Arm], lines: Sequence[str] = ()) -> str:
    """The page's text. lines: what the arms can be said to differ in.

    A variable that the template lacks is an error, not an empty place.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    run = arms[0].runs[0]
    series = Columns.of(arms)
    data, block = payload(arms, series)
    table = columns(run)
    rows = list(zip(*(cells for _, cells in table), strict=True))
    shown = [rows[k] for k in sorted(series.shown_D.tolist())]
    left_out = f"Curves and table show the {len(shown):,} domains with the largest prior of {len(rows):,}."
    return environment.get_template("page.html").render(
        run=run, arms=arms, facts=" ".join([facts(run), *target_lines(run, MOST_NAMED)]), counted=counted(run),
        table=table, rows=shown, left=LEFT, left_out=left_out if len(shown) < len(rows) else "",
        gaps=gap_lines(run), lines=lines, data=data, block=packed(block), library=packed_plotly(),
        options=json.dumps(run.config.to_dict(), indent=1),
    )  # fmt: skip


def save_page(arms: Sequence[Arm], path: Path, lines: Sequence[str] = ()) -> None:
    """Write the page. Raises OSError."""
    path.write_text(page(arms, lines), encoding="utf-8")
