"""The page: a head, the table of the domains, the last events. Text lines, so that it is the same in a pipe.

Legend: K domains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.cells import cell_len, set_cell_size

from ado_megatron.policy.bounds import total_variation
from ado_megatron.report.data import Event
from ado_megatron.report.target import target_lines
from ado_megatron.tables import printable, text_table
from ado_megatron.watch.columns import Column, columns, matcher, order_of
from ado_megatron.watch.state import State

ORDERS = ("share", "name", "loss", "trend", "tokens", "epochs", "out", "forecast", "next", "prior")
EVENTS = 5  # shown
_LINE_DOMAINS = 8  # in a line of a pipe
_NAME = 28  # characters of a name where columns compete for them
_LEAST_ROWS = 3
_NAMED = 3  # domains that are worse than at the prior, by name
HELP = "q quit · s sort · r reverse · / filter · arrows and PgUp/PgDn scroll"


@dataclass(frozen=True)
class View:
    """What the reader has chosen. offset: rows scrolled past. typing: the filter is being typed."""

    order: str = "share"
    reverse: bool = False
    pattern: str = ""
    offset: int = 0
    typing: bool = False

    def after(self, key: str, page: int) -> View:
        """The view after a key. page: rows of a page."""
        if self.typing:
            return self._typed(key)
        moves = {"up": -1, "k": -1, "down": 1, "j": 1, "pgup": -page, "pgdn": page, " ": page, "home": -(1 << 30)}
        if key in moves:
            return dataclasses.replace(self, offset=max(self.offset + moves[key], 0))
        if key == "s":
            return dataclasses.replace(self, order=ORDERS[(ORDERS.index(self.order) + 1) % len(ORDERS)], offset=0)
        if key == "r":
            return dataclasses.replace(self, reverse=not self.reverse, offset=0)
        return dataclasses.replace(self, typing=True, pattern="", offset=0) if key == "/" else self

    def _typed(self, key: str) -> View:
        if key == "enter":
            return dataclasses.replace(self, typing=False)
        if key == "escape":
            return dataclasses.replace(self, typing=False, pattern="")
        pattern = self.pattern[:-1] if key == "backspace" else self.pattern + (key if len(key) == 1 else "")
        return dataclasses.replace(self, pattern=pattern, offset=0)


@dataclass(frozen=True)
class Line:
    """A line of the page. style: as rich has it."""

    text: str
    style: str = ""


def page(
    state: State, view: View, width: int | None = None, height: int | None = None, problem: str | None = None
) -> list[Line]:
    """The lines of the page. width, height: of the terminal; None: no bound (every column, every row)."""
    top = head(state, problem)
    last = state.events[-EVENTS:]
    table = columns(state)
    order = order_of(table, view.order, view.reverse, matcher(view.pattern))
    room = len(order)
    if height is not None:
        room = max(height - len(top) - len(last) - 5, _LEAST_ROWS)
    offset = max(min(view.offset, len(order) - room), 0)
    shown = order[offset : offset + room]
    heading, *rows = _table(table, shown, width)
    lines = [*top, Line(""), Line(heading, "bold"), *map(Line, rows)]
    if len(shown) < len(table[0].cells_K):
        lines.append(Line(_of_all(view, offset, shown, order, len(table[0].cells_K)), "dim"))
    lines += [Line("")] * bool(last) + [event_line(event) for event in last]
    if height is not None:
        ask = f"filter: {view.pattern}_" if view.typing else f"sorted by {view.order} · {HELP}"
        lines = [*lines[: height - 1], Line(ask, "dim")]
    if width is not None:
        lines = [dataclasses.replace(line, text=_cut(line.text, width)) for line in lines]
    return lines


def head(state: State, problem: str | None = None) -> list[Line]:
    """Where the run stands, how its mixture lies, what comes next, and what is wrong with its file."""
    run = state.run
    ended = state.step >= state.last_step
    left = "at its end" if ended else f"{duration(state.seconds_to(state.last_step))} left"
    part = state.step / max(state.last_step, 1)
    tokens = run.tokens_SxK.sum()
    lines = [Line(f"{run.name}: step {state.step:,} of {state.last_step:,} ({part:.1%}), {tokens:,.0f} tokens, {left}",
                  "bold")]  # fmt: skip
    share_K = run.weights_SxK[-1] / run.weights_SxK[-1].sum()
    apart = f"{total_variation(share_K, run.prior_K / run.prior_K.sum()):.1%} of the samples moved from the prior"
    if state.target_K is not None:
        apart += f", {total_variation(share_K, state.target_K):.1%} away from the target"
    refit = state.next_refit()
    known = int((run.laws().step_K > 0).sum())
    coming = "no refit to come" if refit is None else (
        f"next refit after step {refit:,}, in {duration(state.seconds_to(refit))}"
    )  # fmt: skip
    policy = "shadow (the prior)" if run.config.shadow else state.steering.policy or run.config.policy
    policy += ", held" if state.steering.hold else ""
    lines.append(Line(f"mixture: {apart}"))
    lines.append(Line(f"policy {policy}; laws of {known} of {len(run.names_K)} domains in force; {coming}"))
    by_hand = [f"{name} {share:.4g}" for name, share in state.steering.pins.items()]
    if by_hand:
        lines.append(Line(f"pinned: {printable(', '.join(by_hand))}"))
    lines += [Line(printable(text)) for text in target_lines(run, _NAMED)]
    return [*lines, Line(f"! {printable(problem)}", "red")] if problem else lines


def plain_line(state: State, view: View) -> str:
    """One line of what a pipe gets while the run goes on: the largest domains that the filter lets through."""
    run = state.run
    share_K, loss_K = run.weights_SxK[-1] / run.weights_SxK[-1].sum(), run.last_loss_K()
    wanted = matcher(view.pattern)
    order = [k for k in np.argsort(-share_K, kind="stable") if wanted(run.names_K[k])][:_LINE_DOMAINS]
    parts = [f"{printable(run.names_K[k])} {share_K[k]:.1%} {loss_K[k]:.3f}" for k in order]
    left = duration(state.seconds_to(state.last_step))
    return f"step {state.step:,} of {state.last_step:,}, {left} left | " + ", ".join(parts)


def event_line(event: Event) -> Line:
    """What happened, in a line; an alarm in red."""
    return Line(f"step {event.step:,}  {event.kind}: {printable(event.text)}", "red" if event.kind == "alarm" else "")


def duration(seconds: float) -> str:
    """2 d 03 h, 1 h 05 min, 12 min or 40 s; "?" where it is not known."""
    if not np.isfinite(seconds):
        return "?"
    minutes, hours = round(seconds / 60), seconds / 3600
    if hours >= 48:
        return f"{int(hours // 24)} d {int(hours % 24):02d} h"
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if seconds >= 90 else f"{max(seconds, 0):.0f} s"


def _table(table: Sequence[Column], rows: Sequence[int], width: int | None) -> list[str]:
    """Heading and rows of the columns that fit, by their rank."""
    chosen = {column.name: [column.cells_K[k] for k in rows] for column in table}
    if width is not None:
        chosen["name"] = [_cut(name, _NAME) for name in chosen["name"]]
        used = 0
        kept: set[str] = set()
        for column in sorted(table, key=lambda column: column.rank):
            wide = 2 + max(cell_len(cell) for cell in (column.heading, *chosen[column.name]))
            if used + wide - 2 <= width or column.rank <= 1:
                used, kept = used + wide, kept | {column.name}
        table = [column for column in table if column.name in kept]
    left = {column.heading for column in table if column.left} | {"trend"}
    return text_table([(column.heading, chosen[column.name]) for column in table], left).split("\n")


def _of_all(view: View, offset: int, shown: Sequence[int], order: Sequence[int], num: int) -> str:
    found = f"{len(order)} of {num} domains match {view.pattern!r}" if view.pattern else f"{num} domains"
    return f"{offset + 1} to {offset + len(shown)} of {found}" if shown else found


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"
