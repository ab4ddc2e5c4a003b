"""`ado-megatron report RUN`: what a run did, for people.

In: a run directory's `ado/metrics.jsonl`, and a second one to compare with. Out: a table on the terminal, report.png,
and report.html, one page that needs nothing else.

    run = read_run("runs/first")
    print(text_table(columns(run)))          # ado_megatron.tables

    read.py     metrics.jsonl to arrays, each value checked
    data.py     the arrays, and what follows from them;   ahead.py: and at the end of the run
    table.py    words and numbers: the table of the domains, what two runs differ in
    board_feed.py  the same for TensorBoard and W&B, while the run goes on
    figures.py  the pictures;   html.py: the page, from templates/
"""

from ado_megatron.report.data import Run
from ado_megatron.report.read import read_run
from ado_megatron.report.table import columns

__all__ = ["Run", "columns", "read_run"]
