"""What the package logs while it runs, on stderr: each module has a logger of its name, and here is the one handler."""

from __future__ import annotations

import contextlib
import logging
import os
import sys


class _Printer(logging.Handler):
    """A line a record, marked as ours, with the rank: it may be of one rank alone."""

    def __init__(self, mark: str):
        super().__init__(logging.WARNING)
        self._mark = mark

    def emit(self, record: logging.LogRecord) -> None:
        """Print it; a stderr that cannot be written stops nothing."""
        with contextlib.suppress(OSError, ValueError):
            text = record.getMessage().removeprefix(self._mark)
            print(f"{self._mark}rank {os.environ.get('RANK', '0')}: {text}", file=sys.stderr, flush=True)


def print_warnings(mark: str) -> None:
    """Print the warnings of this package's loggers, whatever a framework makes of logging; for the rest of the process.
    A second call does nothing. mark: what each line begins with."""
    logger = logging.getLogger("ado_megatron")
    if not any(isinstance(handler, _Printer) for handler in logger.handlers):
        logger.addHandler(_Printer(mark))
        logger.setLevel(logging.WARNING)  # else the root's level holds, which the framework sets
        logger.propagate = False
