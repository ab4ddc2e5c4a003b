"""Files that a crash cannot leave half written, and writes that may fail without stopping a run."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

    what: whom the warning names. clock: seconds.
    """

    FIRST, LONGEST = 2.0, 300.0  # seconds of pause after a failure, doubled from one to the next

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic):
        self._what, self._clock = what, clock
        self._pause, self._not_before = 0.0, -math.inf

    def __call__(self, action: Callable[[], Any]) -> bool:
        """Run `action` unless the last failure is too recent. True if it ran well.

        OSError, and ValueError (what a closed file raises), count as failures; other exceptions are faults and rise.
        """
        if self._clock() < self._not_before:
            return False
        try:
            action()
        except (OSError, ValueError) as error:
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
