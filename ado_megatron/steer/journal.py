"""The journal of a run: what was changed by hand, by whom, and from which block on.

It travels in every sidecar, and stands in RUN/ado/journal.json from the moment at which a change is granted: a run that
was killed before its next checkpoint does the same again when it is resumed, and needs no request for it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ado_megatron.errors import UserError
from ado_megatron.files import atomic_write, open_regular
from ado_megatron.steer.steering import Steering

NAME = "journal.json"
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Entry:
    """One change. id: from 1 up. block: the first that is laid out under it. step: steps done when it was granted.

    what: what is other from there on; before: the same settings as they were (package docstring of `steering`).
    `undo` in `what` is the id of an entry that counts no longer; `refit_after` is a block after which the laws are
    fitted once more. request: the token of the request.
    """

    id: int
    block: int
    step: int
    who: str
    when: str
    what: dict[str, Any]
    before: dict[str, Any]
    request: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as the journal and metrics.jsonl hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Entry:
        """The inverse of to_dict. Raises ValueError for what is no entry."""
        names = {spec.name for spec in dataclasses.fields(cls)}
        kinds = {"id": int, "block": int, "step": int, "what": dict, "before": dict}
        if any(type(values.get(name)) is not kind for name, kind in kinds.items()):
            raise ValueError("an entry of a journal has an id, a block, a step, what and before")
        return cls(**{name: value for name, value in values.items() if name in names})


def effective(entries: Iterable[Entry], block: int) -> list[Entry]:
    """The entries that count in `block`, in the order in which they came into force, without those that are undone."""
    come = sorted((e for e in entries if e.block <= block), key=lambda e: (e.block, e.id))
    undone = {e.what["undo"] for e in come if "undo" in e.what}
    return [e for e in come if e.id not in undone and "undo" not in e.what]


def in_force(entries: Iterable[Entry], block: int) -> Steering:
    """What is set by hand in `block`."""
    steering = Steering()
    for entry in effective(entries, block):
        steering = steering.changed(entry.what)
    return steering


def next_change(entries: Iterable[Entry], block: int) -> int | None:
    """The first block after `block` from which on something may be other; None: no more."""
    return min((e.block for e in entries if e.block > block), default=None)


def extra_refits(entries: Iterable[Entry]) -> frozenset[int]:
    """The blocks after which the operator wants the laws fitted."""
    return frozenset(e.what["refit_after"] for e in entries if "refit_after" in e.what)


def last_that_counts(entries: Sequence[Entry]) -> Entry | None:
    """What an undo takes back: the newest entry that is no undo, no refit, and not undone yet."""
    undone = {e.what["undo"] for e in entries if "undo" in e.what}
    return next((e for e in reversed(entries) if e.id not in undone and not {"undo", "refit_after"} & e.what.keys()),
                None)  # fmt: skip


def read_journal(path: str | Path) -> list[Entry]:
    """The entries of RUN/ado/journal.json; none where there is no such file. Raises UserError for one that is damaged
    or cannot be read."""
    try:
        with open_regular(path) as file:
            values = json.loads(file.read())
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a journal ({error}); remove it, or give another run") from error
    return entries_of(values, path)


def entries_of(values: Any, where: str | Path) -> list[Entry]:
    """The entries that to_dict wrote, of a file or a sidecar. Raises UserError, naming where, for anything else."""
    try:
        if values["version"] != _VERSION:
            raise ValueError(f"its version is {values['version']}, this one reads {_VERSION}")
        return [Entry.from_dict(entry) for entry in values["entries"]]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"the journal in {where} is damaged ({error}); remove it, or use an older one") from error


def values_of(entries: Sequence[Entry]) -> dict[str, Any]:
    """The entries as JSON values, for `entries_of`."""
    return {"version": _VERSION, "entries": [entry.to_dict() for entry in entries]}


def write_journal(path: str | Path, entries: Sequence[Entry]) -> None:
    """Write RUN/ado/journal.json atomically. Raises OSError."""
    atomic_write(path, (json.dumps(values_of(entries), indent=1, ensure_ascii=False) + "\n").encode())
