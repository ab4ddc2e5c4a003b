"""What lies in a run directory after a checkpoint, and whether it is whole. No torch, no communication.

RUN/config.json                      what the run is (run_dir.py)
RUN/checkpoints/step_N/…             DeepSpeed's files
RUN/ado/state_N.ado                  the mixer's sidecar
RUN/checkpoints/step_N/files.json    names and sizes of DeepSpeed's files and the sidecar's token
RUN/checkpoints/latest               "step_N", replaced last

They are written in this order, the sidecar when DeepSpeed's files of all ranks are on the disk. A checkpoint is whole
when its sidecar is there and so is everything that files.json names, with its size and, on a closer look, with the
checksums that torch's files (zip archives) carry. Where there is no files.json (an older version wrote none, or the run
was killed just before), the model files that are there are looked at.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from ado_megatron.errors import SidecarError
from ado_megatron.files import atomic_write

MANIFEST = "files.json"
VERSION = 1


def step_dir(run: Path, step: int) -> Path:
    """The directory of DeepSpeed's files of a checkpoint."""
    return run / "checkpoints" / f"step_{step}"


def sidecar(run: Path, step: int) -> Path:
    """The mixer's file of a checkpoint."""
    return run / "ado" / f"state_{step}.ado"


def steps_of(run: Path) -> list[int]:
    """Steps of all checkpoints of a run, whole or not, from the oldest to the newest."""
    names = (path.name for path in (run / "checkpoints").glob("step_*") if path.is_dir())
    return sorted(int(match[1]) for match in map(re.compile(r"step_(\d+)").fullmatch, names) if match)


def write_manifest(run: Path, step: int, sizes: dict[str, int], token: str) -> None:
    """Say that the checkpoint is whole: bytes of its files by name, and the token of its sidecar. Raises OSError."""
    content = {"version": VERSION, "step": step, "sidecar": token, "files": dict(sorted(sizes.items()))}
    atomic_write(step_dir(run, step) / MANIFEST, (json.dumps(content, indent=1) + "\n").encode())


def token_of(run: Path, step: int) -> str | None:
    """The token of the sidecar that belongs to a checkpoint; None where none is kept."""
    manifest = _manifest(run, step)
    return None if manifest is None else manifest["sidecar"]


def files_of(run: Path, step: int) -> list[Path]:
    """The torch files of a checkpoint, in order of their names."""
    manifest = _manifest(run, step)
    folder = step_dir(run, step)
    names = sorted(path.name for path in folder.glob("*.pt")) if manifest is None else sorted(manifest["files"])
    return [folder / name for name in names if name.endswith(".pt")]


def damage(run: Path, step: int) -> str | None:
    """What is missing or cut of a checkpoint, in words, by names and sizes alone; None if nothing is."""
    folder = step_dir(run, step)
    if not folder.is_dir():
        return f"{folder} is not there"
    try:
        manifest = _manifest(run, step)
        for name, size in ({} if manifest is None else manifest["files"]).items():
            if not (folder / name).is_file():
                return f"{folder / name} is missing"
            if (folder / name).stat().st_size != size:
                return f"{folder / name} has {(folder / name).stat().st_size} of {size} bytes"
        if not files_of(run, step):
            return f"{folder} holds no model files"
    except (ValueError, OSError) as error:
        return f"{folder / MANIFEST} cannot be read ({getattr(error, 'strerror', None) or error})"
    return None if sidecar(run, step).is_file() else f"{sidecar(run, step)} is missing"


def damaged_content(paths: Iterable[Path]) -> str | None:
    """The first of torch's files whose content is not what was written, in words. Reads all of them."""
    for path in paths:
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    return f"{path} is damaged (a checksum does not match)"
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, ValueError) as error:
            return f"{path} is damaged ({getattr(error, 'strerror', None) or error})"
    return None


def damaged_sidecar(run: Path, step: int) -> str | None:
    """What is wrong with the sidecar of a checkpoint, in words; None if it is the one that was written with it."""
    from ado_megatron.mixer.sidecar import read_sidecar  # mixer/ needs torch, the launcher's parent does not

    try:
        read_sidecar(sidecar(run, step), token_of(run, step))
    except SidecarError as error:
        return str(error)
    return None


def way_on(whole: int | None) -> str:
    """What to do about a damaged checkpoint, when the newest whole one is of step `whole` (None: there is none)."""
    if whole is None:
        return "no other checkpoint is whole: start again in another --run-dir"
    return f"the newest whole checkpoint is step_{whole}: go on from it with --resume=newest-whole"


def sync(paths: Iterable[Path]) -> None:
    """Bring files, and then the directories that name them, to the disk. Raises OSError with the name."""
    paths = list(paths)
    for path in [*paths, *sorted({path.parent for path in paths})]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            os.close(descriptor)


def _manifest(run: Path, step: int) -> dict | None:
    """files.json of a checkpoint, None if it has none. Raises ValueError for one that says something else."""
    path = step_dir(run, step) / MANIFEST
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    whole = isinstance(content, dict) and isinstance(content.get("sidecar"), str)
    files = content.get("files") if whole else None
    if not isinstance(files, dict) or not all(isinstance(size, int) for size in files.values()):
        raise ValueError("it does not list files and sizes")
    return content
