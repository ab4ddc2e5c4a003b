"""What each rank drew and what it computed a loss on, on disk: the writer. (draw_file.py reads.)

One file a rank and attempt (an attempt: one start of the run's processes), made at the first record, so ranks that
neither draw nor see leave none. A file is a line of JSON, the header, and then chunks, each written whole between two
steps; a process killed in mid-write leaves a torn last chunk, which readers ignore. Integers are little-endian.

    chunk    bytes  content
             4      "ADOC"
             4      u32, size of the payload
             4      u32, CRC-32 of `complete` and the payload (up to version 2 of the payload alone)
             8      i64, `complete`: all records of steps below it are in the file
             size   the payload

    payload  8 8 8  u64, numbers of records M, of keys N, of samples N'
             rest   zlib over three int64 arrays, each with all lowest bytes first, then the next, …:
                    records (M x 4: kind, step, its keys, its samples), keys (differences), samples

About four bytes a sample.

Legend: B samples of a micro-batch, N samples, M records, C datasets.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

DRAWN, SEEN, SKIPPED = 0, 1, 2
FORMAT = "ado-draws"
VERSION = 3  # 1 had no stream ids, 2 a checksum without `complete`
MAGIC = b"ADOC"
CHUNK = struct.Struct("<4sIIq")
SIZES = struct.Struct("<QQQ")
_COMPLETE = struct.Struct("<q")
_FLUSH_SAMPLES = 1 << 15
_NAME = re.compile(r"rank\d+-(\d+)\.draws")


def next_attempt(directory: str | Path) -> int:
    """The number of the attempt that begins now: one more than the largest of which `directory` has a file, from 1.

    Asked on rank zero alone, before any rank writes. A count, since clocks of machines differ and go back.
    """
    directory = Path(directory)
    found = [_NAME.fullmatch(path.name) for path in directory.iterdir()] if directory.is_dir() else []
    return 1 + max((int(match.group(1)) for match in found if match), default=0)


class DrawLog:
    """Written in the main process of a rank, when a batch is used (not when a worker prefetches it).

    directory: RUN/ado/audit. attempt: `next_attempt` of rank zero. step: first step of the attempt; its records replace
    those of earlier attempts from that step on. lengths_C, stream_id_C, seed: of the schedule; a dataset keeps its
    stream id when others are added, dropped or moved (default: its number). start_C: samples of each dataset drawn
    before `step`, first_sample: index of the first sample of `step` (defaults: none, and the sum of start_C). place:
    where the rank stands, e.g. world_size, dp_rank; with dp_rank the audit also finds a sample that two data-parallel
    ranks drew.
    """

    def __init__(
        self, directory: str | Path, rank: int, *, attempt: int, step: int, lengths_C: Sequence[int] | np.ndarray,
        seed: int, stream_id_C: Sequence[int] | np.ndarray | None = None,
        start_C: Sequence[int] | np.ndarray | None = None, first_sample: int | None = None, **place: int,
    ):  # fmt: skip
        start_C = np.zeros(len(lengths_C), dtype=np.int64) if start_C is None else start_C
        stream_id_C = range(len(lengths_C)) if stream_id_C is None else stream_id_C
        first_sample = int(np.sum(start_C)) if first_sample is None else int(first_sample)
        self._header: dict[str, Any] = {
            "format": FORMAT, "version": VERSION, "rank": int(rank), "attempt": int(attempt), "step": int(step),
            "seed": int(seed), "lengths_C": [int(n) for n in lengths_C], "start_C": [int(n) for n in start_C],
            "stream_id_C": [int(n) for n in stream_id_C], "first_sample": first_sample, **place,
        }  # fmt: skip
        self.path = Path(directory) / f"rank{rank:05d}-{attempt}.draws"
        self.failure: str | None = None  # why it can no longer be written
        self._size = 0  # bytes that are whole in the file; 0: there is none
        self._records: list[tuple[int, int, np.ndarray, np.ndarray]] = []
        self._buffered, self._step = 0, int(step)

    def drawn(self, step: int, key_B: ArrayLike, sample_B: ArrayLike) -> None:
        """A micro-batch was drawn for `step`: its `ado_key` and `ado_sample`."""
        self._add(DRAWN, step, key_B, sample_B)

    def seen(self, step: int, key_B: ArrayLike) -> None:
        """A loss was computed on a micro-batch in `step`. A replayed step may log all of its samples again."""
        self._add(SEEN, step, key_B, ())

    def skipped(self, step: int) -> None:
        """The samples of `step` were drawn, but the framework trains on none of them."""
        self._add(SKIPPED, step, (), ())

    def _add(self, kind: int, step: int, key_B, sample_B) -> None:
        try:
            if step > self._step and self._buffered > _FLUSH_SAMPLES:
                self.flush()
            if not self._size:
                self._create()
        except OSError as error:  # in the middle of a step: the run ends between two, on all ranks together
            self.failure = f"the draw log {self.path} cannot be written: {error.strerror or error}"
        key_B, sample_B = (np.array(values, dtype=np.int64).reshape(-1) for values in (key_B, sample_B))
        self._records.append((kind, step, key_B, sample_B))
        self._buffered += len(key_B)
        self._step = max(self._step, step)

    def _create(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(self._header).encode() + b"\n"
        with open(self.path, "xb") as file:
            file.write(line)
        self._size = len(line)

    def flush(self) -> None:
        """Hand everything to the operating system. Call between steps: records must be of whole steps.

        Raises OSError, with the path as its file name.
        """
        if not self._records:
            return
        payload = _encode(self._records)
        complete = self._step + 1
        chunk = CHUNK.pack(MAGIC, len(payload), checksum(payload, complete, VERSION), complete) + payload
        try:
            with open(self.path, "r+b") as file:
                file.seek(self._size)
                file.truncate()  # a chunk that the last try left half-written
                file.write(chunk)
        except OSError as error:  # a full disk does not say which file
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._size += len(chunk)
        self._records, self._buffered = [], 0

    def close(self) -> None:
        """Flush what is left."""
        self.flush()


def checksum(payload: bytes, complete: int, version: int) -> int:
    """CRC-32 of a chunk in a file of `version`."""
    return zlib.crc32(payload, zlib.crc32(_COMPLETE.pack(complete)) if version > 2 else 0)


def _bytes_together(values_N: np.ndarray) -> bytes:
    """Little-endian int64, all lowest bytes first, … : long runs of zeros for zlib."""
    return np.ascontiguousarray(values_N.astype("<i8").view(np.uint8).reshape(-1, 8).T).tobytes()


def _encode(records: list[tuple[int, int, np.ndarray, np.ndarray]]) -> bytes:
    table_Mx4 = np.array([(kind, step, len(key_B), len(sample_B)) for kind, step, key_B, sample_B in records])
    key_N = np.concatenate([key_B for _, _, key_B, _ in records])
    sample_N = np.concatenate([sample_B for _, _, _, sample_B in records])
    delta_N = np.diff(key_N, prepend=0)
    body = b"".join(_bytes_together(part) for part in (table_Mx4.reshape(-1), delta_N, sample_N))
    return SIZES.pack(len(table_Mx4), len(key_N), len(sample_N)) + zlib.compress(body, 1)
