"""`ado-megatron report RUN`: a table of the domains, a picture, and one HTML page that needs nothing else."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ado_megatron.errors import UserError
from ado_megatron.option_fields import Parser
from ado_megatron.report.arms import Arm, inside, make_arms, seeds_text
from ado_megatron.report.read import read_run
from ado_megatron.report.table import CAUTION, LEFT, columns, comparison_text, event_lines, gap_lines
from ado_megatron.report.target import target_lines
from ado_megatron.tables import text_table


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = Parser(prog="ado-megatron report", description="A table, a picture and a self-contained HTML page of a run.")
    p.add_argument("run", metavar="RUN", nargs="+", help="run directory; several: the same run with other seeds")
    p.add_argument("--compare", metavar="RUN", nargs="+", action="append", default=[],
                   help="a run to plot beside it (a static arm), or several that differ in their seed; "
                        "give it again for a third arm")  # fmt: skip
    p.add_argument("--out", metavar="DIR", help="where report.png and report.html go; default: RUN/ado")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, write the picture and the page. Returns 0; UserError for a run that cannot be read."""
    options = parser().parse_args(argv)
    missing = [name for name in ("plotly", "matplotlib") if importlib.util.find_spec(name) is None]
    arms = make_arms([[read_run(path) for path in group] for group in (options.run, *options.compare)])
    run = arms[0].runs[0]
    print("\n".join([text_table(columns(run), LEFT), *gap_lines(run), *event_lines(run), *target_lines(run)]))
    lines = compared(arms)
    if lines:
        print("\n" + "\n".join(lines))
    if missing:
        raise UserError(f"the page and the picture need {' and '.join(missing)}: pip install 'ado-megatron[report]'")
    out = Path(options.out).expanduser() if options.out else run.path / "ado"
    from ado_megatron.report.figures import save_overview
    from ado_megatron.report.html import save_page

    try:
        out.mkdir(parents=True, exist_ok=True)
        save_overview(run, arms[1].runs[0] if len(arms) > 1 else None, out / "report.png")
        save_page(arms, out / "report.html", lines)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); give another place with --out") from error
    print(f"\nreport: {out.resolve() / 'report.html'} (picture: {out.resolve() / 'report.png'})")
    return 0


def compared(arms: Sequence[Arm]) -> list[str]:
    """What the first arm and each other one can be said to differ in; nothing where there is one arm of one run."""
    lines = [line for arm in arms for line in inside(arm)]
    for other in arms[1:]:
        if len(arms[0].runs) == len(other.runs) == 1:
            lines += [line for line in comparison_text(arms[0].runs[0], other.runs[0]) if line != CAUTION]
        else:
            lines += seeds_text(arms[0], other)
    if len(arms) > 1 and max(len(arm.runs) for arm in arms) == 1:
        lines.append(CAUTION)
    return lines
