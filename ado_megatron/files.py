"""Files that a crash cannot leave half written, files that may be damaged, writes that must not stop a run."""

from __future__ import annotations

import io
import logging
import math
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

LOG = logging.getLogger(__name__)


def atomic_write(path: str | os.PathLike, data: bytes) -> None:
    """Replace `path` by `data` so that a crash at any moment leaves the old file or the new one, both whole.

    Raises OSError, with `path` as its file name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # the bytes are on disk before the name points at them
        os.replace(temporary, path)
    except OSError as error:  # a full disk does not say which file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # and so is the name
    finally:
        os.close(directory)


class BestEffort:
    """Runs what is worth doing but not worth a run: a failure is warned of once, and later tries wait ever longer.

        board = BestEffort("TensorBoard")
        board(lambda: writer.add_scalar("loss", loss, step))

    what: whom the warning names. clock: seconds. failures: the exceptions that count as failures, by default OSError
    and ValueError (what a closed file raises); any other is a fault and rises.
    """

    FIRST, LONGEST = 2.0, 300.0  # seconds of pause after a failure, doubled from one to the next

    def __init__(
        self, what: str, clock: Callable[[], float] = time.monotonic,
        failures: tuple[type[Exception], ...] = (OSError, ValueError),
    ):  # fmt: skip
        self._what, self._clock, self._failures = what, clock, failures
        self._pause, self._not_before = 0.0, -math.inf

    def __call__(self, action: Callable[[], Any]) -> bool:
        """Run `action` unless the last failure is too recent. True if it ran well."""
        if self._clock() < self._not_before:
            return False
        try:
            action()
        except self._failures as error:
            if not self._pause:
                reason = getattr(error, "strerror", None) or error
                LOG.warning("%s: %s; the run goes on without, and tries again later", self._what, reason)
            self._pause = min(max(self.FIRST, 2 * self._pause), self.LONGEST)
            self._not_before = self._clock() + self._pause
            return False
        if self._pause:
            LOG.warning("%s works again", self._what)
        self._pause, self._not_before = 0.0, -math.inf
        return True


def load_npz(file: str | Path | BinaryIO, most_bytes: int = 1 << 34) -> dict[str, np.ndarray]:
    """The arrays of an .npz. Nothing is allocated that the file does not hold, and nothing in it can run code.

    Raises OSError if it cannot be read, and ValueError, saying what is wrong, for one that is damaged or whose arrays
    would take more than `most_bytes`.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > most_bytes:
                raise ValueError(f"its arrays would take more than {most_bytes:,} bytes")
            return {member.filename.removesuffix(".npy"): _load_npy(archive, member) for member in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error) as error:
        raise ValueError(f"it is damaged ({error})") from error


def _load_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array, whose header must fit its bytes."""
    data = archive.read(member)
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(stream)
    except (ValueError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError) as error:
        raise ValueError(f"the header of {member.filename} is damaged") from error
    if dtype.hasobject or dtype.itemsize == 0 or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError(f"the header of {member.filename} does not fit its {len(data)} bytes")
    array = np.frombuffer(data, dtype, offset=stream.tell())
    return array.reshape(shape, order="F" if fortran_order else "C").copy()
