"""`ado-megatron audit RUN`: a proof, from what ranks logged and nothing else, that no sample was repeated or skipped.

What is checked, over the records in force (an attempt that starts at step s replaces earlier records from step s on):
- the global sample indices are 0, 1, 2, … without a gap or a second draw, in the order of the steps;
- all ranks that drew index i drew the same (column, sample), and belong to one data-parallel rank;
- of each column, in the order of i, every run of `length` draws has every sample exactly once, and the last, unfinished
  run has none twice;
- in every step what was drawn is what a loss was computed on.
Files are read step by step, side by side; memory is one bit a sample of an epoch, for columns that were drawn.

Legend: C columns, N samples of a step.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ado_megatron.errors import UserError
from ado_megatron.measure.draw_log import DrawFile, Step
from ado_megatron.stream.sample_key import unpack_key

__all__ = ["AuditFailure", "AuditResult", "audit", "main"]


class AuditFailure(Exception):
    """The first thing found that should not be; the message says what and where.

    repeated, skipped: how many samples it shows to be so; None where it shows that ranks differ, so that neither number
    is known.
    """

    def __init__(self, message: str, repeated: int | None = 0, skipped: int | None = 0):
        super().__init__(message)
        self.repeated, self.skipped = repeated, skipped


@dataclass
class AuditResult:
    """What the audit found. `failure` is None when all is well. repeated, skipped: samples that the first finding shows
    to be so, None if it leaves the number open."""

    samples: int = 0
    steps: int = 0
    attempts: int = 0
    files: int = 0
    repeated: int | None = 0
    skipped: int | None = 0
    seen: int = 0
    unflushed_steps: int = 0
    torn_files: int = 0
    epochs_C: list[float] | None = None
    failure: str | None = None


class DatasetCheck:
    """Every epoch of one dataset a permutation: one bit a sample, cleared when the epoch is complete."""

    def __init__(self, column: int, length: int, before: int):
        self.column, self.length = column, length
        self.drawn = before  # draws so far, with those before the log begins
        self._known = before % length == 0  # else the first epoch is only checked for repetition
        self._bits = np.zeros(-(-length // 8), dtype=np.uint8)
        self._last: np.ndarray | None = None

    def take(self, i_N: np.ndarray, sample_N: np.ndarray) -> None:
        """The next draws, in order of i. Raises AuditFailure at the first repetition."""
        start = 0
        while start < len(sample_N):
            stop = min(len(sample_N), start + self.length - self.drawn % self.length)
            self._take_within_epoch(i_N[start:stop], sample_N[start:stop])
            self.drawn += stop - start
            if self.drawn % self.length == 0:
                self._bits[:] = 0
            start = stop

    def _take_within_epoch(self, i_N, sample_N) -> None:
        outside = np.flatnonzero((sample_N < 0) | (sample_N >= self.length))
        if outside.size:
            n = outside[0]
            raise AuditFailure(
                f"index {i_N[n]} read sample {sample_N[n]} of column {self.column}, which has {self.length}"
            )
        bit_N = np.left_shift(1, sample_N & 7).astype(np.uint8)
        again_N = (self._bits[sample_N >> 3] & bit_N) != 0
        order = np.argsort(sample_N, kind="stable")
        again_N[order[1:]] |= sample_N[order[1:]] == sample_N[order[:-1]]
        if again_N.any():
            n = int(np.argmax(again_N))
            raise AuditFailure(
                f"repeated: index {i_N[n]} read sample {sample_N[n]} of column {self.column} again in epoch "
                f"{self.drawn // self.length} (and so another sample of that epoch is skipped)",
                repeated=int(again_N.sum()), skipped=int(again_N.sum()),
            )  # fmt: skip
        np.bitwise_or.at(self._bits, sample_N >> 3, bit_N)


class Auditor:
    """Takes the steps in order, all ranks of a step together."""

    def __init__(self, header: dict[str, Any], has_seen: bool):
        self.has_seen, self.seen = has_seen, 0
        self.first = self.next_i = sum(header["start_C"])
        # By identity and length, not by number: a resumed run may have datasets added, removed or in another order.
        self._datasets: dict[tuple[int, int], DatasetCheck] = {}
        self.begin(header)

    def begin(self, header: dict[str, Any]) -> None:
        """An attempt begins: which datasets its numbers stand for, and how far each was read. Raises AuditFailure."""
        self._of_C = list(zip(header["stream_id_C"], header["lengths_C"], strict=True))
        self._before_C = header["start_C"]

    def _dataset(self, column: int) -> DatasetCheck:
        key = self._of_C[column]
        if key not in self._datasets:
            self._datasets[key] = DatasetCheck(column, key[1], self._before_C[column])
        return self._datasets[key]

    def epochs_C(self) -> list[float]:
        """Epochs of each dataset of the last attempt."""
        drawn = [self._datasets[key].drawn if key in self._datasets else before
                 for key, before in zip(self._of_C, self._before_C, strict=True)]  # fmt: skip
        return [round(n / length, 4) for n, (_, length) in zip(drawn, self._of_C, strict=True)]

    def take(self, step: int, parts: list[tuple[dict, Step]]) -> None:
        """One step: (header, records) of each rank that has any. Raises AuditFailure."""
        key_N, sample_N = self._agreed(step, parts)
        i_N, column_N = unpack_key(key_N)
        self._contiguous(step, i_N)
        self._as_seen(step, key_N, parts)
        if len(column_N) and column_N.max() >= len(self._of_C):
            raise AuditFailure(f"step {step} drew from column {column_N.max()}, but there are {len(self._of_C)}")
        for column in np.unique(column_N).tolist():
            mine = column_N == column
            self._dataset(column).take(i_N[mine], sample_N[mine])

    def _agreed(self, step: int, parts) -> tuple[np.ndarray, np.ndarray]:
        """key_N and sample_N of the step in order of i, each index once."""
        key_N = np.concatenate([part.key_N for _, part in parts])
        sample_N = np.concatenate([part.sample_N for _, part in parts])
        rank_N = np.repeat([header["rank"] for header, _ in parts], [len(part.key_N) for _, part in parts])
        dp_N = np.repeat([header.get("dp_rank", -1) for header, _ in parts], [len(part.key_N) for _, part in parts])
        i_N = unpack_key(key_N)[0]
        order = np.lexsort((rank_N, i_N))
        i_N, key_N, sample_N, rank_N, dp_N = (a_N[order] for a_N in (i_N, key_N, sample_N, rank_N, dp_N))
        same = i_N[1:] == i_N[:-1]
        unknown, counted = (lambda bad: (None, None)), (lambda bad: (int(bad.sum()), 0))
        for bad, what, numbers in (
            (same & (rank_N[1:] == rank_N[:-1]), "drew twice: repeated", counted),
            (same & ((key_N[1:] != key_N[:-1]) | (sample_N[1:] != sample_N[:-1])), "differ on", unknown),
            (same & (dp_N[1:] != dp_N[:-1]), "are of different data-parallel ranks and both drew", counted),
        ):
            if bad.any():
                n = int(np.argmax(bad))
                pairs = [
                    f"rank {rank_N[m]} (column {unpack_key(key_N[m])[1]}, sample {sample_N[m]})" for m in (n, n + 1)
                ]
                raise AuditFailure(f"step {step}: {' and '.join(pairs)} {what} index {i_N[n]}", *numbers(bad))
        once = np.concatenate([[True], ~same]) if len(i_N) else np.zeros(0, bool)
        return key_N[once], sample_N[once]

    def _contiguous(self, step: int, i_N: np.ndarray) -> None:
        wrong = np.flatnonzero(i_N != self.next_i + np.arange(len(i_N)))
        if wrong.size:
            found, expected = int(i_N[wrong[0]]), self.next_i + int(wrong[0])
            if found < expected:
                again = int((i_N < self.next_i).sum()) or 1
                raise AuditFailure(f"repeated: step {step} drew index {found} again (index {expected} was next)", again)
            raise AuditFailure(
                f"skipped: step {step} drew index {found}, but index {expected} was never drawn", 0, found - expected
            )
        self.next_i += len(i_N)

    def _as_seen(self, step: int, key_N: np.ndarray, parts) -> None:
        if not self.has_seen or any(part.skipped for _, part in parts):
            return
        seen = [np.zeros(0, np.int64)]
        for header, part in parts:
            once_N, times_N = np.unique(part.seen_N, return_counts=True)
            if len(times_N) and times_N.min() != times_N.max():
                key = int(once_N[times_N.argmax()])
                raise AuditFailure(
                    f"step {step}: rank {header['rank']} computed a loss on index {unpack_key(key)[0]} "
                    f"{times_N.max()} times, on others {times_N.min()} times"
                )
            seen.append(once_N)
        seen_N, drawn_N = np.unique(np.concatenate(seen)), np.sort(key_N)
        self.seen += len(seen_N)
        for keys, what in (
            (np.setdiff1d(drawn_N, seen_N), "was drawn, but no loss was computed on it"),
            (np.setdiff1d(seen_N, drawn_N), "has a loss, but was not drawn"),
        ):
            if len(keys):
                i, column = unpack_key(int(keys[0]))
                raise AuditFailure(f"step {step}: index {i} (column {column}) {what}")


def _steps_side_by_side(files: list[DrawFile], start: int, stop: float) -> Iterator[tuple[int, list]]:
    """(step, [(header, records), …]) for steps in [start, stop), over the files of one attempt."""
    streams = [(file.header, file.steps()) for file in files]
    heads = [(header, next(stream, None), stream) for header, stream in streams]
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
            yield step, parts


def _attempts(files: Iterable[DrawFile]) -> list[list[DrawFile]]:
    attempts: dict[int, list[DrawFile]] = {}
    for file in files:
        if file.header:
            attempts.setdefault(file.header["attempt"], []).append(file)
    return [attempts[number] for number in sorted(attempts)]


def _check_headers(attempts: list[list[DrawFile]]) -> None:
    """One seed in the whole run, the same datasets on all ranks of an attempt. Raises AuditFailure."""
    first = attempts[0][0]
    for attempt in attempts:
        for file in attempt:
            for name, other in (("seed", first), ("lengths_C", attempt[0]), ("stream_id_C", attempt[0])):
                if file.header[name] != other.header[name]:
                    raise AuditFailure(
                        f"{file.path.name} and {other.path.name} were written with different {name}", None, None
                    )


def audit(run: str | Path) -> AuditResult:
    """Audit a run directory. UserError when it holds no draw log."""
    directory = Path(run) / "ado" / "audit"
    files = [DrawFile.open(path) for path in sorted(directory.glob("*.draws"))]
    attempts = _attempts(files)
    if not attempts:
        raise UserError(f"{directory} holds no draw log; train with --ado-audit")
    result = AuditResult(attempts=len(attempts), files=len(files))
    auditor = Auditor(attempts[0][0].header, _any_seen(attempts))
    try:
        _check_headers(attempts)
        _take_attempts(auditor, attempts, result)
    except AuditFailure as failure:
        result.failure, result.repeated, result.skipped = str(failure), failure.repeated, failure.skipped
    result.samples, result.seen = auditor.next_i - auditor.first, auditor.seen
    result.torn_files = sum(file.torn for file in files)
    result.epochs_C = auditor.epochs_C()
    return result


def _take_attempts(auditor: Auditor, attempts: list[list[DrawFile]], result: AuditResult) -> None:
    """Every attempt up to where the next one starts."""
    starts = [min(file.header["step"] for file in attempt) for attempt in attempts]
    for n, attempt in enumerate(attempts):
        auditor.begin(attempt[0].header)
        stop = min(starts[n + 1 :], default=np.inf)
        whole = min(file.complete for file in attempt)
        if stop > whole:
            # Killed: ranks got to different steps. Of the last attempt the rest is not known; of an earlier one, steps
            # before the next start must be there, and a gap shows as one.
            latest = max(file.complete for file in attempt)
            result.unflushed_steps += max(0, int(min(latest, stop)) - whole) if n == len(attempts) - 1 else 0
            stop = whole
        for step, parts in _steps_side_by_side(attempt, starts[n], stop):
            auditor.take(step, parts)
            result.steps += 1


def _any_seen(attempts: list[list[DrawFile]]) -> bool:
    return any(len(step.seen_N) for attempt in attempts for file in attempt for step in _first_steps(file))


def _first_steps(file: DrawFile) -> Iterator[Step]:
    step = next(file.steps(), None)
    return iter(() if step is None else (step,))


def main(argv: list[str] | None = None) -> int:
    """Exit status 0: nothing repeated or skipped, drawn = seen, all ranks agree; 1: the first difference is named."""
    parser = argparse.ArgumentParser(prog="ado-megatron audit", description=main.__doc__)
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--json", action="store_true", help="print the verdict as one JSON object")
    options = parser.parse_args(argv)
    result = audit(options.run)
    if options.json:
        print(json.dumps(asdict(result)))
    else:
        print("\n".join(_lines(result)))
    return 0 if result.failure is None else 1


def _lines(result: AuditResult) -> list[str]:
    lines = [f"{result.samples:,} samples in {result.steps:,} steps, {result.attempts} attempts, {result.files} files"]
    if result.torn_files or result.unflushed_steps:
        lines.append(
            f"{result.torn_files} files end in a torn record (ignored); {result.unflushed_steps} last steps were not "
            "written by all ranks (not counted)"
        )
    if result.failure is not None:
        numbers = [n if n is not None else "unknown" for n in (result.repeated, result.skipped)]
        return [*lines, f"FAILED {result.failure}", f"repeated = {numbers[0]}, skipped = {numbers[1]}"]
    seen = f"drawn = seen = {result.seen:,}" if result.seen else "no rank logged a loss"
    return [*lines, f"repeated = {result.repeated}, skipped = {result.skipped}, {seen}, same on all ranks"]
