"""`ado-megatron report RUN`: a table of the domains, a picture, and one HTML page that needs nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ado_megatron.errors import UserError
from ado_megatron.option_fields import Parser
from ado_megatron.report.read import read_run
from ado_megatron.report.table import LEFT, columns, comparable, comparison_text, gap_lines
from ado_megatron.tables import text_table


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = Parser(prog="ado-megatron report", description="A table, a picture and a self-contained HTML page of a run.")
    p.add_argument("run", metavar="RUN", help="run directory")
    p.add_argument("--compare", metavar="RUN", help="a second run, plotted beside the first (a static arm)")
    p.add_argument("--out", metavar="DIR", help="where report.png and report.html go; default: RUN/ado")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, write the picture and the page. Returns 0; UserError for a run that cannot be read."""
    options = parser().parse_args(argv)
    run = read_run(options.run)
    other = read_run(options.compare) if options.compare else None
    if other is not None:
        comparable(run, other)
    print("\n".join([text_table(columns(run), LEFT), *gap_lines(run)]))
    if other is not None:
        print("\n" + "\n".join(comparison_text(run, other)))
    out = Path(options.out).expanduser() if options.out else run.path / "ado"
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("the pictures need matplotlib: pip install 'ado-megatron[report]'") from error
    from ado_megatron.report.figures import save_overview
    from ado_megatron.report.html import save_page

    try:
        out.mkdir(parents=True, exist_ok=True)
        save_overview(run, other, out / "report.png")
        save_page(run, other, out / "report.html")
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); give another place with --out") from error
    print(f"\nreport: {out.resolve() / 'report.html'} (picture: {out.resolve() / 'report.png'})")
    return 0
