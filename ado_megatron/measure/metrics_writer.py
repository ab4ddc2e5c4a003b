"""Writes metrics.jsonl on rank zero. A disk that is full or gone costs records, never the training.

Legend: K domains.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ado_megatron.errors import UserError
from ado_megatron.files import BestEffort, atomic_write
from ado_megatron.measure.metrics import VERSION, encoded, readable_records

LOG = logging.getLogger(__name__)
BUFFER_BYTES = 4 << 20  # of lines that wait for a disk
MANY_DOMAINS = 100  # from here on lines are rarer
MOST_CELLS = 2_000_000  # lines × domains of a run: about 100 bytes each
MOST_FIT_CELLS = 500_000  # fits × domains: about 400 bytes each


class MetricsWriter:
    """Appends to one metrics.jsonl, and never raises an OSError.

    What cannot be written is kept, the oldest dropped beyond `buffer_bytes`, and tried again with the next record,
    after waits that double (BestEffort). A line that was cut off by the failure is removed before the next is written.
    When it works again, a record of type `gap` says how many were dropped and of which steps. clock: as for BestEffort.
    """

    def __init__(
        self, path: str | Path, header: dict[str, Any], *, buffer_bytes: int = BUFFER_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self.path = Path(path)
        self.lost = 0  # records dropped so far
        self._header = encoded({"type": "run", "version": VERSION} | header)
        self._effort = BestEffort(str(path), clock=clock)
        self._buffer_bytes = buffer_bytes
        self._waiting: deque[tuple[int, bytes]] = deque()  # (step, line)
        self._waiting_bytes = 0
        self._gap: dict[str, int] | None = None  # dropped since the last write that went well
        self._first: bytes | None = None  # what the file is yet to begin with
        self._size = self._written = 0  # bytes and records that this writer has put into the file

    def start(
        self, step: int, keep: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda record: record
    ) -> str | None:  # fmt: skip
        """Begin, or go on after `step` steps: what a killed run wrote past them is removed. keep: what is to stand for
        a record that was read; None: nothing.

        A file with damaged lines is set aside as metrics.jsonl.damaged-N, and its readable records are kept. Returns
        a sentence that says so (also logged), or None.
        """
        lines, sentence = [self._header], None
        if step > 0 and self.path.exists():
            kept, sentence = self._kept(step)
            lines += filter(None, (_again(new) for record in kept if (new := keep(record)) is not None))
        self._first, self._written = b"".join(lines), len(lines) - 1
        self._effort.attempt(self._write_out, now=True)
        return sentence

    def _kept(self, step: int) -> tuple[list[dict[str, Any]], str | None]:
        """The records up to `step` of the file that is there, and what was wrong with it."""
        try:
            records, damaged = readable_records(self.path)
            what = f"lines that are no records ({', '.join(map(str, damaged[:5]))}{', …' * (len(damaged) > 5)})"
        except UserError as error:
            records, damaged, what = [], [0], f"nothing that can be read: {error}"
        kept = [record | {"step": min(record["step"], step)} for record in records if _begins(record) <= step]
        if not damaged:
            return kept, None
        aside = _free_name(self.path)
        try:
            os.replace(self.path, aside)
            where = f"it is kept as {aside.name}"
        except OSError as error:
            where = f"it could not be kept ({error.strerror})"
        readable = sum(record["type"] != "gap" for record in kept)
        sentence = f"{self.path} has {what}; {where}, the run goes on with its {readable} readable records"
        LOG.warning("%s", sentence)
        return kept, sentence

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one object; `step` counts the steps done when it was made."""
        self.write_all(kind, [(step, values)])

    def write_all(self, kind: str, records: list[tuple[int, dict[str, Any]]]) -> None:
        """Append objects, (step, values) each, at one go."""
        for step, values in records:
            line = encoded({"type": kind, "step": step} | values)
            self._waiting.append((step, line))
            self._waiting_bytes += len(line)
        if records and not self._effort.attempt(self._write_out):
            self._bound()

    def close(self) -> None:
        """Try once more what is waiting; what cannot be written now is lost, and the log says so."""
        if self._first is None and not self._waiting:
            return
        if not self._effort.attempt(self._write_out, now=True):
            self.lost += len(self._waiting)
            LOG.warning("%s lacks the last records: %d could not be written", self.path, self.lost)
            self._waiting.clear()
            self._waiting_bytes = 0

    def _bound(self) -> None:
        """Drop the oldest lines until the rest fits in the buffer."""
        while self._waiting_bytes > self._buffer_bytes:
            step, line = self._waiting.popleft()
            self._waiting_bytes -= len(line)
            self.lost += 1
            self._add_to_gap(step, step, 1)

    def _add_to_gap(self, first: int, last: int, records: int) -> None:
        gap = self._gap or {"step": last, "from_step": first, "records": 0}
        self._gap = {
            "step": max(gap["step"], last), "from_step": min(gap["from_step"], first),
            "records": gap["records"] + records,
        }  # fmt: skip

    def _write_out(self) -> None:
        """Write all that is waiting, or raise OSError and leave it waiting."""
        if self._first is None and not self.path.exists():  # someone removed it, with all that it held
            if self._written:
                self._add_to_gap(0, self._waiting[0][0] if self._waiting else 0, self._written)
                self.lost += self._written
            self._first, self._written = self._header, 0
        if self._first is not None:
            atomic_write(self.path, self._first)
            self._size, self._first = len(self._first), None
        lines = [line for _, line in self._waiting]
        if self._gap is not None:
            lines.insert(0, encoded({"type": "gap"} | self._gap))
        data = b"".join(lines)
        with open(self.path, "r+b") as file:
            end = self._end_of_whole_lines(file)
            file.write(data)
        self._size, self._written, self._gap = end + len(data), self._written + len(lines), None
        self._waiting.clear()
        self._waiting_bytes = 0

    def _end_of_whole_lines(self, file: BinaryIO) -> int:
        """Where the next line begins; what the last try left half-written behind it is cut off."""
        end = file.seek(0, os.SEEK_END)
        if end == self._size or self._size == 0:
            return end
        if self._effort.failures and end > self._size:
            end = self._size
        elif end < self._size:  # someone has cut the file: perhaps in the middle of a line
            file.seek(0)
            end = file.read().rfind(b"\n") + 1
        file.truncate(end)
        return file.seek(end)


