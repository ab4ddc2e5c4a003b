"""Checkpoints of engine and mixer, written and read by all ranks: `checkpoints/latest` names only a whole one.

checkpoint_files.py says which files there are. Each rank brings what it wrote to the disk itself, then all ranks say
whether they succeeded, then rank zero names the checkpoint in `latest`, and only then older ones are removed. So a
crash, a full disk or a lost machine at any moment leaves at least the checkpoint before.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deepspeed.runtime.pipe.engine import PipelineEngine

from ado_megatron.errors import UserError
from ado_megatron.files import atomic_write
from ado_megatron.mixer import Mixer, World
from ado_megatron.trainer.checkpoint_files import (
    MANIFEST,
    damage,
    damaged_content,
    damaged_sidecar,
    files_of,
    sidecar,
    step_dir,
    steps_of,
    sync,
    token_of,
    way_on,
    write_manifest,
)

LOG = logging.getLogger(__name__)


# ---------------------------------------------------------------- which one to resume from


def step_to_resume(run: Path, world: World, resume: bool | str) -> int | None:
    """Step of the checkpoint to go on from, or None to start from zero. Collective; reads all of its files once.

    resume: "newest-whole" looks for the newest checkpoint that is not damaged; otherwise it is the one that `latest`
    names, and a damaged one is a UserError on every rank that says what is damaged and which one is whole.
    """
    if resume == "newest-whole":
        return _newest_whole(run, world)
    step, problem = world.run_on_rank_zero(lambda: _read_latest(run))
    if step is None and problem is None:
        return None
    if problem is None:
        found = _find_damage(run, step, world)
        if found is None:
            return step
        problem = f"{run / 'checkpoints' / 'latest'} names 'step_{step}' but {found}"
    raise UserError(f"{problem}; {way_on(_newest_whole(run, world, without=step, or_none=True))}")


def _read_latest(run: Path) -> tuple[int | None, str | None]:
    """(step that `latest` names, None), (None, what is wrong with it), or (None, None) where there is no such file."""
    latest = run / "checkpoints" / "latest"
    try:
        tag = latest.read_bytes().decode().strip()
    except FileNotFoundError:
        return None, None
    except OSError as error:
        return None, f"{latest} cannot be read ({error.strerror})"
    except UnicodeDecodeError:
        return None, f"{latest} is damaged: it is no text"
    match = re.fullmatch(r"step_(\d{1,18})", tag)
    return (int(match[1]), None) if match else (None, f"{latest} is damaged: {tag[:40]!r} is no name of a checkpoint")


def _find_damage(run: Path, step: int, world: World) -> str | None:
    """What is wrong with a checkpoint, in words, the same on every rank. Each rank reads a part of its files."""
    missing = world.run_on_rank_zero(lambda: damage(run, step))
    if missing is not None:
        return f"its files are not all there: {missing}"
    files = world.run_on_rank_zero(lambda: files_of(run, step))
    found = damaged_content(files[world.rank :: world.size])
    if found is None and world.is_zero:
        found = damaged_sidecar(run, step)
    return next((text for text in world.gather(found) if text is not None), None)


def _newest_whole(run: Path, world: World, *, without: int | None = None, or_none: bool = False) -> int | None:
    """The newest checkpoint of which nothing is damaged; None where none was ever written or, with or_none, none is
    whole. Raises UserError when there are some and none is whole."""
    steps, problem = world.run_on_rank_zero(lambda: steps_of(run)), None
    for step in reversed(steps):
        if step == without:
            continue
        problem = _find_damage(run, step, world)
        if problem is None:
            return step
        if world.is_zero:
            LOG.warning("the checkpoint step_%s is passed over: %s", step, problem)
    if problem is not None and not or_none:
        raise UserError(f"no checkpoint in {run / 'checkpoints'} is whole ({problem}); {way_on(None)}")
    return None


# ---------------------------------------------------------------- writing


class _Writes:
    """What this rank writes of DeepSpeed's checkpoint. A write that fails is kept, not raised: DeepSpeed's own
    collectives must be gone through by all ranks, before they hear of it."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.failure: Exception | None = None

    def run(self, path: str | Path, write: Callable[[], Any]) -> None:
        """Write one file and bring it to the disk."""
        try:
            write()
            sync([Path(path)])
            self.paths.append(Path(path))
        except OSError as error:
            self.failure = self.failure or OSError(error.errno, error.strerror or str(error), str(path))
        except RuntimeError as error:  # torch's zip writer, on a full disk
            self.failure = self.failure or UserError(f"{path} could not be written: {str(error).splitlines()[0]}")

    def check(self) -> None:
        """Raise the first failure."""
        if self.failure is not None:
            raise self.failure

    @contextlib.contextmanager
    def watching(self, engine: PipelineEngine) -> Iterator[None]:
        """While this lasts, all that the engine writes goes through `run`."""
        writer, save, copy = engine.checkpoint_engine, engine.checkpoint_engine.save, engine._copy_recovery_script
        writer.save = lambda state_dict, path: self.run(path, lambda: save(state_dict, path))

        def copy_scripts(folder: str) -> None:
            with contextlib.suppress(OSError):  # scripts that convert the checkpoint: DeepSpeed's package has them, too
                copy(folder)

        engine._copy_recovery_script = copy_scripts
        try:
            yield
        finally:
            writer.save, engine._copy_recovery_script = save, copy


