"""What the draws of a step must satisfy, given all steps before it. Numbers in, an AuditFailure or nothing out.

Legend: C datasets of an attempt, N samples of a step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ado_megatron.measure.draw_file import Step
from ado_megatron.stream.sample_key import unpack_key

Parts = list[tuple[dict[str, Any], Step]]  # (header, records) of each rank that has any


class AuditFailure(Exception):
    """The first thing found that should not be; the message says what and where.

    kind: "repeated" or "skipped"; "ranks": two ranks drew an index differently; "losses": what was drawn is not what a
    loss was computed on; "draws": a draw that no dataset has; "files": the logs do not belong together.
    repeated: draws of a sample that had been drawn (an index again, or a sample again in an epoch). skipped: samples
    that lost their place (indices left out, and what an epoch lacks because a repeated sample took its place); both
    None for "ranks" and "files", which leave them open. differ: indices on which ranks differ. All three count this
    failure alone.
    """

    def __init__(self, kind: str, message: str, *, repeated: int = 0, skipped: int = 0, differ: int = 0):
        super().__init__(message)
        self.kind, self.differ = kind, differ
        open_ = kind in ("ranks", "files")
        self.repeated: int | None = None if open_ else repeated
        self.skipped: int | None = None if open_ else skipped


def first_index(header: dict[str, Any]) -> int:
    """The index of the first sample that a log may hold."""
    return header.get("first_sample", sum(header["start_C"]))


class EpochCheck:
    """Every epoch of one dataset a permutation: one bit a sample, cleared when the epoch is complete.

    name: for messages. length: samples of an epoch. before: samples drawn before the log begins.
    """

    def __init__(self, name: str, length: int, before: int):
        self.name, self.length = name, length
        self.drawn = before
        self._bits = np.zeros(0, dtype=np.uint8)  # made at the first draw: most of many datasets may have none

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

    def _take_within_epoch(self, i_N: np.ndarray, sample_N: np.ndarray) -> None:
        outside = np.flatnonzero((sample_N < 0) | (sample_N >= self.length))
        if outside.size:
            n = outside[0]
            raise AuditFailure(
                "draws", f"index {i_N[n]} read sample {sample_N[n]} of {self.name}, which has {self.length}"
            )
        if not len(self._bits):
            self._bits = np.zeros(-(-self.length // 8), dtype=np.uint8)
        bit_N = np.left_shift(1, sample_N & 7).astype(np.uint8)
        again_N = (self._bits[sample_N >> 3] & bit_N) != 0
        order = np.argsort(sample_N, kind="stable")
        again_N[order[1:]] |= sample_N[order[1:]] == sample_N[order[:-1]]
        if again_N.any():
            n, times = int(np.argmax(again_N)), int(again_N.sum())
            raise AuditFailure(
                "repeated",
                f"repeated: index {i_N[n]} read sample {sample_N[n]} of {self.name} again in epoch "
                f"{self.drawn // self.length} (and so another sample of that epoch is skipped)",
                repeated=times, skipped=times,
            )  # fmt: skip
        np.bitwise_or.at(self._bits, sample_N >> 3, bit_N)


class StepCheck:
    """Takes the steps of a run in order, all ranks of a step together.

    Datasets are known by their stream ids, which stay when others are added, dropped or moved between two attempts.
    has_seen: whether any rank logged losses. next_i: the sample index that comes first, and then next.
    """

    def __init__(self, has_seen: bool, next_i: int):
        self.has_seen, self.seen, self.next_i = has_seen, 0, next_i
        self._streams: dict[int, EpochCheck] = {}
        self._ids_C: list[int] = []  # stream id of each dataset of the attempt

    def begin(self, header: dict[str, Any], ids_C: list[int]) -> None:
        """An attempt begins. ids_C: stream ids of its datasets. AuditFailure if one has another length than before."""
        for c, (stream, length, before) in enumerate(zip(ids_C, header["lengths_C"], header["start_C"], strict=True)):
            check = self._streams.setdefault(stream, EpochCheck(f"dataset {c}", length, before))
            if check.length != length:
                raise AuditFailure(
                    "files",
                    f"attempt {header['attempt']} was written with different lengths: it has {length} samples of "
                    f"{check.name}, an earlier attempt {check.length}",
                )
        self._ids_C = ids_C

    def epochs_C(self) -> list[float]:
        """Epochs drawn so far of each dataset of the attempt."""
        checks = [self._streams[stream] for stream in self._ids_C]
        return [round(check.drawn / check.length, 4) for check in checks]

    def take(self, step: int, parts: Parts) -> None:
        """One step. Raises AuditFailure."""
        key_N, sample_N = _agreed(step, parts)
        i_N, dataset_N = unpack_key(key_N)
        self._contiguous(step, i_N)
        self._as_seen(step, key_N, parts)
        if len(dataset_N) and dataset_N.max() >= len(self._ids_C):
            raise AuditFailure(
                "draws", f"step {step} drew from dataset {dataset_N.max()}, but there are {len(self._ids_C)}"
            )
        for dataset in np.unique(dataset_N).tolist():
            mine = dataset_N == dataset
            self._streams[self._ids_C[dataset]].take(i_N[mine], sample_N[mine])

    def _contiguous(self, step: int, i_N: np.ndarray) -> None:
        wrong = np.flatnonzero(i_N != self.next_i + np.arange(len(i_N)))
        if wrong.size:
            found, expected = int(i_N[wrong[0]]), self.next_i + int(wrong[0])
            if found < expected:
                what = f"repeated: step {step} drew index {found} again (index {expected} was next)"
                raise AuditFailure("repeated", what, repeated=int((i_N < expected).sum() - wrong[0]))
            what = f"skipped: step {step} drew index {found}, but index {expected} was never drawn"
            raise AuditFailure("skipped", what, skipped=found - expected)
        self.next_i += len(i_N)

    def _as_seen(self, step: int, key_N: np.ndarray, parts: Parts) -> None:
        if not self.has_seen or any(part.skipped for _, part in parts):
            return
        seen = [np.zeros(0, np.int64)]
        for header, part in parts:
            once_N, times_N = np.unique(part.seen_N, return_counts=True)
            if len(times_N) and times_N.min() != times_N.max():
                key = int(once_N[times_N.argmax()])
                raise AuditFailure(
                    "losses",
                    f"step {step}: rank {header['rank']} computed a loss on index {unpack_key(key)[0]} "
                    f"{times_N.max()} times, on others {times_N.min()} times",
                )
            seen.append(once_N)
        seen_N, drawn_N = np.unique(np.concatenate(seen)), np.sort(key_N)
        self.seen += len(seen_N)
        for keys, what in (
            (np.setdiff1d(drawn_N, seen_N), "was drawn, but no loss was computed on it"),
            (np.setdiff1d(seen_N, drawn_N), "has a loss, but was not drawn"),
        ):
            if len(keys):
                i, dataset = unpack_key(int(keys[0]))
                raise AuditFailure("losses", f"step {step}: index {i} (dataset {dataset}) {what}")


def _agreed(step: int, parts: Parts) -> tuple[np.ndarray, np.ndarray]:
    """key_N and sample_N of the step in order of i, each index once. AuditFailure where ranks drew it differently."""
    key_N = np.concatenate([part.key_N for _, part in parts])
    sample_N = np.concatenate([part.sample_N for _, part in parts])
    rank_N = np.repeat([header["rank"] for header, _ in parts], [len(part.key_N) for _, part in parts])
    dp_N = np.repeat([header.get("dp_rank", -1) for header, _ in parts], [len(part.key_N) for _, part in parts])
    i_N = unpack_key(key_N)[0]
    order = np.lexsort((rank_N, i_N))
    i_N, key_N, sample_N, rank_N, dp_N = (a_N[order] for a_N in (i_N, key_N, sample_N, rank_N, dp_N))
    same = i_N[1:] == i_N[:-1]
    for kind, bad, what in (
        ("repeated", same & (rank_N[1:] == rank_N[:-1]), "drew twice: repeated"),
        ("ranks", same & ((key_N[1:] != key_N[:-1]) | (sample_N[1:] != sample_N[:-1])), "differ on"),
        ("repeated", same & (dp_N[1:] != dp_N[:-1]), "are of different data-parallel ranks and both drew"),
    ):
        if bad.any():
            n, times = int(np.argmax(bad)), int(bad.sum())
            pairs = [f"rank {rank_N[m]} (dataset {unpack_key(key_N[m])[1]}, sample {sample_N[m]})" for m in (n, n + 1)]
            count = {"differ": times} if kind == "ranks" else {"repeated": times}
            raise AuditFailure(kind, f"step {step}: {' and '.join(pairs)} {what} index {i_N[n]}", **count)
    once = np.concatenate([[True], ~same]) if len(i_N) else np.zeros(0, bool)
    return key_N[once], sample_N[once]
