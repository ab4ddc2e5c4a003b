"""Files that a crash cannot leave half written, and writes that a run can do without."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path


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
    """Writes of one kind that no result of the run depends on: one that fails is said once, and the run goes on.

    what: the subject of the sentence ("the TensorBoard events"). Later writes are tried again.
    """

    def __init__(self, what: str, log: logging.Logger):
        self._what, self._log = what, log
        self.failures = 0

    def __call__(self, write: Callable[[], object]) -> bool:
        """Whether `write` succeeded; an OSError or a ValueError (a closed file) is said the first time."""
        try:
            write()
            return True
        except (OSError, ValueError) as error:
            self.failures += 1
            if self.failures == 1:
                self._log.warning("%s cannot be written, the run goes on without: %s", self._what, error)
            return False
