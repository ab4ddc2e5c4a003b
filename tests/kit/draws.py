"""Draw logs as earlier versions wrote them."""

import json
import zlib
from pathlib import Path

from ado_megatron.measure.draw_log import CHUNK


def chunk_starts(path: Path) -> list[int]:
    """Where each chunk of a whole log begins, and where the last one ends."""
    data = path.read_bytes()
    at = [data.index(b"\n") + 1]
    while at[-1] < len(data):
        at.append(at[-1] + CHUNK.size + CHUNK.unpack_from(data, at[-1])[1])
    return at


def as_version(path: Path, version: int) -> None:
    """Rewrite a log: up to version 2 the checksum left `complete` out; 1 had no stream ids and no first index."""
    data, starts = path.read_bytes(), chunk_starts(path)
    header = json.loads(data[: starts[0]]) | {"version": version}
    if version == 1:
        del header["stream_id_C"], header["first_sample"]
    out = json.dumps(header).encode() + b"\n"
    for begin, end in zip(starts, starts[1:], strict=False):
        magic, size, _, complete = CHUNK.unpack_from(data, begin)
        payload = data[begin + CHUNK.size : end]
        out += CHUNK.pack(magic, size, zlib.crc32(payload), complete) + payload
    path.write_bytes(out)
