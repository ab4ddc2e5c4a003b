"""Tables as plain text, laid out by `rich`: no frame, two spaces between columns, the same in a pipe and a terminal.

`ado-megatron --help` and `doctor` print theirs where nothing is installed yet, too; then every character counts one.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Collection, Sequence

Columns = Sequence[tuple[str, Sequence[str]]]  # (heading, one cell a row) for each column


def text_table(columns: Columns, left: Collection[str] = (), headings: bool = True) -> str:
    """The table, a row a line, without spaces at the ends of lines.

    left: headings of the columns that are aligned to the left; numbers stand to the right. headings: whether the first
    line is theirs. Cells are plain text: what looks like markup is printed as it is, wide characters count two, and
    what is no character to print (a line's end, an escape) becomes one that is.
    """
    columns = [(heading, [printable(cell) for cell in cells]) for heading, cells in columns]
    if importlib.util.find_spec("rich") is None:
        return _without_rich(columns, left, headings)
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=headings)
    width = 0
    for heading, cells in columns:
        table.add_column(Text(heading), justify="left" if heading in left else "right", no_wrap=True)
        width += 2 + max(cell_len(cell) for cell in (heading, *cells))
    for row in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*map(Text, row))
    out = io.StringIO()
    # A console of its own: never narrower than the table, so nothing is wrapped or cut, and never with colours.
    Console(file=out, width=width, color_system=None, highlight=False, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip("\n").split("\n"))


def _without_rich(columns: Columns, left: Collection[str], headings: bool) -> str:
    padded = []
    for heading, cells in columns:
        shown = [heading, *cells] if headings else list(cells)
        width = max(map(len, (heading, *cells)) if headings else map(len, cells), default=0)
        padded.append([cell.ljust(width) if heading in left else cell.rjust(width) for cell in shown])
    return "\n".join("  ".join(row).rstrip() for row in zip(*padded, strict=True))


def printable(cell: str) -> str:
    """The text with every character that is none to print replaced."""
    return "".join(c if c.isprintable() else "�" for c in cell)
