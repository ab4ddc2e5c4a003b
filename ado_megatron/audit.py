"""`ado-megatron audit RUN`: a proof, from what ranks logged and nothing else, that no sample was repeated or skipped.

What is checked, over the records in force (an attempt that starts at step s replaces earlier records from step s on):
- the global sample indices are 0, 1, 2, … without a gap or a second draw, in the order of the steps;
- all ranks that drew index i drew the same (dataset, sample), and belong to one data-parallel rank;
- of each dataset, in the order of i, every run of `length` draws has every sample exactly once, and the last,
  unfinished run has none twice;
- in every step what was drawn is what a loss was computed on.
The checks themselves are measure/draw_check.py. Files are read step by step, side by side; memory is one bit a sample
of an epoch, for datasets that were drawn. The first failure ends the audit.

Legend: C datasets.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ado_megatron.errors import UserError
from ado_megatron.measure.draw_check import AuditFailure, StepCheck, first_index
from ado_megatron.measure.draw_file import DrawFile, Step
from ado_megatron.option_fields import Parser

__all__ = ["AuditFailure", "AuditResult", "audit", "main"]


@dataclass
class AuditResult:
    """What the audit found. `failure` is None when all is well, else what was found first, and `kind` its kind.

    samples, steps, seen: checked before a failure. repeated, skipped, ranks_differ: as AuditFailure counts them; the
    first two are None where it leaves them open. epochs_C: of the datasets of the last attempt.
    """

    samples: int = 0
    steps: int = 0
    attempts: int = 0
    files: int = 0
    repeated: int | None = 0
    skipped: int | None = 0
    ranks_differ: int = 0
    seen: int = 0
    unflushed_steps: int = 0
    torn_files: int = 0
    epochs_C: list[float] | None = None
    failure: str | None = None
    kind: str | None = None


def _steps_side_by_side(
    files: list[DrawFile], start: int, stop: float
) -> Iterator[tuple[int, list[tuple[dict[str, Any], Step]]]]:
    """(step, [(header, records), …]) for steps in [start, stop), over the files of one attempt."""
    heads = [(file.header, next(stream, None), stream) for file in files for stream in (file.steps(),)]
    while True:
        step = min((head.step for _, head, _ in heads if head is not None), default=stop)
        if step >= stop:
            return
        parts = []
        for n, (header, head, stream) in enumerate(heads):
            if head is not None and head.step == step:
                parts.append((header, head))
                heads[n] = (header, next(stream, None), stream)
        if step >= start:
            yield int(step), parts


def _attempts(files: Iterable[DrawFile]) -> list[list[DrawFile]]:
    """The files of each attempt, in the order in which the attempts were made."""
    attempts: dict[int, list[DrawFile]] = {}
    for file in files:
        if file.header:
            attempts.setdefault(file.header["attempt"], []).append(file)
    return [attempts[number] for number in sorted(attempts)]


def _check_headers(attempts: list[list[DrawFile]]) -> None:
    """AuditFailure where logs do not belong together: another seed, or ranks of one attempt with other datasets."""
    first = attempts[0][0]
    for attempt in attempts:
        for file in attempt:
            for name, other in (("seed", first), ("lengths_C", attempt[0]), ("stream_id_C", attempt[0])):
                if file.header.get(name) != other.header.get(name):
                    what = f"{file.path.name} and {other.path.name} were written with different {name}"
                    raise AuditFailure("files", what)


def _stream_ids(attempts: list[list[DrawFile]]) -> list[list[int]]:
    """The stream ids of each attempt's datasets. Logs of version 1 have none: they get those of a later attempt with
    the same lengths, or the datasets' numbers where all are of version 1. UserError where neither will do."""
    headers = [attempt[0].header for attempt in attempts]
    known = [header for header in headers if "stream_id_C" in header]
    found = []
    for attempt, header in zip(attempts, headers, strict=True):
        if "stream_id_C" not in header and not known:
            found.append(list(range(len(header["lengths_C"]))))
            continue
        same = [header] if "stream_id_C" in header else [h for h in known if h["lengths_C"] == header["lengths_C"]]
        if not same:
            raise UserError(
                f"{attempt[0].path} is a draw log of version 1, which does not name its datasets, and the later logs "
                "are of other datasets; audit the run before the datasets changed"
            )
        found.append(same[0]["stream_id_C"])
    return found


