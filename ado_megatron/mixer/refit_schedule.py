"""When laws are fitted and from which block they hold: the same on every rank, whatever the clock says.

    cut t ── fit in its own process ──► publish, `lead` rows early ──► first row under the new laws: t+1+fit_lag

A cut is made after block t. Rows are known up to the *horizon*, the first row of the oldest cut whose laws are not in
force yet (or of the next cut to come). Only rank zero's cycles carry a fit.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable

import numpy as np

from ado_megatron.config import AdoConfig
from ado_megatron.scaling_law.fit_process import Fit


@dataclasses.dataclass
class Cycle:
    """A cut whose laws are not yet in force. block: after which it was made. step: steps done then. history: what the
    fit was given (None: no fit at this cut, or not rank zero)."""

    block: int
    step: int
    history: dict[str, np.ndarray] | None = None
    fit: Fit | None = None


class Refits:
    """The cuts of a run, in order. fit_lag: blocks from a cut to the first row under its laws, less one. lead: rows
    that must stay planned beyond the blocks done."""

    def __init__(self, config: AdoConfig, fit_lag: int, lead: int):
        self._config, self.fit_lag, self.lead = config, fit_lag, lead
        self.cycles: deque[Cycle] = deque()
        self.next_cut = 0 if config.refit_at(0) else self.cut_after(0)

    def cut_after(self, block: int) -> int:
        """The next block after which a cut is made: every refit, and every refit_interval blocks in any case."""
        block += 1
        while block % self._config.refit_interval and not self._config.refit_at(block):
            block += 1
        return block

    def cut(self, step: int, history: dict[str, np.ndarray] | None) -> None:
        """Make the next cut after `step` steps; with a history, start its fit."""
        self._add(self.next_cut, step, history)
        self.next_cut = self.cut_after(self.next_cut)

    def _add(self, block: int, step: int, history: dict[str, np.ndarray] | None) -> None:
        self.cycles.append(Cycle(block, step, history, None if history is None else Fit(history, self._config)))

    def pop_due(self, blocks_done: int) -> Cycle | None:
        """The oldest cut if its laws must be there now, so that `lead` rows stay planned; never before the cut."""
        if self.cycles:
            block = self.cycles[0].block
            if blocks_done >= max(block + 1, block + 2 + self.fit_lag - self.lead):
                return self.cycles.popleft()
        return None

    def applies_at(self, block: int) -> int:
        """The first row under the laws of the cut after `block`."""
        return block + 1 + self.fit_lag

    @property
    def horizon(self) -> int:
        """The first row whose laws are not known yet."""
        return self.applies_at(self.cycles[0].block if self.cycles else self.next_cut)

    def restore(self, next_cut: int, cycles: Iterable[tuple[int, int, dict | None]]) -> None:
        """Go on from a saved plan; fits that were under way start again from the histories that they were given."""
        self.next_cut = next_cut
        self.cycles.clear()
        for block, step, history in cycles:
            self._add(block, step, history)

    def cancel(self) -> None:
        """Stop the fits under way."""
        for cycle in self.cycles:
            if cycle.fit is not None:
                cycle.fit.cancel()
