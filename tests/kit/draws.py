"""Draw logs: what a run drew, and logs as earlier versions wrote them."""

import json
import zlib
from pathlib import Path

from ado_megatron.measure.draw_file import DrawFile
from ado_megatron.measure.draw_log import CHUNK
from ado_megatron.stream.sample_key import unpack_key


def draws(directory: Path, *, first: int = 0, attempt: int | None = None) -> list[tuple[int, int, int]]:
    """(i, dataset, sample) of every sample drawn from step `first` on, in the order of i; of one attempt, or of all."""
    found = set()
    for path in (directory / "ado" / "audit").glob("*.draws"):
        file = DrawFile.open(path)
        for step in file.steps() if attempt in (None, file.header["attempt"]) else ():
            if step.step >= first:
                i_N, dataset_N = unpack_key(step.key_N)
                found |= set(zip(i_N.tolist(), dataset_N.tolist(), step.sample_N.tolist(), strict=True))
    return sorted(found)


def samples_by_name(directory: Path, names: list[list[str]]) -> list[dict[str, list[int]]]:
    """The samples of each dataset in the order of the stream, by attempt. names: of each attempt's datasets, in their
    order."""
    attempts = sorted({DrawFile.open(path).header["attempt"] for path in (directory / "ado" / "audit").glob("*.draws")})
    found = []
    for attempt, names_C in zip(attempts, names, strict=True):
        drawn = draws(directory, attempt=attempt)
        found.append({name: [sample for _, c, sample in drawn if c == n] for n, name in enumerate(names_C)})
    return found


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
