"""Files that a crash cannot leave half written, writes that may fail, reads that cannot hang."""

from __future__ import annotations

import json
import logging
import math
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from ado_megatron.errors import UserError

LOG = logging.getLogger(__name__)


def read_text(path: str | os.PathLike, problem: str) -> str:
    """What a file of the user's says, UTF-8. UserError if it cannot be read: `problem` and, in brackets, why."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{problem} (it is not UTF-8 text: byte {error.start}); give a text file") from error
    except (OSError, ValueError) as error:  # a path with a null in it is a ValueError
        raise UserError(f"{problem} ({getattr(error, 'strerror', None) or error})") from error


def parse_json_or_yaml(text: str, where: str) -> Any:
    """The value that `text` holds as JSON or, failing that, as YAML; UserError, beginning with `where`, if neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        import yaml  # only a run with such a file needs it

        try:
            return yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # an impossible date is a ValueError
            raise UserError(f"{where} is neither JSON nor YAML ({' '.join(str(error).split())})") from error


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
    """Tries of something that a training must survive without: a line of a log, an event of a board, an old file's end.

        board = BestEffort("TensorBoard's events")
        board.attempt(lambda: writer.add_scalar("loss", loss, step))

    The first failure of an outage is logged as a warning with the reason; until `wait` seconds have passed nothing
    is tried, and each further failure doubles the wait up to `longest` seconds. What works again is logged once, too.
    The caller decides what happens to what was not written. errors: the exceptions that count as a failure; any other
    is a defect and is raised. clock: seconds that only grow (tests hand in their own).
    """

    def __init__(
        self, what: str, *, errors: tuple[type[Exception], ...] = (OSError,), wait: float = 1.0, longest: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self.failures = 0  # of the outage that lasts; 0 when the last try went well
        self._what, self._errors, self._clock = what, errors, clock
        self._wait, self._longest, self._next = wait, longest, -math.inf

    def attempt(self, action: Callable[[], object], *, now: bool = False) -> bool:
        """True if `action` was called and did not fail. now: call it although the wait is not over (a last try)."""
        if not now and self._clock() < self._next:
            return False
        try:
            action()
        except self._errors as error:
            if self.failures == 0:
                LOG.warning("%s cannot be written, the training goes on: %s", self._what, error)
            self._next = self._clock() + min(self._wait * 2.0 ** min(self.failures, 60), self._longest)
            self.failures += 1
            return False
        if self.failures:
            LOG.warning("%s can be written again, after %d failed tries", self._what, self.failures)
        self.failures, self._next = 0, -math.inf
        return True


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """`path` opened for reading, if it is a regular file: a pipe or a device could be read for ever.

    Raises UserError, naming what it is instead, and OSError where it cannot be opened.
    """
    # Without O_NONBLOCK, opening a pipe that nobody writes to waits; on a regular file the flag does nothing.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device"}
    kind = kinds.get(stat.S_IFMT(mode), "something else")
    raise UserError(f"{path} is {kind}, not a regular file; it is not read: remove it or give another path")
