"""What each rank drew and what it computed a loss on, on disk.

One file a rank and attempt (an attempt: one start of the run's processes), made at the first record, so ranks that
neither draw nor see leave none. A file is a line of JSON, then chunks, each written whole at a step boundary:

    "ADOC", bytes of the payload (u32), CRC-32 of the payload (u32), `complete` (i64: all records of steps below it are
    in the file), then the payload: zlib over records, keys (differences) and samples, bytes of equal weight together.

A process killed in mid-write leaves a torn last chunk, which readers ignore. About four bytes a sample.

Legend: B samples of a micro-batch, N samples, M records.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.errors import UserError

DRAWN, SEEN, SKIPPED = 0, 1, 2
FORMAT = "ado-draws"
VERSION = 2  # 1 had no identities of datasets, and attempts numbered by a clock
_MAGIC = b"ADOC"
_CHUNK = struct.Struct("<4sIIq")
_FLUSH_SAMPLES = 1 << 15
_HEADER_BYTES = 1 << 24  # of a header at most: 32,767 datasets take under 2 MB


def next_attempt(directory: str | Path) -> int:
    """The number of the next start of the run: one more than the greatest in the names of the files there. A counter,
    since clocks of different nodes, and one clock set back, do not count up."""
    numbers = [path.stem.rpartition("-")[2] for path in Path(directory).glob("rank*-*.draws")]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=0)


class DrawLog:
    """Written in the main process of a rank, when a batch is used (not when a worker prefetches it).

    directory: RUN/ado/audit. attempt: a number that is the same on all ranks and grows from start to start of the run
    (`next_attempt`). step: first step of the attempt; its records replace those of earlier attempts from that step on.
    lengths_C, stream_id_C, seed: of the schedule (stream_id_C None: a dataset's number). start_C: samples of each
    dataset drawn before `step` (zeros at the start of a run). place: where the rank stands, e.g. world_size, dp_rank;
    with dp_rank the audit also finds a sample that two data-parallel ranks drew.

    A write that fails in the middle of a step is kept in `failure`, for the run to end between two steps.
    """

    def __init__(
        self, directory: str | Path, rank: int, *, attempt: int, step: int, lengths_C: ArrayLike, seed: int,
        stream_id_C: ArrayLike | None = None, start_C: ArrayLike | None = None, **place: int,
    ):  # fmt: skip
        lengths_C = np.asarray(lengths_C)
        stream_id_C = np.arange(len(lengths_C)) if stream_id_C is None else np.asarray(stream_id_C)
        start_C = np.zeros(len(lengths_C), dtype=np.int64) if start_C is None else np.asarray(start_C)
        self._header = {
            "format": FORMAT, "version": VERSION, "rank": int(rank), "attempt": int(attempt), "step": int(step),
            "seed": int(seed), "lengths_C": lengths_C.tolist(), "stream_id_C": stream_id_C.tolist(),
            "start_C": start_C.tolist(), **place,
        }  # fmt: skip
        self.path = Path(directory) / f"rank{rank:05d}-{attempt}.draws"
        self.failure: str | None = None  # why it can no longer be written
        self._exists = False
        self._records: list[tuple[int, int, np.ndarray, np.ndarray]] = []
        self._buffered, self._step = 0, int(step)

    def drawn(self, step: int, key_B, sample_B) -> None:
        """A micro-batch was drawn for `step`: its `ado_key` and `ado_sample`."""
        self._add(DRAWN, step, key_B, sample_B)

    def seen(self, step: int, key_B) -> None:
        """A loss was computed on a micro-batch in `step`. A replayed step may log all of its samples again."""
        self._add(SEEN, step, key_B, ())

    def skipped(self, step: int) -> None:
        """The samples of `step` were drawn, but the host trains on none of them."""
        self._add(SKIPPED, step, (), ())

    def _add(self, kind: int, step: int, key_B, sample_B) -> None:
        try:
            if step > self._step and self._buffered > _FLUSH_SAMPLES:
                self.flush()
            if not self._exists:
                self._create()
        except OSError as error:  # in the middle of a step: the run ends between two, on all ranks together
            self.failure = f"the draw log {self.path} cannot be written: {error.strerror or error}"
        key_B, sample_B = (np.array(values, dtype=np.int64).reshape(-1) for values in (key_B, sample_B))
        self._records.append((kind, step, key_B, sample_B))
        self._buffered += len(key_B)
        self._step = max(self._step, step)

    def _create(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "xb") as file:
            file.write(json.dumps(self._header).encode() + b"\n")
        self._exists = True

    def flush(self) -> None:
        """Hand everything to the operating system. Call between steps: records must be of whole steps."""
        if not self._records:
            return
        payload = _encode(self._records)
        try:
            with open(self.path, "ab") as file:
                file.write(_CHUNK.pack(_MAGIC, len(payload), zlib.crc32(payload), self._step + 1) + payload)
        except OSError as error:  # a full disk does not say which file
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._records, self._buffered = [], 0

    def close(self) -> None:
        """Flush what is left."""
        self.flush()


def _bytes_together(values_N: np.ndarray) -> bytes:
    """Little-endian int64, all lowest bytes first, … : long runs of zeros for zlib."""
    return np.ascontiguousarray(values_N.astype("<i8").view(np.uint8).reshape(-1, 8).T).tobytes()


def _apart(data: memoryview, count: int) -> np.ndarray:
    return np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(8, count).T).view("<i8").reshape(-1)


def _encode(records) -> bytes:
    table_Mx4 = np.array([(kind, step, len(key_B), len(sample_B)) for kind, step, key_B, sample_B in records])
    key_N = np.concatenate([key_B for _, _, key_B, _ in records])
    sample_N = np.concatenate([sample_B for _, _, _, sample_B in records])
    delta_N = np.diff(key_N, prepend=0)
    body = b"".join(_bytes_together(part) for part in (table_Mx4.reshape(-1), delta_N, sample_N))
    return struct.pack("<QQQ", len(table_Mx4), len(key_N), len(sample_N)) + zlib.compress(body, 1)


@dataclass
class Step:
    """One rank's records of one step: key_N and sample_N drawn, seen_N keys with a loss."""

    step: int
    key_N: np.ndarray
    sample_N: np.ndarray
    seen_N: np.ndarray
    skipped: bool = False


def _decode(payload: bytes) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    sizes = struct.unpack_from("<QQQ", payload)
    body = memoryview(zlib.decompress(payload[24:]))
    counts = (4 * sizes[0], sizes[1], sizes[2])
    ends = np.cumsum([8 * count for count in counts])
    table_4M, delta_N, sample_N = (
        _apart(body[end - 8 * count : end], count) for count, end in zip(counts, ends, strict=True)
    )
    key_N, k, s = np.cumsum(delta_N), 0, 0
    for kind, step, keys, samples in table_4M.reshape(-1, 4).tolist():
        yield kind, step, key_N[k : k + keys], sample_N[s : s + samples]
        k, s = k + keys, s + samples


@dataclass
class DrawFile:
    """A file to read: its header, and `complete`: every step below it is whole in the file."""

    path: Path
    header: dict = field(default_factory=dict)
    complete: int = 0
    torn: bool = False

    @classmethod
    def open(cls, path: Path) -> DrawFile:
        """Read the header and where the last whole chunk ends. UserError when it is no such file."""
        if not path.is_file():  # a pipe or a device may have no end
            raise UserError(f"{path} is not a regular file, so it is no draw log; remove it")
        with open(path, "rb") as file:
            line = file.readline(_HEADER_BYTES)
        try:
            header = json.loads(line)
            known = header["format"] == FORMAT and header["version"] == VERSION and _is_header(header)
        except (ValueError, KeyError, TypeError, RecursionError):
            if not line.endswith(b"\n") and len(line) < _HEADER_BYTES:  # killed while it was written: no record either
                return cls(path, {}, 0, True)
            known = False
        if not known:
            raise UserError(
                f"{path} is not a draw log of version {VERSION}; remove it or use the version that wrote it"
            )
        found = cls(path, header, header["step"])
        for _, complete in found._chunks():
            found.complete = complete
        return found

    def _chunks(self) -> Iterator[tuple[bytes, int]]:
        with open(self.path, "rb") as file:
            file.readline()
            while head := file.read(_CHUNK.size):
                magic, size, crc, complete = _CHUNK.unpack(head) if len(head) == _CHUNK.size else (b"", 0, 0, 0)
                payload = file.read(size)
                if magic != _MAGIC or len(payload) != size or zlib.crc32(payload) != crc:
                    self.torn = True
                    return
                yield payload, complete

    def steps(self) -> Iterator[Step]:
        """The steps in the order of the file, one chunk in memory at a time."""
        for payload, _ in self._chunks():
            by_step: dict[int, list] = {}
            for record in _decode(payload):
                by_step.setdefault(record[1], []).append(record)
            for step in sorted(by_step):
                yield _gather(step, by_step[step])


def _is_header(header: dict) -> bool:
    """Whether everything that an audit reads of a header is there and of its type."""
    lists = [header[name] for name in ("lengths_C", "stream_id_C", "start_C")]
    numbers = [header[name] for name in ("rank", "attempt", "step", "seed")]
    return (
        all(type(number) is int for number in numbers) and len({len(values) for values in lists}) == 1
        and all(type(n) is int for values in lists for n in values)
    )  # fmt: skip


def _gather(step: int, records) -> Step:
    def joined(kind: int, which: int) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.int64), *(record[which] for record in records if record[0] == kind)])

    skipped = any(record[0] == SKIPPED for record in records)
    return Step(step, joined(DRAWN, 2), joined(DRAWN, 3), joined(SEEN, 2), skipped)