def audit(run: str | Path) -> AuditResult:
    """Audit a run directory. UserError when it holds no draw log, or one that is damaged or no regular file."""
    directory = Path(run) / "ado" / "audit"
    files = [DrawFile.open(path) for path in sorted(directory.glob("*.draws"))]
    attempts = _attempts(files)
    if not attempts:
        raise UserError(f"{directory} holds no draw log; train with --ado-audit")
    result = AuditResult(attempts=len(attempts), files=len(files))
    check = StepCheck(_any_seen(attempts), first_index(attempts[0][0].header))
    begun = check.next_i
    try:
        _check_headers(attempts)
        _check_attempts(attempts, check, result)
    except AuditFailure as found:
        result.failure, result.kind = str(found), found.kind
        result.repeated, result.skipped, result.ranks_differ = found.repeated, found.skipped, found.differ
    result.samples, result.seen = check.next_i - begun, check.seen
    result.torn_files = sum(file.torn for file in files)
    result.epochs_C = check.epochs_C()
    return result


def _check_attempts(attempts: list[list[DrawFile]], check: StepCheck, result: AuditResult) -> None:
    """Hand every step in force to the check, and count it. Raises AuditFailure."""
    starts = [min(file.header["step"] for file in attempt) for attempt in attempts]
    for n, (attempt, ids_C) in enumerate(zip(attempts, _stream_ids(attempts), strict=True)):
        check.begin(attempt[0].header, ids_C)
        stop = min(starts[n + 1 :], default=np.inf)
        whole = min(file.complete for file in attempt)
        if stop > whole:
            # Killed: ranks got to different steps. Of the last attempt the rest is not known; of an earlier one,
            # steps before the next start must be there, and a gap shows as one.
            latest = max(file.complete for file in attempt)
            result.unflushed_steps += max(0, int(min(latest, stop)) - whole) if n == len(attempts) - 1 else 0
            stop = whole
        for step, parts in _steps_side_by_side(attempt, starts[n], stop):
            check.take(step, parts)
            result.steps += 1


def _any_seen(attempts: list[list[DrawFile]]) -> bool:
    """Whether some rank logged a loss in the first step that it logged."""
    firsts = (next(file.steps(), None) for attempt in attempts for file in attempt)
    return any(step is not None and len(step.seen_N) > 0 for step in firsts)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0: nothing repeated or skipped, drawn = seen, all ranks agree; 1: the first difference is named."""
    parser = Parser(prog="ado-megatron audit", description=main.__doc__)
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    options: argparse.Namespace = parser.parse_args(argv)
    result = audit(options.run)
    print(json.dumps(asdict(result)) if options.json else "\n".join(_lines(result)))
    return 0 if result.failure is None else 1


def _lines(result: AuditResult) -> list[str]:
    """What is printed. Both numbers stand there whatever was found; "unknown" where it leaves them open."""
    lines = [f"{result.samples:,} samples in {result.steps:,} steps, {result.attempts} attempts, {result.files} files"]
    if result.torn_files or result.unflushed_steps:
        lines.append(
            f"{result.torn_files} files end in a torn record (ignored); {result.unflushed_steps} last steps were not "
            "written by all ranks (not counted)"
        )
    repeated, skipped = ("unknown" if number is None else number for number in (result.repeated, result.skipped))
    numbers = f"repeated = {repeated}, skipped = {skipped}"
    if result.failure is None:
        seen = f"drawn = seen = {result.seen:,}" if result.seen else "no rank logged a loss"
        return [*lines, f"{numbers}, {seen}, same on all ranks"]
    if result.kind == "ranks":
        numbers += f", ranks differ on {result.ranks_differ} samples of the step"
    return [*lines, f"FAILED {result.failure}", f"{numbers}; nothing after that was checked"]
