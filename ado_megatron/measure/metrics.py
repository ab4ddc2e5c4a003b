"""metrics.jsonl: one JSON object a line; a header first, then what the run measured, in the order of the steps.

    {"type": "run", "version": 1, "domains": …, …}          the header: what does not change
    {"type": "step", "step": 10, "counts_K": …, …}          a logging interval; `step`: steps done when it was written
    {"type": "fit" | "validation" | "test" | "progress", "step": …, …}
    {"type": "gap", "step": 40, "from_step": 20, "records": 3}   so many records could not be written and are lost

Whoever reads such a file goes through `read_metrics`; it is written by metrics_writer.py alone.

Legend: K domains.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ado_megatron.errors import UserError
from ado_megatron.files import open_regular
from ado_megatron.measure.record import MOST, Record

VERSION = 1
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
    if not records or records[0]["type"] != "run":
        raise UserError(f"{path} does not begin with the line that describes its run; is it a run's metrics.jsonl?")
    version = records[0].get("version")
    if version != VERSION or isinstance(version, bool):
        raise UserError(f"{path} is of version {version!r}; this ado_megatron reads version {VERSION}")
    return records


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
                    raise UserError(f"line {number} of {path} is longer than {LONGEST_LINE >> 20} MiB: no record is")
                yield number, line
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give the path of a metrics.jsonl") from error


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
