"""metrics.jsonl: one JSON object a line, a header first, then steps, fits, validations and progress.

It is written for people and reports, so a write that fails never stops the run: what could not be written waits, within
bounds, and a record of type "gap" says how many were lost. Every reader goes through `read_metrics`.

Legend: K domains, C datasets.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ado_megatron.errors import UserError
from ado_megatron.files import BestEffort, atomic_write

VERSION = 1
PENDING_BYTES = 8 << 20  # of records that wait for a disk that takes no more
LOG = logging.getLogger(__name__)


class Record(dict):
    """A record that was read; `line` is its number in the file."""

    line: int = 0


# What reports and replays need of a record: K and C stand for one number a domain and a dataset, () for one number.
# A name with "?" may be missing; who needs it says so.
FIELDS = {
    "run": {"prior_K": "K", "lengths_C?": "C", "domain_of_C?": "C", "share_C?": "C", "caps_C?": "C", "block_size?": (),
            "num_blocks?": ()},
    "step": {"step": (), "consumed_samples?": (), "counts_K": "K", "tokens_K?": "K", "loss_K": "K", "weights_K?": "K",
             "epochs_C?": "C"},
    "fit": {"step": (), "log_beta_K?": "K", "log_epsilon_K?": "K", "alpha_K?": "K", "rms_K?": "K",
            "speed_stderr_K?": "K", "credit_K?": "K", "seconds?": (), "wait_seconds?": ()},
    "validation": {"step": (), "loss_K": "K"},
    "progress": {"step": (), "loss?": (), "lr?": (), "grad_norm?": (), "samples_per_second?": ()},
}  # fmt: skip


def check_record(record: Record, path: str | Path, header: Record) -> None:
    """UserError, naming file, line and field, for a record whose numbers are none, or not as many as `header` says.

    header: the run's first record, which is checked itself when it is `record`.
    """
    def wrong(what: str) -> UserError:
        return UserError(f"line {record.line} of {path}: {what}; the file is damaged, or of another program")

    if record is header:
        for name, kind in (("domains", str), ("columns", str)):
            names = record.get(name, [])
            if not isinstance(names, list) or not all(isinstance(n, kind) for n in names):
                raise wrong(f"{name} is no list of names")
        if not record.get("domains"):
            raise wrong("it names no domain")
    sizes = {"K": len(header["domains"]), "C": len(header.get("domain_of_C", ()))}
    for field, shape in FIELDS.get(record["type"], {}).items():
        name = field.removesuffix("?")
        value = record.get(name)
        if value is None:
            if field.endswith("?") or name in record:
                continue
            raise wrong(f"it lacks {name}")
        values = value if shape else [value]
        if not isinstance(values, list) or (shape and len(values) != sizes[shape]):
            raise wrong(f"{name} is no list of {sizes[shape]} numbers" if shape else f"{name} is no number")
        for number in values:
            if number is not None and type(number) not in (int, float):
                raise wrong(f"{name} holds {number!r}, which is no number")
            if number is not None and abs(number) >= 2**63:
                raise wrong(f"{name} holds a number that is too large")


def encode(record: dict[str, Any]) -> bytes:
    """One line of the file; what is not finite becomes null, since JSON has no NaN."""
    return orjson.dumps(record, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def _plain(value: Any) -> Any:
    """For what orjson does not take as it is: strided arrays, arrays of text."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} in a record of metrics.jsonl")


def read_metrics(path: str | Path) -> list[Record]:
    """All records of a metrics.jsonl, in order; a last line that a killed run left half-written is ignored.

    Raises UserError, naming the line, for one before it that is no record, and for a path that is no regular file.
    """
    records, bad, lines = _read(path)
    if bad and bad != [lines]:
        raise UserError(
            f"line {bad[0]} of {path} is not a record of metrics.jsonl; remove the line, or resume the run, which sets "
            "the damaged file aside"
        )
    return records


def _read(path: str | Path) -> tuple[list[Record], list[int], int]:
    """(the records, the numbers of the lines that are none, the number of lines)."""
    if not Path(path).is_file():
        raise UserError(f"{path} is not a regular file, so it is no metrics.jsonl")
    records: list[Record] = []
    bad, number = [], 0
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                record = _record(line)
                if record is None:
                    bad.append(number)
                else:
                    record.line = number
                    records.append(record)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    return records, bad, number


