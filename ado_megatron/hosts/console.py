"""What a user reads in the log of a run: lines marked `ado:`, and the one sentence with which a run ends."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Mapping
from typing import NoReturn

from ado_megatron import messages
from ado_megatron.errors import UserError

MARK = "ado: "
LOGGED_DOMAINS = 24  # in a log line
PATIENCE = 2.0  # seconds that a rank gives the others to say the same


def say(text: str) -> None:
    """One line from rank zero, marked as ours once. A stdout that is closed or full does not stop the training."""
    known = _ranks_are_known()
    if (sys.modules["torch.distributed"].get_rank() if known else int(os.environ.get("RANK", "0"))) == 0:
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
    the ranks agree by a counter in the store of the process group. They wait a moment for one another, since a launcher
    kills the others as soon as one has ended.
    """
    key = f"ado/said/{hashlib.sha256(str(error).encode()).hexdigest()}"
    if _first(key):
        with contextlib.suppress(OSError, ValueError):
            print(f"ado_megatron.run: error: {error}", file=sys.stderr, flush=True)
    _wait_for_others(key)
    sys.exit(2)


def _first(key: str) -> bool:
    """True on one of the ranks that come with this key; before the process group exists, on one a node."""
    if not _ranks_are_known():
        return os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        return sys.modules["torch.distributed"].distributed_c10d._get_default_store().add(key, 1) == 1
    except Exception:  # noqa: BLE001 - the store went with the rank that held it: better twice than not at all
        return True


def _wait_for_others(key: str) -> None:
    """Until all ranks have come with the key, or PATIENCE is over. The store may live in rank zero's process."""
    if not _ranks_are_known():
        return
    distributed = sys.modules["torch.distributed"]
    deadline = time.monotonic() + PATIENCE
    with contextlib.suppress(Exception):  # noqa: BLE001 - it is gone: nobody is left to wait for
        store = distributed.distributed_c10d._get_default_store()
        while store.add(key, 0) < distributed.get_world_size() and time.monotonic() < deadline:
            time.sleep(0.01)


def _ranks_are_known() -> bool:
    """True once there is a process group. Does not import torch, which takes seconds, to find that there is none."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def print_warnings() -> None:
    """Print the warnings of this package's loggers (messages.py) as lines of ours."""
    messages.print_warnings(MARK)
