"""A run's metrics.jsonl as the arrays of data.py; every value is checked, and what is wrong names file and line.

Legend: K domains, C datasets, S logging intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ado_megatron.blend.epoch_caps import with_share
from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.measure.metrics import read_metrics
from ado_megatron.measure.record import LARGEST, MOST, Record
from ado_megatron.report.data import Event, Fit, Gap, Run, Supply
from ado_megatron.steer.command import describe
from ado_megatron.steer.journal import Entry

MOST_SAMPLES = 1 << 40  # of a domain in one interval: their sum over a run stays within 64 bits
MOST_CAP = 2.0**63  # how "no cap" is written
MOST_OF_LAW = 1e4  # of a law's logarithms and exponent
PROGRESS = ("step", "loss", "lr", "grad_norm", "samples_per_second")
EVENTS = ("alarm", "change")
NOTHING_YET = (
    "has no measured interval yet: losses are summed over the ranks at refits and checkpoints; the first refit is "
    "after --ado-start-step steps"
)
_ROWS = ("step_S", "counts_SxK", "tokens_SxK", "loss_SxK", "weights_SxK", "drawn_SxK", "time_S")


def read_run(path: str | Path) -> Run:
    """The run in a run directory.

    UserError when there is no metrics.jsonl with at least one interval, and, naming file and line, for a damaged one.
    """
    run_dir = Path(path).expanduser()
    file = run_dir / "ado" / "metrics.jsonl"
    if not file.exists():
        raise UserError(f"{run_dir} is no run directory with measurements: there is no {file}")
    header, *records = read_metrics(file)
    reader = RunReader(run_dir.resolve(), header)
    for record in records:
        reader.add(record)
    if reader.steps == 0:
        raise UserError(f"{file} {NOTHING_YET}")
    return reader.run()


class RunReader:
    """The records of a run, taken one after the other, as a Run at any time.

    path: the run directory. most: when there are twice as many intervals, neighbours are merged down to this number
    (None: never).
    """

    def __init__(self, path: Path, header: Record, most: int | None = None):
        """UserError, naming file and line, for a header that does not describe a run."""
        self._path, self._header, self._most = path, header, most
        self._names = header.texts("domains")
        self._num = len(self._names)
        self._prior_K, self._config = _weights(header, "prior_K", self._num), _config(header)
        self._datasets = _Datasets.of(header, self._num)
        self._last: Record | None = None  # the last interval
        self._rows: dict[str, list[np.ndarray]] = {name: [] for name in _ROWS}
        self._fits: list[Fit] = []
        self._validations: list[tuple[int, np.ndarray]] = []
        self._progress: dict[str, list[float]] = {key: [] for key in PROGRESS}
        self._gaps: list[Gap] = []
        self._events: list[Event] = []

    @property
    def steps(self) -> int:
        """Logging intervals taken so far."""
        return len(self._rows["step_S"])

    def add(self, record: Record) -> None:
        """Take a record; of a kind that is not known, nothing. UserError, and nothing is taken, for a damaged one."""
        kind, num = record["type"], self._num
        if kind == "step":
            self._add_step(record)
        elif kind == "fit":
            self._fits.append(_fit(record, num, self._config.given_transfer))
        elif kind == "validation":
            self._validations.append((record["step"], record.array("loss_K", num)))
        elif kind == "progress":
            values = [record.number(key, np.nan) for key in PROGRESS]
            for key, value in zip(PROGRESS, values, strict=True):
                self._progress[key].append(value)
        elif kind == "gap":
            self._gaps.append(_gap(record))
        elif kind in EVENTS:
            self._events.append(_event(record))

    def _add_step(self, record: Record) -> None:
        num = self._num
        if self._last is not None and record["step"] <= self._last["step"]:
            raise record.bad(f"its step {record['step']} does not come after step {self._last['step']}")
        row = {
            "step_S": np.array(record["step"]), "counts_SxK": record.array("counts_K", num, high=MOST_SAMPLES, low=0,
            whole=True), "tokens_SxK": np.nan_to_num(record.array("tokens_K", num, low=0, high=MOST)),
            "loss_SxK": record.array("loss_K", num), "weights_SxK": _weights(record, "weights_K", num),
            "drawn_SxK": self._datasets.drawn_K(record),
            "time_S": np.array(record.number("time", np.nan)),
        }  # fmt: skip
        for name, value in row.items():
            self._rows[name].append(value)
        self._last = record

    def run(self) -> Run:
        """What was taken so far, at least one interval."""
        assert self._last is not None, "a run has at least one interval"
        validations = [loss_K for _, loss_K in self._validations]
        run = Run(
            path=self._path, names_K=self._names, prior_K=self._prior_K, config=self._config,
            target_K=_target(self._header, self._num),
            **{name: np.array(rows) for name, rows in self._rows.items()},
            supply=self._datasets.supply(self._header, self._last),
            fits=list(self._fits),
            validation_step_V=np.array([step for step, _ in self._validations], dtype=int),
            validation_VxK=np.array(validations).reshape(-1, self._num),
            progress={key: np.array(values) for key, values in self._progress.items()},
            gaps=list(self._gaps), events=list(self._events),
        )  # fmt: skip
        if self._most is not None and self.steps > 2 * self._most:
            run = run.thinned(self._most)
            self._rows = {name: list(getattr(run, name)) for name in _ROWS}
        return run


def _weights(record: Record, name: str, num: int) -> np.ndarray:
    weights_K = record.array(name, num, low=0, high=MOST)
    if not weights_K.sum() > 0:  # nan, too
        raise record.bad(f"{name} has no weight above zero, or one that is not known")
    return weights_K


def _target(header: Record, num: int) -> np.ndarray | None:
    """τ; None where the run was recorded before its target was."""
    return None if header.get("target_K") is None else header.array("target_K", num, low=0, high=1)


def _config(header: Record) -> AdoConfig:
    values = header.value("config")
    if not isinstance(values, dict):
        raise header.bad("its config is no object")
    try:
        return AdoConfig.from_dict(values).resolved()
    except UserError as error:
        raise header.bad(f"its config holds what no run has: {error}") from error


@dataclass(frozen=True)
class _Datasets:
    """What the header says about the datasets of the domains."""

    domain_of_C: np.ndarray
    length_C: np.ndarray
    share_C: np.ndarray
    caps_C: np.ndarray | None

    @classmethod
    def of(cls, header: Record, num: int) -> _Datasets:
        datasets = _length(header, "domain_of_C")
        domain_of_C = header.array("domain_of_C", datasets, low=0, high=num - 1, whole=True)
        if len(np.unique(domain_of_C)) != num:
            raise header.bad(f"domain_of_C does not name each of {num} domains")
        length_C = header.array("lengths_C", datasets, low=0, high=MOST)
        share_C = header.array("share_C", datasets, low=0) if "share_C" in header else length_C
        caps_C = None if header.get("caps_C") is None else header.array("caps_C", datasets, low=0, high=MOST_CAP)
        return cls(domain_of_C, length_C, share_C, caps_C)

    def by_domain(self, value_C: np.ndarray) -> np.ndarray:
        """Sums over the datasets with a share."""
        return with_share(self.domain_of_C, self.share_C, value_C)

    def drawn_K(self, record: Record) -> np.ndarray:
        """Samples drawn of each domain since the start, at an interval."""
        epochs_C = record.array("epochs_C", len(self.length_C), low=0, high=MOST)
        return self.by_domain(np.rint(self.length_C * epochs_C))

    def supply(self, header: Record, last: Record) -> Supply:
        """After the last interval."""
        block_size = header.integer("block_size", 1)
        left = header.integer("num_blocks") * block_size - last.integer("consumed_samples")
        cap_K = None if self.caps_C is None else self.by_domain(self.caps_C)
        return Supply(self.by_domain(self.length_C), self.drawn_K(last), cap_K, max(left, 0), block_size)


def _length(record: Record, name: str) -> int:
    values = record.value(name)
    if not isinstance(values, list):
        raise record.bad(f"{name} is no list")
    return len(values)


def _fit(record: Record, num: int, transfer: float) -> Fit:
    """transfer: of laws that were recorded before laws had one."""

    def row(name: str, *more: int, most: float = LARGEST) -> np.ndarray:
        if record.get(name) is None:
            return np.full((num, *more), np.nan)
        return record.array(name, num, *more, low=-most, high=most)

    failed = record.get("failed")
    transfer_K = np.full(num, transfer)
    if "transfer_K" in record:  # JSON has no ∞: it is null
        transfer_K = np.where(np.isnan(row("transfer_K")), np.inf, row("transfer_K"))
    return Fit(
        step=record["step"],
        law_Kx3=np.stack([row(name, most=MOST_OF_LAW) for name in ("log_beta_K", "log_epsilon_K", "alpha_K")], axis=1),
        transfer_K=transfer_K,
        transfer_low_K=row("transfer_low_K"),
        transfer_high_K=row("transfer_high_K"),
        ok_K=_truths(record, "ok_K", num),
        reason_K=_reasons(record, num),
        rms_K=row("rms_K"),
        stderr_Kx3=row("stderr_Kx3", 3),
        speed_stderr_K=row("speed_stderr_K"),
        credit_K=row("credit_K"),
        seconds=float(np.nan_to_num(record.number("seconds", 0.0))),
        wait_seconds=float(np.nan_to_num(record.number("wait_seconds", 0.0))),
        failed=None if failed is None else str(failed),
    )


def _truths(record: Record, name: str, num: int) -> np.ndarray:
    """A list of true and false; all false where the record has none (a failed fit)."""
    values = record.get(name, [False] * num)
    if not isinstance(values, list) or len(values) != num or not all(isinstance(value, bool) for value in values):
        raise record.bad(f"{name} does not hold {num} times true or false")
    return np.array(values, dtype=bool)


def _reasons(record: Record, num: int) -> list[str]:
    values = record.get("reason_K") or [""] * num
    if not isinstance(values, list) or len(values) != num:
        raise record.bad(f"reason_K does not hold {num} texts")
    return [str(reason or "") for reason in values]


def _gap(record: Record) -> Gap:
    return Gap(record.integer("from_step"), record["step"], record.integer("records", 1))


def _event(record: Record) -> Event:
    """An alarm says its own text; of a change by a person (steer/), what it was, from which block, and by whom."""
    if record["type"] == "alarm":
        return Event(record["step"], "alarm", " ".join(str(record.value("text")).split()))
    try:
        entry = Entry.from_dict(record)
        text = f"{describe(entry)}, from block {entry.block:,} on, by {entry.who}"
    except (ValueError, TypeError, AttributeError) as error:  # values of other kinds than a run writes
        raise record.bad(f"it is no change of a run ({error})") from error
    return Event(record["step"], "change", " ".join(text.split()))
