"""`ado-megatron report RUN`: what a run did, for people.

In: the `ado/metrics.jsonl` of a run directory, and of others to compare with. Out: a table on the terminal, report.png
for papers, and report.html, one page to work with that needs nothing else.

    run = read_run("runs/first")
    print(text_table(columns(run)))          # ado_megatron.tables

    read.py     metrics.jsonl to arrays, each value checked
    data.py     the arrays, and what follows from them;   events.py: what happened besides
    ahead.py    what there will be at the end of the run
    table.py    words and numbers: the table of the domains, what two runs differ in
    board_feed.py  the same for TensorBoard and W&B, while the run goes on
    arms.py     runs of several seeds: means, intervals, differences
    series.py   curves of all arms on one axis, thinned;   groups.py: a thousand domains in a few groups
    payload.py  the curves as bytes for the page;   html.py: the page, from templates/
    figures.py  the picture

The script of the page is templates/curves.js (its numbers), charts.js (what plotly draws), controls.js (what a reader
clicks).
"""

from ado_megatron.report.data import Run
from ado_megatron.report.read import read_run
from ado_megatron.report.table import columns

__all__ = ["Run", "columns", "read_run"]
