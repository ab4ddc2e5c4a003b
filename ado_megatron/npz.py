"""Arrays by name, as one flat .npz holds them: names with prefixes, and a reader for files that may be damaged.

The reader checks every size against the file before it takes memory for it.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

MOST_BYTES = 8 << 30  # of all arrays together
_DEFLATE_RATIO = 1032  # no stream grows by more when it is unpacked
_KINDS = "biufU"  # truth values, integers, floats, text


def nest(prefix: str, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays with `prefix` ("history/", "laws.") before their names, so that several groups share one file."""
    return {f"{prefix}{name}": np.asarray(value) for name, value in arrays.items()}


def unnest(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`, without it: what `nest` was given."""
    return {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}


def read_npz(source: str | os.PathLike | BinaryIO, most_bytes: int = MOST_BYTES) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name: numbers, truth values and text, never objects.

    Raises ValueError, in words that a user can read, for anything that is no whole .npz, for arrays of more than
    `most_bytes` together, and for one whose header claims another size than the file holds.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            return _members(archive, most_bytes)
    except _Refused:
        raise
    except Exception as error:  # noqa: BLE001 - zipfile and numpy raise a dozen types for bytes that are none of theirs
        raise ValueError(f"it is no whole .npz file ({error or type(error).__name__})") from error


class _Refused(ValueError):
    """What is wrong is already said in a sentence."""


def _members(archive: zipfile.ZipFile, most_bytes: int) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in arrays:
            raise _Refused(f"array {name} is in it twice")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _Refused(f"array {name} is packed in a way that numpy does not use")
        if info.file_size > info.compress_size * _DEFLATE_RATIO + 64:
            raise _Refused(f"array {name} claims {info.file_size} bytes in {info.compress_size} packed ones")
        most_bytes -= info.file_size
        if most_bytes < 0:
            raise _Refused("its arrays are too large to be read")
        with archive.open(info) as member:
            data = member.read(info.file_size + 1)  # checks the CRC at the end
        arrays[name] = _array(name, data)
    return arrays


def _array(name: str, data: bytes) -> np.ndarray:
    """The array of one .npy file."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise _Refused(f"array {name} is of .npy version {version}, which numpy does not write for numbers")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_column, dtype = read_header(file)
    if dtype.kind not in _KINDS or dtype.hasobject:
        raise _Refused(f"array {name} holds {dtype}, not numbers or text")
    size = math.prod(shape) * dtype.itemsize  # Python's integers: a huge shape does not wrap around
    if min(shape, default=0) < 0 or size != len(data) - file.tell():
        raise _Refused(f"array {name} claims shape {shape} of {dtype}, but has {len(data) - file.tell()} bytes")
    array = np.frombuffer(data, dtype, math.prod(shape), file.tell()) if size else np.zeros(math.prod(shape), dtype)
    array = array.reshape(shape, order="F" if by_column else "C").copy()
    if dtype.kind == "U" and size and not _is_text(array):
        raise _Refused(f"array {name} holds text that is none")
    return array


def _is_text(array: np.ndarray) -> bool:
    codes = np.ascontiguousarray(array).reshape(-1).view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
    return bool(((codes <= 0x10FFFF) & ((codes < 0xD800) | (codes > 0xDFFF))).all())
