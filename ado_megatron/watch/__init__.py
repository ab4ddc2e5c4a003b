"""`ado-megatron watch RUN`: a run as it goes, on a terminal or through a pipe.

In: the run's growing `ado/metrics.jsonl`, and keys. Out: a page that is drawn anew, or plain lines. It only reads, from
any machine that sees the directory.

    followed = Followed("runs/first")
    followed.look()                           # takes what is new
    lines = page(followed.state(followed.run()), View(order="loss"))     # of page.py

    command.py  options; once, as lines, or live
    state.py    the run as it stands: rates, what comes next, what happened
    preview.py  what the next refit would do, fitted in a process of its own
    columns.py  a cell for each domain and column, sorted and filtered
    page.py     the page, as wide as the terminal;   live.py: keys and drawing
"""

from ado_megatron.watch.page import View
from ado_megatron.watch.state import Followed, State

__all__ = ["Followed", "State", "View"]
