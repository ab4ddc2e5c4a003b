"""What a run directory belongs to: config.json says what the run is, and only its continuation may write there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.files import atomic_write
from ado_megatron.option_fields import names
from ado_megatron.trainer.check_data import DataSpec
from ado_megatron.trainer.checkpoint_files import damage, steps_of, way_on
from ado_megatron.trainer.options import TrainerOptions

PARTS = {"options": "--", "ado": "--ado-", "layout": ""}  # of an identity, and how a difference in one is called
FREE = names(TrainerOptions, resume="free")


def run_identity(options: TrainerOptions, config: AdoConfig, data: DataSpec, dp: int) -> dict[str, Any]:
    """What config.json of a run directory says; two runs may continue one another when theirs agree.

    dp: data-parallel ranks.
    """
    may_change = names(config, resume="free") | names(config, resume="silent")
    ado = {name: value for name, value in config.resolved().to_dict().items() if name not in may_change}
    prefixes = {"train": [p.identity() for p in data.train_C], "valid": [p.identity() for p in data.valid_C or ()]}
    weights = None if data.weights_C is None else [float(w) for w in data.weights_C]
    return {
        "version": 1,
        "options": options.identity() | {"vocab_size": data.vocab_size},
        "ado": ado,
        "data": prefixes | {"weights": weights},
        "layout": {"tp": options.tp, "pp": options.pp, "dp": dp},
    }


def check_run_dir(options: TrainerOptions, config: AdoConfig, identity: dict[str, Any]) -> None:
    """Refuse a run directory that holds something else. Writes nothing. Raises UserError naming what differs."""
    run = Path(options.run_dir)
    if run.exists() and not run.is_dir():
        raise UserError(f"--run-dir {run} is a file; name a directory")
    parent = next(p for p in (run, *run.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"--run-dir {run} cannot be written: no permission in {parent}")
    if not (run / "config.json").is_file():
        if (run / "ado").exists() or (run / "checkpoints").exists():
            raise UserError(
                f"--run-dir {run} holds ado/ or checkpoints/ but no config.json, so it is not a run of this "
                "trainer; name another directory"
            )
        return
    theirs = _read_identity(run, options)
    if theirs is None or not (theirs.get("trained", True) or steps_of(run)):
        return  # a start that never trained
    differences = _differences(theirs, json.loads(json.dumps(identity)), options, config)
    if differences:
        raise UserError(
            f"--run-dir {run} belongs to another configuration: {'; '.join(differences[:4])}; name another "
            "directory or use its options"
        )
    if not options.resume:
        raise UserError(
            f"--run-dir {run} already holds this run; add --resume to go on from its last checkpoint, or name "
            "another directory"
        )


def _read_identity(run: Path, options: TrainerOptions) -> dict[str, Any] | None:
    """What config.json says; None where it is damaged and the user asked for what is whole. Raises UserError."""
    try:
        theirs = json.loads((run / "config.json").read_bytes())
        if isinstance(theirs, dict) and all(isinstance(theirs.get(part), dict) for part in PARTS):
            return theirs
    except OSError as error:
        raise UserError(f"{run / 'config.json'} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError):
        pass
    if options.resume == "newest-whole":
        return None
    whole = next((step for step in reversed(steps_of(run)) if damage(run, step) is None), None)
    raise UserError(f"{run / 'config.json'} is damaged, it says no run's options; {way_on(whole)}")


def write_identity(run: Path, identity: dict[str, Any], *, trained: bool) -> None:
    """Write config.json. trained: whether a step was done, so that the directory belongs to this run for good; before,
    a start with other options may take it over. Raises OSError."""
    atomic_write(run / "config.json", (json.dumps(identity | {"trained": trained}, indent=1) + "\n").encode())


def _differences(
    theirs: dict[str, Any], ours: dict[str, Any], options: TrainerOptions, config: AdoConfig
) -> list[str]:
    """What a user would have to change to continue the other run, in words. Which of its data may be others is for the
    sidecar of its checkpoint to say, with the word that accepts it."""
    accept_changes, accept_data = config.accept_changes, config.accept_data is not None
    found = []
    for part, prefix in PARTS.items():
        # An option that may change now was perhaps a part of the identity in the version that wrote it.
        for name in sorted((set(theirs[part]) - FREE) | set(ours[part])):
            old, new = theirs[part].get(name), ours[part].get(name)
            if part == "layout" and name == "dp" and options.zero == 0 and not options.bf16:
                continue  # every rank holds the whole optimizer, so the checkpoint does not depend on their number
            if part == "options" and name in ("tp", "pp"):
                continue  # said once, under layout
            if old != new and not (accept_changes and part == "ado"):
                flag = (
                    prefix + name.replace("_", "-") if prefix else {"dp": "data-parallel ranks"}.get(name, "--" + name)
                )
                found.append(f"{flag} was {_show(old)}, is {_show(new)}")
    others = _other_data(theirs.get("data"), ours["data"])
    judged = "train" in others and _has_sidecar(options)  # which says what has become of each dataset
    if others and not (accept_changes or accept_data or judged):
        found.append("its data (prefixes, their contents or weights) is another (--ado-accept-data accepts that)")
    return found


def _has_sidecar(options: TrainerOptions) -> bool:
    """Whether the run goes on from a checkpoint."""
    run = Path(options.run_dir)
    latest = (run / "checkpoints" / "latest").is_file()
    return bool(options.resume and steps_of(run) and (latest or options.resume == "newest-whole"))


def _other_data(theirs: Any, ours: dict[str, Any]) -> set[str]:
    """In what the data of two runs differ: train, valid, weights. An older version knew prefixes by fewer facts: then
    those count."""

    def same(side: str) -> bool:
        if side == "weights":
            return theirs[side] == ours[side]
        pairs = zip(map(list, theirs[side]), map(list, ours[side]), strict=True)
        return all(len(old) >= 4 and old == new[: len(old)] for old, new in pairs)

    sides = {"train", "valid", "weights"}
    try:
        return {side for side in sides if not same(side)}
    except (TypeError, KeyError, ValueError):
        return sides


def _show(value: Any) -> str:
    return "not set" if value is None else str(value)
