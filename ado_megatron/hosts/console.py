"""What a user reads in the log of a run: lines marked `ado:`, and the one sentence with which a run ends."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

import torch

from ado_megatron.errors import UserError
from ado_megatron.mixer.world import digest64

MARK = "ado: "
LOGGED_DOMAINS = 24  # in a log line


def say(text: str) -> None:
    """One line from rank zero, marked as ours once. A stdout that is closed or full does not stop the training."""
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the file object itself was closed
            print(f"{MARK}{text.removeprefix(MARK)}", flush=True)


def by_name(values: Mapping[str, float]) -> str:
    """Name and value of each, of many those of the largest values."""
    pairs = list(values.items())
    if len(pairs) > LOGGED_DOMAINS:
        pairs = sorted(pairs, key=lambda pair: -pair[1])[:LOGGED_DOMAINS]
    return " ".join(f"{name} {value:.4f}" for name, value in pairs)


def end_with(error: UserError) -> NoReturn:
    """End this process with the sentence of `error` and exit code 2.

    An error that all ranks share is printed by the first of them that comes here, one of a single rank by that rank:
    the ranks agree by a counter in the store of the process group.
    """
    if _first(str(error)):
        with contextlib.suppress(OSError, ValueError):
            print(f"ado_megatron.run: error: {error}", file=sys.stderr, flush=True)
    sys.exit(2)


def _first(sentence: str) -> bool:
    """True on one of the ranks that say this sentence; before the process group exists, on one a node."""
    if not torch.distributed.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        return store.add(f"ado/said/{digest64(sentence)}", 1) == 1
    except Exception:  # noqa: BLE001 - the store went with the rank that held it: better twice than not at all
        return True


class _Printer(logging.Handler):
    """Warnings of this package on stderr, marked as ours, with the rank: they may be of one rank alone."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print it; a stderr that cannot be written stops nothing."""
        with contextlib.suppress(OSError, ValueError):
            rank = os.environ.get("RANK", "0")
            print(f"{MARK}rank {rank}: {record.getMessage().removeprefix(MARK)}", file=sys.stderr, flush=True)


def print_warnings() -> None:
    """Print the warnings of this package's loggers, whatever the framework makes of logging. A second call does
    nothing."""
    logger = logging.getLogger("ado_megatron")
    if not any(isinstance(handler, _Printer) for handler in logger.handlers):
        logger.addHandler(_Printer(logging.WARNING))
        logger.setLevel(logging.WARNING)  # else the root's level holds, which the framework sets
        logger.propagate = False
