"""metrics.jsonl: one JSON object a line, a header first, then steps, fits, validations and progress.

Legend: K domains, C columns. Every reader goes through `read_metrics`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ado_megatron.errors import UserError
from ado_megatron.files import atomic_write

VERSION = 1


def jsonable(value: Any) -> Any:
    """Plain JSON values; what is not finite becomes null, since JSON has no NaN."""
    if isinstance(value, dict):
        return {name: jsonable(v) for name, v in value.items()}
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """All records of a metrics.jsonl, in order; a last line that a killed run left half-written is ignored.

    Raises UserError, naming the line, for one before it that is no record.
    """
    records = []
    lines = Path(path).read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            record["type"]  # what every record has
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise UserError(f"line {number} of {path} is not a record of metrics.jsonl") from None
        records.append(record)
    return records


class MetricsWriter:
    """Appends to one metrics.jsonl. Rank zero only."""

    def __init__(self, path: str | Path, header: dict[str, Any]):
        self.path = Path(path)
        self._header = {"type": "run", "version": VERSION} | header

    def start(self, step: int) -> None:
        """Begin, or go on after `step` steps: what a killed run wrote past them is removed."""
        lines = [json.dumps(jsonable(self._header))]
        if step > 0 and self.path.exists():
            lines += [json.dumps(r) for r in read_metrics(self.path) if r["type"] != "run" and r["step"] <= step]
        atomic_write(self.path, ("\n".join(lines) + "\n").encode())

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one object; `step` counts the steps done when it was made."""
        with open(self.path, "a") as file:
            file.write(json.dumps(jsonable({"type": kind, "step": step} | values)) + "\n")


class StepGroups:
    """Collects measured steps into the objects of logging intervals: sums over the steps since the last object."""

    def __init__(self, num_domains: int, log_interval: int):
        self._num_domains, self._interval = num_domains, log_interval
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
