"""metrics.jsonl: one JSON object a line; a header first, then what the run measured, in the order of the steps.

    {"type": "run", "version": 1, "domains": …, …}          the header: what does not change
    {"type": "step", "step": 10, "counts_K": …, …}          a logging interval; `step`: steps done when it was written
    {"type": "fit" | "validation" | "test" | "progress", "step": …, …}
    {"type": "gap", "step": 40, "from_step": 20, "records": 3}   so many records could not be written and are lost

Whoever reads such a file goes through `read_metrics` or, while it grows, `MetricsFollower`; it is written by
metrics_writer.py alone.

Legend: K domains.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from ado_megatron.errors import UserError
from ado_megatron.files import open_regular
from ado_megatron.measure.record import MOST, Record

VERSION = 1
_RECOGNISED = 256  # bytes before the point up to which a file was read, compared at the next look
LONGEST_LINE = 64 << 20  # bytes; a header of 32,767 datasets has a tenth


def encoded(record: dict[str, Any]) -> bytes:
    """One line of the file; what is not finite becomes null, since JSON has no NaN."""
    return orjson.dumps(record, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def _plain(value: Any) -> Any:
    """For what orjson does not take as it is: arrays with strides or of text."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"a record of metrics.jsonl cannot hold a {type(value).__name__}")


def read_metrics(path: str | Path) -> list[Record]:
    """All records of a metrics.jsonl, the header first; a last line that a killed run left half-written is ignored.

    Raises UserError, naming the line, for one that is no record, and for a file that does not begin with a header of
    this version. What a record holds is checked when it is asked for (Record).
    """
    records = []
    for number, line in _lines(path):
        values = _parsed(line)
        if values is None:
            if not line.endswith(b"\n"):
                break  # the last line, half-written
            raise UserError(
                f"line {number} of {path} is not a record of metrics.jsonl; remove the line, or resume the run, which "
                "keeps the lines that can be read"
            )
        records.append(Record(values, path, number))
    _check_header(path, records[0] if records else None)
    return records


def read_header(path: str | Path) -> Record:
    """The header of a metrics.jsonl alone. UserError as of read_metrics."""
    first = next(_lines(path), None)
    values = None if first is None else _parsed(first[1])
    header = None if values is None else Record(values, path, 1)
    _check_header(path, header)
    assert header is not None
    return header


def _check_header(path: str | Path, header: Record | None) -> None:
    if header is None or header["type"] != "run":
        raise UserError(f"{path} does not begin with the line that describes its run; is it a run's metrics.jsonl?")
    version = header.get("version")
    if version != VERSION or isinstance(version, bool):
        raise UserError(f"{path} is of version {version!r}; this ado_megatron reads version {VERSION}")


@dataclasses.dataclass(frozen=True)
class News:
    """What a look at the file found. afresh: it is another file than at the last look, or was cut or written anew, and
    `records` begins with its header. damaged: numbers of new lines that are no records."""

    afresh: bool
    records: list[Record]
    damaged: list[int]


class MetricsFollower:
    """Reads a metrics.jsonl again and again while it grows.

    A resume writes the file anew, a person may cut, move or remove it: then it is read from its first line. A last line
    that is half-written waits until it is whole, and so does a file that is not there.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._forget()

    def _forget(self) -> None:
        self._file: tuple[int, int] | None = None  # device and inode
        self._at = self._lines = 0  # bytes and lines read
        self._last = b""  # the end of what was read, to recognise the file by

    def look(self) -> News:
        """What is new since the last look. UserError for a file that is no metrics.jsonl, or cannot be read."""
        try:
            with open_regular(self.path) as file:
                return self._read(file)
        except FileNotFoundError:
            self._forget()
            return News(False, [], [])
        except OSError as error:
            what = f"{self.path} cannot be read ({error.strerror})"
            raise UserError(f"{what}; give the path of a metrics.jsonl") from error

    def _read(self, file: BinaryIO) -> News:
        status = os.fstat(file.fileno())
        if self._at and not self._goes_on(file, status):
            self._forget()
        self._file = status.st_dev, status.st_ino
        afresh = self._at == 0
        records: list[Record] = []
        damaged: list[int] = []
        file.seek(self._at)
        while (line := file.readline(LONGEST_LINE + 1)).endswith(b"\n"):
            values = _parsed(line)
            if self._lines == 0:
                _check_header(self.path, None if values is None else Record(values, self.path, 1))
            self._lines += 1
            self._at += len(line)
            self._last = line[-_RECOGNISED:]
            if values is None:
                damaged.append(self._lines)
            else:
                records.append(Record(values, self.path, self._lines))
        if len(line) > LONGEST_LINE:
            raise UserError(_too_long(self._lines + 1, self.path))
        return News(afresh and bool(records), records, damaged)

    def _goes_on(self, file: BinaryIO, status: os.stat_result) -> bool:
        """True if what was read is still the beginning of the file."""
        if (status.st_dev, status.st_ino) != self._file or status.st_size < self._at:
            return False
        file.seek(self._at - len(self._last))
        return file.read(len(self._last)) == self._last


def readable_records(path: str | Path) -> tuple[list[Record], list[int]]:
    """(records, line numbers of what is none): what can be saved of a damaged file, without its headers.

    In the place of damaged lines stands a record of type gap. A half-written last line is not counted as damage.
    Raises UserError for a file that cannot be read at all.
    """
    records: list[Record] = []
    damaged: list[int] = []
    step = lost = 0
    for number, line in _lines(path):
        values = _parsed(line)
        if values is None:
            if line.endswith(b"\n"):
                damaged.append(number)
                lost += 1
        elif values["type"] != "run":
            if lost:
                records.append(Record(_gap(step, values["step"], lost), path, number - 1))
            records.append(Record(values, path, number))
            step, lost = values["step"], 0
    if lost:
        records.append(Record(_gap(step, step, lost), path, damaged[-1]))
    return records, damaged


def _gap(from_step: int, step: int, records: int) -> dict[str, Any]:
    return {"type": "gap", "step": step, "from_step": from_step, "records": records}


def _lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line with its end) of a regular file."""
    try:
        with open_regular(path) as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise UserError(_too_long(number, path))
                yield number, line
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the path of a metrics.jsonl") from error


def _too_long(number: int, path: str | Path) -> str:
    return f"line {number} of {path} is longer than {LONGEST_LINE >> 20} MiB: no record is"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The object of a line, or None: it has a type and, but for a header, a step."""
    try:
        values = json.loads(line.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, or lists in lists in lists
        return None
    if not isinstance(values, dict) or not isinstance(values.get("type"), str):
        return None
    step = 0 if values["type"] == "run" else values.get("step")
    return values if type(step) is int and 0 <= step <= MOST else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
