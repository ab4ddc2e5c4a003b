"""Reads the draw logs that draw_log.py writes; its docstring has the layout.

A file that is damaged is refused in a sentence. Memory is bounded by a chunk, whatever its numbers claim.

Legend: N samples, M records, C datasets.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ado_megatron.errors import UserError
from ado_megatron.files import open_regular
from ado_megatron.measure.draw_log import CHUNK, DRAWN, FORMAT, MAGIC, SEEN, SIZES, SKIPPED, VERSION, checksum

READABLE = range(1, VERSION + 1)
LONGEST_HEADER = 16 << 20  # bytes; of 32,767 datasets a tenth
_ZLIB_RATIO = 1032  # no stream grows by more when it is unpacked

DrawRecord = tuple[int, int, np.ndarray, np.ndarray]  # kind, step, key_N, sample_N


@dataclass
class Step:
    """One rank's records of one step: key_N and sample_N drawn, seen_N keys with a loss."""

    step: int
    key_N: np.ndarray
    sample_N: np.ndarray
    seen_N: np.ndarray
    skipped: bool = False


@dataclass
class DrawFile:
    """A file to read: its header, and `complete`: every step below it is whole in the file.

    torn: it ends in a chunk that a killed process left half-written.
    """

    path: Path
    header: dict[str, Any] = field(default_factory=dict)
    complete: int = 0
    torn: bool = False

    @classmethod
    def open(cls, path: Path) -> DrawFile:
        """Read the header and where the last whole chunk ends. UserError, naming the file, when it is no such file."""
        with open_regular(path) as file:
            line = file.readline(LONGEST_HEADER)
        if len(line) < LONGEST_HEADER and not line.endswith(b"\n"):  # killed while the header was written
            return cls(path, {}, 0, True)
        header = _header(line)
        if header is None:
            raise UserError(
                f"{path} is not a draw log of a version up to {VERSION}, or its header is damaged; remove it or use "
                "the version that wrote it"
            )
        found = cls(path, header, header["step"])
        for _, complete in found._chunks():
            found.complete = complete
        return found

    def _chunks(self) -> Iterator[tuple[bytes, int]]:
        """(payload, `complete`) of every whole chunk."""
        with open_regular(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            file.readline(LONGEST_HEADER)
            at = file.tell()
            while head := file.read(CHUNK.size):
                magic, length, crc, complete = CHUNK.unpack(head) if len(head) == CHUNK.size else (b"", 0, 0, 0)
                end = at + CHUNK.size + length
                if len(head) < CHUNK.size or (magic == MAGIC and end > size):
                    self.torn = True
                    return
                payload = file.read(length) if magic == MAGIC else b""
                if magic != MAGIC or checksum(payload, complete, self.header["version"]) != crc:
                    if end == size or not any(head):  # the last chunk, not whole; or zeros that a crash left behind it
                        self.torn = True
                        return
                    raise UserError(f"{self.path} is damaged at byte {at}: what it logged from there on is not known")
                yield payload, complete
                at = end

    def steps(self) -> Iterator[Step]:
        """The steps in the order of the file, one chunk in memory at a time. UserError for a chunk that is none."""
        for payload, _ in self._chunks():
            by_step: dict[int, list[DrawRecord]] = {}
            for record in self._decoded(payload):
                by_step.setdefault(record[1], []).append(record)
            for step in sorted(by_step):
                yield _gather(step, by_step[step])

    def _decoded(self, payload: bytes) -> list[DrawRecord]:
        try:
            return list(_decode(payload))
        except (ValueError, OverflowError) as error:
            raise UserError(f"{self.path} holds a chunk that cannot be unpacked: {error}") from error


def _header(line: bytes) -> dict[str, Any] | None:
    """The header of a draw log, its values checked, or None."""
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(header, dict) or header.get("format") != FORMAT or header.get("version") not in READABLE:
        return None
    numbers = [header.get(name) for name in ("version", "rank", "attempt", "step", "seed")]
    numbers.append(header.get("first_sample", 0))
    lists = [header.get(name) for name in ("lengths_C", "start_C")]
    if header["version"] > 1:
        lists.append(header.get("stream_id_C"))
    if not all(isinstance(values, list) and len(values) == len(lists[0] or ()) for values in lists):
        return None
    numbers += [number for values in lists for number in values or ()]
    small = all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
    return header if small and min(header["lengths_C"], default=0) > 0 else None


def _apart(data: memoryview, count: int) -> np.ndarray:
    return np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(8, count).T).view("<i8").reshape(-1)


def _decode(payload: bytes) -> Iterator[DrawRecord]:
    """The records of a payload. Raises ValueError for sizes that do not fit together."""
    if len(payload) < SIZES.size:
        raise ValueError("it is too short")
    records, keys, samples = SIZES.unpack_from(payload)
    counts = (4 * records, keys, samples)
    if 8 * sum(counts) > _ZLIB_RATIO * len(payload):
        raise ValueError(f"it claims {sum(counts)} numbers in {len(payload)} bytes")
    stream = zlib.decompressobj()
    try:
        body = memoryview(stream.decompress(payload[SIZES.size :], 8 * sum(counts) + 1))
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(body) != 8 * sum(counts) or not stream.eof:
        raise ValueError(f"it does not hold the {sum(counts)} numbers that it claims")
    ends = np.cumsum([8 * count for count in counts])
    table_4M, delta_N, sample_N = (
        _apart(body[end - 8 * count : end], count) for count, end in zip(counts, ends, strict=True)
    )
    key_N, k, s = np.cumsum(delta_N), 0, 0
    for kind, step, num_keys, num_samples in table_4M.reshape(-1, 4).tolist():
        if not (0 <= num_keys <= keys - k and 0 <= num_samples <= samples - s and step >= 0):
            raise ValueError("a record claims more than the chunk holds")
        if kind not in (DRAWN, SEEN, SKIPPED):
            raise ValueError(f"a record is of kind {kind}, which there is not")
        yield kind, step, key_N[k : k + num_keys], sample_N[s : s + num_samples]
        k, s = k + num_keys, s + num_samples


def _gather(step: int, records: list[DrawRecord]) -> Step:
    def joined(kind: int, which: int) -> np.ndarray:
        parts: list[Any] = [np.zeros(0, np.int64), *(record[which] for record in records if record[0] == kind)]
        return np.concatenate(parts)

    skipped = any(record[0] == SKIPPED for record in records)
    return Step(step, joined(DRAWN, 2), joined(DRAWN, 3), joined(SEEN, 2), skipped)
