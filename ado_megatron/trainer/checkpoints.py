"""Checkpoints of engine and mixer: `checkpoints/latest` names one only when both parts are complete.

RUN/config.json                  what the run is (run_dir.run_identity)
RUN/checkpoints/step_N/…         DeepSpeed's files
RUN/checkpoints/latest           "step_N", replaced last
RUN/ado/state_N.ado              the mixer's sidecar
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.pipe.engine import PipelineEngine

from ado_megatron.errors import UserError
from ado_megatron.files import atomic_write
from ado_megatron.mixer.mixer import Mixer
from ado_megatron.mixer.world import World


def sidecar(run: Path, step: int) -> Path:
    return run / "ado" / f"state_{step}.ado"


def latest_step(run: Path, world: World) -> int | None:
    """Step of the last complete checkpoint as rank zero sees it, or None. Collective. Raises UserError when its files
    are gone."""
    step, problem = None, None
    if world.is_zero and (run / "checkpoints" / "latest").is_file():
        tag = (run / "checkpoints" / "latest").read_text().strip()
        match = re.fullmatch(r"step_(\d+)", tag)
        step = int(match[1]) if match else None
        if step is None or not (run / "checkpoints" / tag).is_dir() or not sidecar(run, step).is_file():
            latest = run / "checkpoints" / "latest"
            problem = (
                f"{latest} names {tag!r} but its files are not all there; write the name of a complete step into it"
            )
    step, problem = world.broadcast((step, problem))
    if problem is not None:
        raise UserError(problem)
    return step


def write_identity(run: Path, identity: dict[str, Any], world: World) -> None:
    """Rank zero writes config.json; after every rank has checked the directory. Collective."""
    torch.distributed.barrier()
    if world.is_zero:
        atomic_write(run / "config.json", (json.dumps(identity, indent=1) + "\n").encode())


def save(engine: PipelineEngine, mixer: Mixer, run: Path, step: int, consumed: int, keep: int) -> None:
    """Write the checkpoint after `step` steps. Collective. A crash anywhere leaves `latest` at a complete one."""
    client_state = {"step": step, "consumed_samples": consumed}
    engine.save_checkpoint(str(run / "checkpoints"), tag=f"step_{step}", client_state=client_state, save_latest=False)
    mixer.save(sidecar(run, step), step, consumed)
    torch.distributed.barrier()
    if mixer.world.is_zero:
        atomic_write(run / "checkpoints" / "latest", f"step_{step}\n".encode())
        _prune(run, step, keep)


def load(engine: PipelineEngine, mixer: Mixer, run: Path, step: int) -> None:
    """Restore engine and mixer as they were after `step` steps; `mixer.start` goes on from there. Collective."""
    path, client_state = engine.load_checkpoint(str(run / "checkpoints"), tag=f"step_{step}")
    if path is None or client_state.get("step") != step:
        raise UserError(
            f"the checkpoint {run / 'checkpoints' / f'step_{step}'} cannot be loaded; name an older one in "
            "checkpoints/latest"
        )
    mixer.load(sidecar(run, step))


def _prune(run: Path, newest: int, keep: int) -> None:
    """Remove all but the `keep` newest complete checkpoints, and what later, abandoned attempts left."""
    steps = sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*") if path.name[5:].isdigit())
    done = [step for step in steps if step <= newest]
    gone = done[:-keep] if keep else []
    for step in gone:
        shutil.rmtree(run / "checkpoints" / f"step_{step}")
        sidecar(run, step).unlink(missing_ok=True)
