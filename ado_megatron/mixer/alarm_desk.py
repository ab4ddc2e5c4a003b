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
        self._effort = BestEffort("alarms", errors=(Exception,))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What is remembered between refits, for a sidecar."""
        return self._alarms.memory.to_arrays()

    def restore(self, saved: Saved) -> None:
        """Go on from a sidecar; one of before alarms were kept there has none, and they begin anew."""
        arrays = unnest("alarms/", saved.arrays)

        def go_on() -> None:
            memory = Memory.from_arrays(arrays, saved.old_domain_K())
            self._alarms = Alarms(self._planner.domains.names_K, memory)

        if arrays:
            self._effort.attempt(go_on, now=True)

    def look(
        self, step: int, block: int, rows: Mapping[str, np.ndarray], laws: Laws | None, failure: str | None
    ) -> None:
        """After a refit. step: up to which `rows` of the history go; block: the last one that was done then. laws: as
        fitted; None where none were, or where the fit failed, and `failure` says why."""
        self._effort.attempt(functools.partial(self._look, step, block, rows, laws, failure))

    def _look(
        self, step: int, block: int, rows: Mapping[str, np.ndarray], laws: Laws | None, failure: str | None
    ) -> None:
        refit = Refit(step, rows, laws, failure, self._supply(block), *self._recorder.measured())
        for alarm in self._alarms.at_refit(refit):
            self._log(f"ado: alarm, step {step}: {alarm.text}")
            self._recorder.metrics.write("alarm", step, **alarm.to_record())

    def _supply(self, block: int) -> Supply:
        domains, size, caps_C = self._planner.domains, self._planner.block_size, self._planner.regimes.at(block).caps_C
        drawn_C = self._schedule.cumulative((block + 1) * size)

        def by_domain(value_C: np.ndarray) -> np.ndarray:
            return with_share(domains.domain_of_C, domains.share_C, value_C)

        left = (self._schedule.num_blocks - block - 1) * size
        return Supply(
            self._planner.weights_K(block), by_domain(domains.lengths_C), by_domain(drawn_C),
            None if caps_C is None else by_domain(caps_C), left, size,
        )  # fmt: skip