def _record(line: bytes) -> Record | None:
    """A line's record: an object with a type and, but for the header, a step; None if it is none."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("type"), str):
        return None
    step = record.get("step")
    whole = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 1 << 53
    return Record(record) if record["type"] == "run" or whole else None


class MetricsWriter:
    """Appends to one metrics.jsonl. Rank zero only. Never raises for a file that cannot be written."""

    def __init__(self, path: str | Path, header: dict[str, Any], clock: Callable[[], float] = time.monotonic):
        self.path = Path(path)
        self._header = {"type": "run", "version": VERSION} | header
        self._try = BestEffort(str(self.path), clock)
        self._waiting: deque[bytes] = deque()
        self._bytes = self._lost = 0
        self._begin: int | None = None  # steps done where the file is to begin or go on, until that was written
        self._size: int | None = None  # bytes of the file up to its last whole record of ours

    def start(self, step: int) -> None:
        """Begin, or go on after `step` steps: what a killed run wrote past them is removed."""
        self._begin = step
        self._try(self._flush)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one object; `step` counts the steps done when it was made."""
        line = encode({"type": kind, "step": step} | values)
        self._waiting.append(line)
        self._bytes += len(line)
        while self._bytes > PENDING_BYTES and len(self._waiting) > 1:
            self._bytes -= len(self._waiting.popleft())
            self._lost += 1
        self._try(self._flush)
        if self._lost and not self._waiting:
            lost, self._lost = self._lost, 0
            self.write("gap", step, lost=lost)

    def _flush(self) -> None:
        """Write all that waits; raises OSError."""
        if self._begin is not None:
            self._rewrite(self._begin)
            self._begin = None
        if not self._waiting:
            return
        data = b"".join(self._waiting)
        with open(self.path, "ab") as file:
            end = file.tell()
            if self._size is not None and end > self._size:  # a part of a record, of a write that failed
                file.truncate(self._size)
                end = self._size
            self._size = end
            file.write(data)
            file.flush()
            self._size = file.tell()
        self._waiting.clear()
        self._bytes = 0

    def _rewrite(self, step: int) -> None:
        """The file as it was after `step` steps, under this run's header; a damaged one is kept beside."""
        lines = [encode(self._header)]
        if step > 0 and self.path.is_file():
            records, bad, last = _read(self.path)
            if bad and bad != [last]:
                aside = _free_name(self.path.with_name(self.path.name + ".damaged"))
                os.replace(self.path, aside)
                LOG.warning("%s had %d damaged lines, the first is %d; it is kept as %s, and the %d readable records "
                            "go on", self.path, len(bad), bad[0], aside.name, len(records))  # fmt: skip
            lines += [encode(r) for r in records if r["type"] != "run" and r["step"] <= step]
        data = b"".join(lines)
        atomic_write(self.path, data)
        self._size = len(data)


def _free_name(path: Path) -> Path:
    number = 1
    while path.with_name(f"{path.name}-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}-{number}")


class StepGroups:
    """Collects measured steps into the objects of logging intervals: sums over the steps since the last object.

    A line of many domains is long, so with more than a hundred of them lines are rarer: one every K / 10 steps at most.
    """

    def __init__(self, num_domains: int, log_interval: int):
        self._num_domains, self._interval = num_domains, max(log_interval, num_domains // 10)
        self._clear()

    def _clear(self) -> None:
        self._steps = 0
        self._sums_Kx2 = np.zeros((self._num_domains, 2))
        self._counts_K = np.zeros(self._num_domains, dtype=np.int64)

    def add(self, step: int, samples_K: np.ndarray, sums_Kx2: np.ndarray) -> dict[str, Any] | None:
        """Add a 0-based step; returns the object's values when it ends a logging interval, else None."""
        self._steps += 1
        self._sums_Kx2 += sums_Kx2
        self._counts_K += samples_K
        return self.flush() if (step + 1) % self._interval == 0 else None

    def flush(self) -> dict[str, Any] | None:
        """What was collected since the last object, or None when that is nothing."""
        if self._steps == 0:
            return None
        loss_K, tokens_K = self._sums_Kx2.T
        mean_K = np.divide(loss_K, tokens_K, out=np.full(self._num_domains, np.nan), where=tokens_K > 0)
        values = {"steps": self._steps, "counts_K": self._counts_K, "tokens_K": tokens_K, "loss_K": mean_K}
        self._clear()
        return values
