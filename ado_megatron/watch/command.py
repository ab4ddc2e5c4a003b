"""`ado-megatron watch RUN`: a run as it goes."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from ado_megatron.errors import UserError
from ado_megatron.option_fields import Parser
from ado_megatron.report.read import NOTHING_YET
from ado_megatron.watch.live import live
from ado_megatron.watch.page import ORDERS, View, event_line, page, plain_line
from ado_megatron.watch.preview import DEADLINE, Preview
from ado_megatron.watch.state import Followed

EVERY = 2.0


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    p = Parser(prog="ado-megatron watch", description="A run as it goes: mixture, losses, laws, what comes next.")
    p.add_argument("run", metavar="RUN", help="run directory: the one that holds ado/")
    p.add_argument("--once", action="store_true", help="print the page and end")
    p.add_argument("--sort", default="share", choices=ORDERS, help="what the domains are sorted by [share]")
    p.add_argument("--reverse", action="store_true", help="the other way round")
    p.add_argument("--filter", default="", metavar="WORDS", help="domains whose names contain one of: code,wiki*")
    p.add_argument("--every", type=float, default=EVERY, metavar="S", help=f"seconds between looks [{EVERY:g}]")
    p.add_argument("--no-preview", action="store_true", help="do not fit ahead what the next refit will do")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0; UserError for a directory or a file that is no run's."""
    options = parser().parse_args(argv)
    if not 0.05 <= options.every <= 3600:
        raise UserError(f"--every {options.every:g} must be between 0.05 and 3600 seconds")
    view = View(options.sort, options.reverse, options.filter)
    followed = Followed(options.run)
    terminal = sys.stdout.isatty()
    if options.once:
        _once(followed, view, terminal, not options.no_preview)
    elif terminal:
        followed.look()  # a file that is none is said before the screen is taken
        live(followed, view, options.every, Console(), not options.no_preview)
    else:
        _lines(followed, view, options.every)
    return 0


def _once(followed: Followed, view: View, terminal: bool, fit: bool) -> None:
    """The page as it is now; in a pipe every column, and no colours."""
    followed.look()
    if not followed.measured:
        raise UserError(f"{followed.path} {NOTHING_YET}")
    run, preview = followed.run(), Preview()
    if fit:
        preview.look(run, followed.steering(run), DEADLINE)
    console = Console(highlight=False, soft_wrap=True)
    lines = page(
        followed.state(run, preview.weights_K), view, console.width if terminal else None, None, followed.problem
    )
    for line in lines:
        console.print(Text(line.text, line.style)) if terminal else print(line.text)


def _lines(followed: Followed, view: View, every: float) -> None:
    """A line for each stretch of steps and one for each event, until the run is at its end."""
    told = step = 0
    while True:
        if followed.look() and followed.measured:
            state = followed.state(followed.run())
            if state.step < step:  # resumed at an earlier checkpoint
                told = 0
            told = min(told, len(state.events))
            for event in state.events[told:]:
                print(event_line(event).text)
            if state.step != step:
                print(plain_line(state, view), flush=True)
            told, step = len(state.events), state.step
            if step >= state.last_step:
                return
        time.sleep(every)
