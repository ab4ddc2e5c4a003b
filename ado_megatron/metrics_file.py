"""The one reader of metrics.jsonl: the writer's own resume, the report and the replay go through it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ado_megatron.errors import UserError


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
