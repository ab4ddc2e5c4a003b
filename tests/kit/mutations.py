"""Damaged copies of files: bytes flipped, cut, doubled; numbers of a text turned into what a careless tool writes."""

from __future__ import annotations

import io
import json
import random
import re
import zipfile

import numpy as np

ODD = ["null", '"12"', "NaN", "-Infinity", "1e999", "-1", "0", "true", "[]", "{}", "[[1]]", "1.5", "9" * 25, "9" * 5000,
       "1" + "0" * 12, '"\\ud800"', "[" * 3000, "4611686018427387904"]  # fmt: skip
VALUES = [np.nan, np.inf, -np.inf, -1, 0, 1e300, 2.0**62, 0.5, 1e-320]
TYPES = ["<f4", "<i2", "?", "<U3", "S4", "<c16", ">f8", "<M8[s]"]


def bytes_of(rng: random.Random, data: bytes) -> bytes:
    """One to three of: a byte changed, a part removed, doubled or zeroed, the end cut off, bytes put in."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        a, b = sorted(rng.randrange(len(out) + 1) for _ in range(2))
        b = min(b, a + rng.choice([1, 4, 40, 4000]))
        kind = rng.randrange(6)
        if kind == 0 and a < len(out):
            out[a] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[a:b]
        elif kind == 2:
            out[b:b] = out[a:b]
        elif kind == 3:
            out[a:b] = bytes(b - a)
        elif kind == 4:
            del out[a:]
        else:
            out[a:a] = rng.randbytes(rng.randint(1, 8))
    return bytes(out)


def json_of(rng: random.Random, text: str) -> str:
    """One to three values of a JSON text replaced by odd ones; sometimes a name, too."""
    for _ in range(rng.randint(1, 3)):
        spots = list(re.finditer(r'(?<=[:\[, ])(-?\d[\d.e+-]*|null|true|false|"[^"]*")(?=[,\]}])', text))
        if rng.random() < 0.2:
            spots = list(re.finditer(r'"\w+"(?=:)', text))
        if spots:
            spot = rng.choice(spots)
            text = text[: spot.start()] + rng.choice(ODD) + text[spot.end() :]
    return text


def lines_of(rng: random.Random, text: str) -> str:
    """Lines of odd values, missing, doubled or in another order."""
    lines = text.splitlines(keepends=True)
    for _ in range(rng.randint(1, 2)):
        n, kind = rng.randrange(len(lines)), rng.randrange(6)
        if kind < 3:
            lines[n] = json_of(rng, lines[n])
        elif kind == 3 and len(lines) > 1:
            del lines[n]
        elif kind == 4:
            lines.insert(rng.randrange(len(lines) + 1), lines[n])
        else:
            m = rng.randrange(len(lines))
            lines[n], lines[m] = lines[m], lines[n]
    return "".join(lines)


def arrays_of(rng: random.Random, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of which one is missing, has another type or shape, or holds an odd value."""
    arrays = {name: np.array(array) for name, array in arrays.items()}
    name = rng.choice(sorted(arrays))
    array, kind = arrays[name], rng.randrange(5)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        try:
            arrays[name] = array.astype(rng.choice(TYPES))
        except (ValueError, OverflowError):
            arrays[name] = np.zeros(array.shape, "<c16")
    elif kind == 2:
        arrays[name] = array.reshape(rng.choice([(-1,), (1, *array.shape), (-1, 1)]))
    elif kind == 3 and array.ndim:
        arrays[name] = array[: rng.randrange(len(array) + 1)]
    elif array.dtype.kind in "iuf" and array.size:
        array = array.astype(np.float64)
        array.reshape(-1)[rng.randrange(array.size)] = rng.choice(VALUES)
        arrays[name] = array
    return arrays


def npz_of(arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes of an .npz."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def members_of(rng: random.Random, data: bytes) -> bytes:
    """An .npz of which one array's file is damaged, but whose checksums are right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        damaged = rng.choice(old.namelist())
        for name in old.namelist():
            content = old.read(name)
            if name == damaged:
                content = bytes_of(rng, content[:128]) + content[128:] if rng.random() < 0.7 else bytes_of(rng, content)
            new.writestr(name, content)
    return out.getvalue()


def signed(meta: str, payload: bytes, digest) -> bytes:
    """A sidecar's header and payload whose digest is right. digest: of (meta, payload)."""
    header = {"version": 1, "payload_bytes": len(payload), "sha256": digest(meta, payload), "meta": meta}
    return json.dumps(header).encode() + b"\n" + payload
