"""Which save of which run a sidecar and a checkpoint are of.

Rank zero draws a mark for each save, `RUN-SAVE` in hexadecimal digits: one part for the run, kept over resumes, and a
nonce. The sidecar keeps it, and the framework keeps it among its arguments, which both frameworks write whole into
every checkpoint and show when they load one. A sidecar is believed if both marks are the same.

    mark = next_mark(None)          "5f0c2a9d41b7e3f8-09b4…": of a new run
    next_mark(mark)                 "5f0c2a9d41b7e3f8-77de…": of the next save of that run
    put(args, mark); of(args)       into the framework's arguments, and out of a checkpoint's
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from ado_megatron.errors import SidecarError

ARGUMENT = "ado_save"  # the mark's name among the framework's arguments


def next_mark(mark: str | None) -> str:
    """The mark of a new save: of the same run as `mark`, of a new run if that is None."""
    run = secrets.token_hex(8) if mark is None else mark.partition("-")[0]
    return f"{run}-{secrets.token_hex(8)}"


def put(args: Any, mark: str | None) -> None:
    """Into the arguments that the framework saves with its next checkpoint; None: that one has no sidecar."""
    setattr(args, ARGUMENT, mark)


def of(checkpoint_args: Any) -> str | None:
    """The mark in the arguments of a loaded checkpoint; None if it was saved without a sidecar, or before marks."""
    mark = getattr(checkpoint_args, ARGUMENT, None)
    return mark if isinstance(mark, str) else None


def mismatch(in_sidecar: str | None, in_checkpoint: str | None) -> str | None:
    """What is wrong with a sidecar beside a checkpoint, as the rest of a sentence, or None.

    Sidecars written before there were marks (None) are believed: their position is compared all the same.
    """
    if in_sidecar is None or in_sidecar == in_checkpoint:
        return None
    if in_checkpoint is None:
        return "that checkpoint was saved without a sidecar, or was converted since"
    runs = {mark.partition("-")[0] for mark in (in_sidecar, in_checkpoint)}
    return "it is of another run" if len(runs) == 2 else "it is of another save of this run"


def require_same(in_sidecar: str | None, in_checkpoint: str | None, path: Path) -> None:
    """SidecarError if the sidecar at `path` is not the one that was written with the loaded checkpoint."""
    wrong = mismatch(in_sidecar, in_checkpoint)
    if wrong is not None:
        raise SidecarError(
            f"the sidecar {path} was not written with the checkpoint beside it: {wrong}; put back the sidecar of that "
            "save, or remove it if the framework's own blend drew the samples, or say --ado-accept-changes to go on "
            "with it"
        )