def save(engine: PipelineEngine, mixer: Mixer, run: Path, step: int, consumed: int, keep: int) -> None:
    """Write the checkpoint after `step` steps. Collective. A crash anywhere leaves `latest` at a whole one.

    Raises UserError on every rank, with rank, path and reason and the last whole checkpoint, if one could not write.
    """
    world, folder, before = mixer.world, step_dir(run, step), mixer.last_saved

    def hint() -> str:
        last = "there is no whole checkpoint yet" if before is None else f"the last whole checkpoint is {before}"
        return f"{last}; mend it and go on with --resume"

    def clear() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if world.is_zero:  # an abandoned attempt may have left a checkpoint of this step
            (folder / MANIFEST).unlink(missing_ok=True)
            sidecar(run, step).unlink(missing_ok=True)

    world.require_success(clear, hint)
    client_state, writes = {"step": step, "consumed_samples": consumed}, _Writes()
    with writes.watching(engine):
        engine.save_checkpoint(str(run / "checkpoints"), tag=folder.name, client_state=client_state, save_latest=False)
    world.require_success(writes.check, hint)
    sizes = world.gather({path.name: path.stat().st_size for path in writes.paths})
    token = mixer.save(sidecar(run, step), step, consumed)

    def name_it() -> None:
        if world.is_zero:
            write_manifest(run, step, {name: size for some in sizes for name, size in some.items()}, token)
            atomic_write(run / "checkpoints" / "latest", f"step_{step}\n".encode())

    world.require_success(name_it, hint)
    if world.is_zero:
        _prune(run, step, keep)


def _prune(run: Path, newest: int, keep: int) -> None:
    """Remove what is older than the `keep` newest whole checkpoints up to `newest`. What cannot be removed stays."""
    whole = [step for step in steps_of(run) if step <= newest and damage(run, step) is None]
    if not keep or len(whole) <= keep:
        return
    for step in [step for step in steps_of(run) if step < whole[-keep]]:
        try:
            sidecar(run, step).unlink(missing_ok=True)
            shutil.rmtree(step_dir(run, step))
        except OSError as error:
            LOG.warning("the old checkpoint %s could not be removed: %s", step_dir(run, step), error)


# ---------------------------------------------------------------- reading


def load(engine: PipelineEngine, mixer: Mixer, run: Path, step: int) -> None:
    """Restore engine and mixer as they were after `step` steps; `mixer.start` goes on from there. Collective.

    Raises UserError for what `step_to_resume` could not see: files of another model or of another version.
    """
    folder = step_dir(run, step)
    try:
        path, client_state = engine.load_checkpoint(str(folder.parent), tag=folder.name)
    except Exception as error:  # noqa: BLE001 - torch, pickle and DeepSpeed raise all kinds
        first = str(error).splitlines()[0] if str(error) else ""
        raise UserError(f"the checkpoint {folder} cannot be loaded: {type(error).__name__}: {first[:200]}") from error
    if path is None or client_state.get("step") != step:
        raise UserError(f"the checkpoint {folder} cannot be loaded: it is not of step {step}; name another in `latest`")
    mixer.load(sidecar(run, step), mixer.world.run_on_rank_zero(lambda: token_of(run, step)))
    mixer.last_saved = f"of step {step}"
