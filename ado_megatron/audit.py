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

import numpy as np

from ado_megatron.errors import UserError
from ado_megatron.measure.draw_log import DrawFile, DrawLog, Step
from ado_megatron.stream.sample_key import unpack_key

__all__ = ["Difference", "DrawLog", "Verdict", "audit", "main"]


class Difference(Exception):
    """The first thing found that should not be; the message says what and where."""


@dataclass
class Verdict:
    """What the audit found. `difference` is None when all is well."""

    samples: int = 0
    steps: int = 0
    attempts: int = 0
    files: int = 0
    repeated: int = 0
    skipped: int = 0
    seen: int = 0
    unflushed_steps: int = 0
    torn_files: int = 0
    epochs_C: list[float] | None = None
    difference: str | None = None


class ColumnCheck:
    """Every epoch of one column a permutation: one bit a sample, cleared when the epoch is complete."""

    def __init__(self, column: int, length: int, before: int):
        self.column, self.length = column, length
        self.drawn = before  # draws so far, with those before the log begins
        self._known = before % length == 0  # else the first epoch is only checked for repetition
        self._bits = np.zeros(-(-length // 8), dtype=np.uint8)
        self._last: np.ndarray | None = None

    def take(self, i_N: np.ndarray, sample_N: np.ndarray) -> None:
        """The next draws, in order of i. Raises Difference at the first repetition."""
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
            raise Difference(
                f"index {i_N[n]} read sample {sample_N[n]} of column {self.column}, which has {self.length}"
            )
        bit_N = np.left_shift(1, sample_N & 7).astype(np.uint8)
        again_N = (self._bits[sample_N >> 3] & bit_N) != 0
        order = np.argsort(sample_N, kind="stable")
        again_N[order[1:]] |= sample_N[order[1:]] == sample_N[order[:-1]]
        if again_N.any():
            n = int(np.argmax(again_N))
            raise Difference(
                f"repeated: index {i_N[n]} read sample {sample_N[n]} of column {self.column} again in epoch "
                f"{self.drawn // self.length} (and so another sample of that epoch is skipped)"
            )
        np.bitwise_or.at(self._bits, sample_N >> 3, bit_N)


class Auditor:
    """Takes the steps in order, all ranks of a step together."""

    def __init__(self, header: dict, has_seen: bool):
        self.lengths_C, self.before_C, self.has_seen = header["lengths_C"], header["start_C"], has_seen
        self.first = self.next_i = sum(self.before_C)
        self.columns: dict[int, ColumnCheck] = {}
        self.seen = 0

    def take(self, step: int, parts: list[tuple[dict, Step]]) -> None:
        """One step: (header, records) of each rank that has any. Raises Difference."""
        key_N, sample_N = self._agreed(step, parts)
        i_N, column_N = unpack_key(key_N)
        self._contiguous(step, i_N)
        self._as_seen(step, key_N, parts)
        if len(column_N) and column_N.max() >= len(self.lengths_C):
            raise Difference(f"step {step} drew from column {column_N.max()}, but there are {len(self.lengths_C)}")
        for column in np.unique(column_N).tolist():
            if column not in self.columns:
                self.columns[column] = ColumnCheck(column, self.lengths_C[column], self.before_C[column])
            mine = column_N == column
            self.columns[column].take(i_N[mine], sample_N[mine])

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
        for bad, what in (
            (same & (rank_N[1:] == rank_N[:-1]), "drew twice: repeated"),
            (same & ((key_N[1:] != key_N[:-1]) | (sample_N[1:] != sample_N[:-1])), "differ on"),
            (same & (dp_N[1:] != dp_N[:-1]), "are of different data-parallel ranks and both drew"),
        ):
            if bad.any():
                n = int(np.argmax(bad))
                pairs = [
                    f"rank {rank_N[m]} (column {unpack_key(key_N[m])[1]}, sample {sample_N[m]})" for m in (n, n + 1)
                ]
                raise Difference(f"step {step}: {' and '.join(pairs)} {what} index {i_N[n]}")
        once = np.concatenate([[True], ~same]) if len(i_N) else np.zeros(0, bool)
        return key_N[once], sample_N[once]

    def _contiguous(self, step: int, i_N: np.ndarray) -> None:
        wrong = np.flatnonzero(i_N != self.next_i + np.arange(len(i_N)))
        if wrong.size:
            found, expected = int(i_N[wrong[0]]), self.next_i + int(wrong[0])
            if found < expected:
                raise Difference(f"repeated: step {step} drew index {found} again (index {expected} was next)")
            raise Difference(f"skipped: step {step} drew index {found}, but index {expected} was never drawn")
        self.next_i += len(i_N)

    def _as_seen(self, step: int, key_N: np.ndarray, parts) -> None:
        if not self.has_seen or any(part.skipped for _, part in parts):
            return
        seen = [np.zeros(0, np.int64)]
        for header, part in parts:
            once_N, times_N = np.unique(part.seen_N, return_counts=True)
            if len(times_N) and times_N.min() != times_N.max():
                key = int(once_N[times_N.argmax()])
                raise Difference(
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
                raise Difference(f"step {step}: index {i} (column {column}) {what}")


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


def _check_headers(files: list[DrawFile]) -> None:
    first = files[0]
    for file in files[1:]:
        for name in ("seed", "lengths_C"):
            if file.header[name] != first.header[name]:
                raise Difference(f"{file.path.name} and {first.path.name} were written with different {name}")


def audit(run: str | Path) -> Verdict:
    """Audit a run directory. UserError when it holds no draw log."""
    directory = Path(run) / "ado" / "audit"
    files = [DrawFile.open(path) for path in sorted(directory.glob("*.draws"))]
    attempts = _attempts(files)
    if not attempts:
        raise UserError(f"{directory} holds no draw log; train with --ado-audit")
    verdict = Verdict(attempts=len(attempts), files=len(files))
    starts = [min(file.header["step"] for file in attempt) for attempt in attempts]
    auditor = Auditor(attempts[0][0].header, _any_seen(attempts))
    try:
        _check_headers([file for attempt in attempts for file in attempt])
        for n, attempt in enumerate(attempts):
            stop = min(starts[n + 1 :], default=np.inf)
            whole = min(file.complete for file in attempt)
            if stop > whole:
                # Killed: ranks got to different steps. Of the last attempt the rest is not known; of an earlier one,
                # steps before the next start must be there, and a gap shows as one.
                latest = max(file.complete for file in attempt)
                verdict.unflushed_steps += max(0, int(min(latest, stop)) - whole) if n == len(attempts) - 1 else 0
                stop = whole
            for step, parts in _steps_side_by_side(attempt, starts[n], stop):
                auditor.take(step, parts)
                verdict.steps += 1
    except Difference as difference:
        verdict.difference = str(difference)
        verdict.repeated = int("repeated" in verdict.difference)
        verdict.skipped = int("skipped" in verdict.difference)
    verdict.samples, verdict.seen = auditor.next_i - auditor.first, auditor.seen
    verdict.torn_files = sum(file.torn for file in files)
    drawn_C = [auditor.columns[c].drawn if c in auditor.columns else n for c, n in enumerate(auditor.before_C)]
    verdict.epochs_C = [round(n / length, 4) for n, length in zip(drawn_C, auditor.lengths_C, strict=True)]
    return verdict


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
    verdict = audit(options.run)
    if options.json:
        print(json.dumps(asdict(verdict)))
    else:
        print("\n".join(_lines(verdict)))
    return 0 if verdict.difference is None else 1


def _lines(verdict: Verdict) -> list[str]:
    lines = [
        f"{verdict.samples:,} samples in {verdict.steps:,} steps, {verdict.attempts} attempts, {verdict.files} files"
    ]
    if verdict.torn_files or verdict.unflushed_steps:
        lines.append(
            f"{verdict.torn_files} files end in a torn record (ignored); {verdict.unflushed_steps} last steps were not "
            "written by all ranks (not counted)"
        )
    if verdict.difference is not None:
        return [*lines, f"DIFFERENCE {verdict.difference}"]
    seen = f"drawn = seen = {verdict.seen:,}" if verdict.seen else "no rank logged a loss"
    return [*lines, f"repeated = {verdict.repeated}, skipped = {verdict.skipped}, {seen}, same on all ranks"]
