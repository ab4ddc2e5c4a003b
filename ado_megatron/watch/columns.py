"""The table of the domains: a cell for each domain and column, in an order, of those that a filter lets through.

Legend: K domains, S logging intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from ado_megatron.report.table import law_note, law_text, numbers
from ado_megatron.watch.state import State

_BARS = "▁▂▃▄▅▆▇█"
SPARK = 14  # characters of a spark line


@dataclass(frozen=True, eq=False)
class Column:
    """One column. rank: which columns a narrow terminal keeps, 0 first. value_K: what rows are sorted by, if it is
    numbers; nan comes last."""

    name: str  # what --sort calls it
    heading: str
    cells_K: list[str]
    rank: int
    value_K: np.ndarray | None = None
    left: bool = False


def columns(state: State) -> list[Column]:
    """All columns, in the order in which they stand."""
    run, supply = state.run, state.run.supply
    share_K, prior_K = (w_K / w_K.sum() for w_K in (run.weights_SxK[-1], run.prior_K))
    loss_K, end_K, tokens_K = run.last_loss_K(), state.at_end_K(), run.tokens_SxK.sum(0)
    epochs_K = supply.drawn_K / np.maximum(supply.length_K, 1)
    out_K = np.where(state.supply.runs_out_C > supply.samples_left, np.inf, state.supply.runs_out_C)
    out_K = state.step + np.ceil(out_K / supply.block_size)

    def column(name: str, heading: str, values_K: np.ndarray, form: str, rank: int) -> Column:
        return Column(name, heading, numbers(values_K, form), rank, values_K)

    table = [
        Column("name", "domain", list(run.names_K), 0, left=True),
        column("share", "share", share_K, ".2%", 1),
        column("prior", "prior", prior_K, ".2%", 8),
    ]
    if state.target_K is not None and not np.allclose(state.target_K, prior_K):
        table.append(column("target", "target", state.target_K, ".2%", 9))
    if state.next_K is not None and state.next_refit() is not None:
        table.append(column("next", "next refit", state.next_K, ".2%", 5))
    table += [
        Column("tokens", "tokens", [_count(value) for value in tokens_K], 7, tokens_K),
        column("epochs", "epochs", epochs_K, ".2f", 4),
        column("end", "at end", state.supply.epochs_C, ".2f", 10),
        Column("out", "runs out", [_when(step, state.step) for step in out_K], 6, out_K),
        column("loss", "loss", loss_K, ".3f", 2),
        Column("trend", "trend", _sparks(state), 6, _trend(state)),
    ]
    if run.fits:
        laws = [law_text(run, k) for k in range(len(run.names_K))]
        notes = [law_note(run, k) for k in range(len(run.names_K))]
        table += [
            column("forecast", "forecast", end_K, ".3f", 3),
            Column("law", "law ε + β·n^−α", laws, 11, run.laws().law_Kx3[:, 2], left=True),
            Column("fit", "last fit", notes, 12, left=True),
        ]
    return table


def order_of(table: Sequence[Column], name: str, reverse: bool, wanted: Callable[[str], bool]) -> list[int]:
    """Numbers of the domains to show, in order: by a column's numbers, largest first (by name from a to z)."""
    names_K = table[0].cells_K
    rows = [k for k in range(len(names_K)) if wanted(names_K[k])]
    column = next((column for column in table if column.name == name), table[0])
    if column.value_K is None:
        return sorted(rows, key=lambda k: column.cells_K[k], reverse=reverse)
    smallest_first = (name == "out") != reverse
    value_K = column.value_K if smallest_first else -column.value_K
    return sorted(rows, key=lambda k: (np.isnan(value_K[k]), value_K[k]))


def matcher(pattern: str) -> Callable[[str], bool]:
    """Which names a filter lets through: those that contain one of its words or, with * or ?, match one."""
    words = [word.strip() for word in pattern.split(",") if word.strip()]
    globs = [word if set(word) & set("*?[") else f"*{word}*" for word in words]
    return lambda name: not globs or any(fnmatchcase(name.lower(), glob.lower()) for glob in globs)


def spark(values: np.ndarray) -> str:
    """A line of bars, the least value lowest; a blank where there is none."""
    known = np.isfinite(values)
    if not known.any():
        return " " * len(values)
    low, high = values[known].min(), values[known].max()
    level = np.zeros(len(values)) if high == low else (values - low) / (high - low) * (len(_BARS) - 1)
    return "".join(_BARS[int(round(x))] if seen else " " for x, seen in zip(level, known, strict=True))


def _sparks(state: State) -> list[str]:
    """The losses of the later half of the run so far: its beginning would flatten all the rest."""
    run = state.run
    late = run.step_S > run.step_S[-1] // 2
    loss_SxK = run.tail(int(late.sum())).thinned(SPARK).loss_SxK
    return [spark(loss_SxK[:, k]) for k in range(len(run.names_K))]


def _trend(state: State) -> np.ndarray:
    """Change of the loss over the later half of the run so far, nats; nan where it is not known."""
    run = state.run
    loss_SxK = run.tail(int((run.step_S > run.step_S[-1] // 2).sum())).thinned(4).loss_SxK
    return loss_SxK[-1] - loss_SxK[0]


def _when(step: float, now: int) -> str:
    """A step at which a domain runs out, or that it has."""
    return "–" if not np.isfinite(step) else "at its cap" if step <= now else f"step {int(step):,}"


def _count(value: float) -> str:
    """A count in three digits: 12.3M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"
