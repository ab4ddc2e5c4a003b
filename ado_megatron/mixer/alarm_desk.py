"""Rank zero looks for alarms at each refit, logs them and writes them in metrics.jsonl.

Legend: K domains, C datasets.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from ado_megatron.alarms import Alarms, Refit
from ado_megatron.alarms.memory import Memory
from ado_megatron.alarms.supply import Supply
from ado_megatron.blend.epoch_caps import with_share
from ado_megatron.files import BestEffort
from ado_megatron.mixer.planner import Planner
from ado_megatron.mixer.recorder import Recorder
from ado_megatron.mixer.resume import Saved
from ado_megatron.npz import unnest
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.stream.schedule import Schedule


class AlarmDesk:
    """Milliseconds a refit, no collective; what goes wrong here is logged and stops nothing."""

    def __init__(self, planner: Planner, schedule: Schedule, recorder: Recorder, log: Callable[[str], None]):
        self._planner, self._schedule, self._recorder, self._log = planner, schedule, recorder, log
        self._alarms = Alarms(planner.domains.names_K)
        self._marks: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # of refits under way: weights_K, drawn_K
        self._effort = BestEffort("alarms", errors=(Exception,))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What is remembered between refits, and of those under way, for a sidecar."""
        marks = {f"mark{block}": np.stack(mark) for block, mark in self._marks.items()}
        return self._alarms.memory.to_arrays() | marks

    def restore(self, saved: Saved) -> None:
        """Go on from a sidecar; one of before alarms were kept there has none, and they begin anew."""
        arrays = unnest("alarms/", saved.arrays)

        def go_on() -> None:
            memory = Memory.from_arrays(arrays, saved.old_domain_K())
            self._alarms = Alarms(self._planner.domains.names_K, memory)
            if saved.keep_rows:  # else no refit is under way
                marks = {int(block): mark for block, mark in unnest("mark", arrays).items()}
                self._marks = {block: (weights_K, drawn_K) for block, (weights_K, drawn_K) in marks.items()}

        if arrays:
            self._effort.attempt(go_on, now=True)

    def mark(self, block: int) -> None:
        """At a snapshot after `block`: what of it will not be known any more when its laws come."""

        def take() -> None:
            drawn_C = self._schedule.cumulative((block + 1) * self._planner.block_size)
            self._marks[block] = self._planner.weights_K(block), self._by_domain(drawn_C)

        self._effort.attempt(take)

    def look(
        self, step: int, block: int, rows: Mapping[str, np.ndarray], laws: Laws | None, failure: str | None
    ) -> None:
        """After a refit. step: up to which `rows` of the history go; block: the last one that was done then. laws: as
        fitted; None where none were, or where the fit failed, and `failure` says why."""
        self._effort.attempt(functools.partial(self._look, step, block, rows, laws, failure))

    def _look(
        self, step: int, block: int, rows: Mapping[str, np.ndarray], laws: Laws | None, failure: str | None
    ) -> None:
        mark = self._marks.pop(block, None)
        if mark is None:
            return  # the snapshot was taken by a version that kept none
        refit = Refit(step, rows, laws, failure, self._supply(block, *mark), *self._recorder.measured())
        for alarm in self._alarms.at_refit(refit):
            self._log(f"ado: alarm, step {step}: {alarm.text}")
            self._recorder.metrics.write("alarm", step, **alarm.to_record())

    def _by_domain(self, value_C: np.ndarray) -> np.ndarray:
        domains = self._planner.domains
        return with_share(domains.domain_of_C, domains.share_C, value_C)

    def _supply(self, block: int, weights_K: np.ndarray, drawn_K: np.ndarray) -> Supply:
        size, caps_C = self._planner.block_size, self._planner.regimes.at(block).caps_C
        left = (self._schedule.num_blocks - block - 1) * size
        return Supply(
            weights_K, self._by_domain(self._planner.domains.lengths_C), drawn_K,
            None if caps_C is None else self._by_domain(caps_C), left, size,
        )  # fmt: skip