def lines_between(num_domains: int, log_interval: int, num_steps: int) -> int:
    """Steps between two lines of metrics.jsonl.

    A line of many domains is long, so with more than a hundred of them lines are rarer: one every K / 10 steps at most,
    and so few that a run of num_steps has MOST_CELLS, whatever its length: about 200 MB.
    """
    if num_domains <= MANY_DOMAINS:
        return log_interval
    return max(log_interval, num_domains // 10, -(-num_steps * num_domains // MOST_CELLS))


def fits_between(num_domains: int, num_fits: int) -> int:
    """Of how many fits one is written: all, unless a run of num_fits would come to more than MOST_FIT_CELLS."""
    return max(1, -(-num_fits * num_domains // MOST_FIT_CELLS))


class StepGroups:
    """Collects measured steps into the objects of logging intervals: sums over the steps since the last object."""

    def __init__(self, num_domains: int, interval: int):
        self._num_domains, self._interval = num_domains, interval
        self._clear()

    def _clear(self) -> None:
        self._steps = 0
        self._sums_Kx2 = np.zeros((self._num_domains, 2))
        self._counts_K = np.zeros(self._num_domains, dtype=np.int64)

    def add(self, step: int, samples_K: np.ndarray, sums_Kx2: np.ndarray) -> dict[str, Any] | None:
        """Add a 0-based step; returns the object's values when it ends a logging interval, else None.

        samples_K: samples of the step. sums_Kx2: (loss sum in nats, tokens).
        """
        ended = self.extend(np.array([step]), samples_K[None], sums_Kx2[None])
        return ended[0][1] if ended else None

    def extend(
        self, step_T: np.ndarray, samples_TxK: np.ndarray, sums_TxKx2: np.ndarray
    ) -> list[tuple[int, dict[str, Any]]]:
        """Add steps, in order, as `add` would one by one: (row, values) of those that end an interval."""
        ended: list[tuple[int, dict[str, Any]]] = []
        first = 0
        for stop in [*(np.flatnonzero((step_T + 1) % self._interval == 0) + 1).tolist(), len(step_T)]:
            if stop > first:
                self._steps += stop - first
                # a row after the other, so that the sums are those of `add`
                for total, part in ((self._sums_Kx2, sums_TxKx2), (self._counts_K, samples_TxK)):
                    np.add.reduce(np.concatenate([total[None], part[first:stop]]), axis=0, out=total)
            if stop > first and (step_T[stop - 1] + 1) % self._interval == 0:
                ended.append((stop - 1, self._flushed()))
            first = stop
        return ended

    def flush(self) -> dict[str, Any] | None:
        """What was collected since the last object, or None when that is nothing. loss_K: mean over tokens, in nats."""
        return self._flushed() if self._steps else None

    def _flushed(self) -> dict[str, Any]:
        loss_K, tokens_K = self._sums_Kx2.T
        mean_K = np.divide(loss_K, tokens_K, out=np.full(self._num_domains, np.nan), where=tokens_K > 0)
        values = {"steps": self._steps, "counts_K": self._counts_K, "tokens_K": tokens_K, "loss_K": mean_K}
        self._clear()
        return values


def _again(record: dict[str, Any]) -> bytes:
    """The line of a record that was read; nothing for one with numbers or text that no run writes."""
    try:
        return encoded(record)
    except TypeError:
        return b""


def _begins(record: dict[str, Any]) -> int:
    """The first step that a record speaks of: that of a gap, which has two, if it is one."""
    begins = record.get("from_step")
    return begins if type(begins) is int else record["step"]


def _free_name(path: Path) -> Path:
    """metrics.jsonl.damaged-N with the first N that is free."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    return aside
