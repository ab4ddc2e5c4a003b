"""Megatrons that were here before us: recognised by their files, hooked in memory, never edited.

`recognise` says which host a script belongs to. `install` checks every hook point and wires a session to it.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError

# host module -> files that tell it, relative to its `megatron` directory
MARKS = {
    "megatron_lm": ("training/training.py", "core/rerun_state_machine.py"),
    "megatron_deepspeed": ("training.py", "data/blendable_dataset.py", "model/gpt_model.py"),
}


def recognise() -> tuple[str, Path]:
    """(host, its checkout) of the `megatron` that a script would import now. Raises UserError if it is none we know."""
    spec = importlib.util.find_spec("megatron")
    places = [Path(place) for place in spec.submodule_search_locations or ()] if spec is not None else []
    for place in places:
        for host, files in MARKS.items():
            if all((place / name).is_file() for name in files):
                return host, place.parent
    where = ", ".join(map(str, places)) or "nothing named megatron"
    tried = "; ".join(f"{host} by {', '.join(files)}" for host, files in MARKS.items())
    raise UserError(f"no host was recognised in {where} (tried {tried}); give the script of a Megatron checkout")


def install(host: str, checkout: Path, config: AdoConfig):
    """Hook the host for a run with `config`; returns the session. Raises UserError if a hook point does not fit."""
    from ado_megatron.hosts import hooks
    from ado_megatron.hosts.session import Session

    module = importlib.import_module(f"ado_megatron.hosts.{host}")
    hooks.check(module.HOOK_POINTS, str(checkout))
    session = Session(config)
    hooks.install(module.wrappers(session))
    return session
