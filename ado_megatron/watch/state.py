"""A run as it stands: what was measured, how fast it goes, what comes next, and what happened.

Legend: K domains, S logging intervals.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ado_megatron.blend.epoch_caps import Forecast
from ado_megatron.errors import UserError
from ado_megatron.measure.metrics import MetricsFollower
from ado_megatron.policy import resolve_target
from ado_megatron.policy.registry import WITHOUT_LAWS
from ado_megatron.report.ahead import loss_at_end_K, supply_at_end
from ado_megatron.report.data import Event, Run
from ado_megatron.report.events import events
from ado_megatron.report.read import RunReader

MOST = 2048  # intervals kept of a long run; neighbours are merged
_PROBLEMS = 5  # damaged records that are spoken of


@dataclass(frozen=True, eq=False)
class State:
    """What a page shows. supply: what each domain will have given at the end if the weights stay as they are. rate:
    steps a second; nan: not known. next_K: weights after the next refit, as its preview says; None: not known.
    """

    run: Run
    target_K: np.ndarray | None
    supply: Forecast
    rate: float
    next_K: np.ndarray | None
    events: list[Event]

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.run.step_S[-1])

    @property
    def last_step(self) -> int:
        """Steps of the whole run; of a batch ramp, counted in the last batch size."""
        supply = self.run.supply
        return self.step + -(-supply.samples_left // supply.block_size)

    def seconds_to(self, step: int) -> float:
        """Seconds until `step` at the present rate; nan where that is not known."""
        return (step - self.step) / self.rate if self.rate > 0 else float("nan")

    def next_refit(self) -> int | None:
        """The step after which laws are fitted next; None where none are, or not before the end."""
        step = self.step
        if self.run.config.policy in WITHOUT_LAWS:
            return None
        return next((s + 1 for s in range(step, self.last_step) if self.run.config.refit_at(s)), None)

    def at_end_K(self) -> np.ndarray:
        """What the laws in force say of the losses at the end, under the present weights; nan without a law."""
        return loss_at_end_K(self.run, self.supply)


class Followed:
    """Follows one run directory. `problem` is the last thing that was wrong with its file, or None."""

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.time):
        """UserError where there is no run directory. clock: seconds since the epoch."""
        self.path = Path(path).expanduser()
        if not (self.path / "ado").is_dir():
            raise UserError(f"{self.path} is no run directory: there is no {self.path / 'ado'}")
        self._follower = MetricsFollower(self.path / "ado" / "metrics.jsonl")
        self._reader: RunReader | None = None
        self._clock = clock
        self._seen: list[tuple[float, int]] = []  # (when, step) of looks that found steps
        self._problems: list[str] = []

    @property
    def problem(self) -> str | None:
        """What was wrong with the file last, in a sentence."""
        return self._problems[-1] if self._problems else None

    @property
    def measured(self) -> bool:
        """True once there is an interval."""
        return self._reader is not None and self._reader.steps > 0

    def look(self) -> int:
        """Take what is new; returns how many records that were. UserError for a file that is no metrics.jsonl."""
        news = self._follower.look()
        records = news.records
        if news.afresh:
            self._reader = RunReader(self.path.resolve(), records[0], MOST)
            self._seen, self._problems, records = [], [], records[1:]
        self._problems += [f"line {n} of {self._follower.path.name} is no record" for n in news.damaged]
        for record in records:
            try:
                if self._reader is not None:
                    self._reader.add(record)
            except UserError as error:
                self._problems.append(str(error))
        del self._problems[:-_PROBLEMS]
        steps = [record["step"] for record in records if record["type"] == "step"]
        if steps and not news.afresh:
            self._seen = [*self._seen[-9:], (self._clock(), steps[-1])]
        return len(news.records)

    def run(self) -> Run:
        """What was taken so far; `measured` must hold. UserError where its last interval does not fit its header."""
        assert self._reader is not None
        return self._reader.run()

    def state(self, run: Run, next_K: np.ndarray | None = None) -> State:
        """The state of a run that `run` returned."""
        return State(run, target_of(run), supply_at_end(run), self._rate(run), next_K, events(run))

    def _rate(self, run: Run) -> float:
        """Steps a second: by the trainer's own records, else between what was written at different times, else as
        seen here."""
        rates = run.progress["samples_per_second"]
        known = rates[np.isfinite(rates)]
        if known.size:
            return float(np.median(known[-20:])) / run.supply.block_size
        bursts, first = np.unique(np.round(run.time_S[np.isfinite(run.time_S)]), return_index=True)
        if len(bursts) > 1:
            last = np.append(first[1:], np.isfinite(run.time_S).sum()) - 1
            steps = run.step_S[np.isfinite(run.time_S)][last]
            before = max(len(bursts) - 5, 0)
            return float((steps[-1] - steps[before]) / (bursts[-1] - bursts[before]))
        if len(self._seen) > 1 and self._seen[-1][0] > self._seen[0][0]:
            (then, a), (now, b) = self._seen[0], self._seen[-1]
            return (b - a) / (now - then)
        return float("nan")


def target_of(run: Run) -> np.ndarray | None:
    """τ; None where it cannot be known here (a file that is on another machine)."""
    if run.target_K is not None:
        return run.target_K
    length_K = run.supply.length_K
    try:
        return resolve_target(run.config.target, run.names_K, run.prior_K, length_K / max(length_K.sum(), 1.0))
    except UserError:
        return None
