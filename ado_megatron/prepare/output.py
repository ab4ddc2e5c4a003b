"""The directory that prepare makes: where it may stand, how it appears at once, and what is left of a killed prepare.

Everything is written in `.NAME.partial-…` beside it, locked for as long as the process lives, and renamed at the end.
So a directory whose lock is free belongs to nobody, and the next prepare of the same name removes it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ado_megatron.errors import UserError
from ado_megatron.prepare.domain_writer import MOST

MANIFEST = "manifest.json"
JUST_MADE = 5.0  # seconds between making a directory and locking it, amply


def recipe(options: argparse.Namespace) -> dict[str, Any]:
    """What decides the output, for --reuse."""
    left_out = ("out", "overwrite", "reuse", "workers")
    return {name: value for name, value in sorted(vars(options).items()) if name not in left_out}


def check_output(out: Path, options: argparse.Namespace) -> bool:
    """True when `out` is to be kept as it is (--reuse). UserError when it may not be written."""
    if re.search(r"\s", str(out)):
        raise UserError(f"--out {out}: a blend file separates paths by white space, so choose a path without any")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    manifest = out / MANIFEST
    if not manifest.is_file():
        raise UserError(f"--out {out} exists and was not made by prepare; choose another directory")
    if options.reuse and _recipe_of(manifest) == recipe(options):
        return True
    if not options.overwrite:
        raise UserError(f"--out {out} holds prepared data already; choose another directory or add --overwrite")
    return False


def _recipe_of(manifest: Path) -> Any:
    """The recipe in a manifest; None in one that is damaged."""
    try:
        return json.loads(manifest.read_text())["recipe"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def publish(folder: Path, out: Path) -> None:
    """Put the finished directory in its place; what stood there goes away only after that."""
    old = None
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent)) / "data"
        out.rename(old)
    folder.rename(out)
    if old is not None:
        shutil.rmtree(old.parent)


def write_blends(folder: Path, final: Path, summaries: list[dict[str, Any]]) -> None:
    """blend.txt and valid_blend.txt in the form of --data-args-path; the weights are the shares of the tokens.

    final: where the directory will stand, since Megatron reads paths as they are. Raises OSError.
    """
    for file, side in (("blend.txt", ""), ("valid_blend.txt", "valid_")):
        prefix, tokens = f"{side}prefix", f"{side}tokens"
        total = sum(summary[tokens] for summary in summaries)
        words = [f"{summary[tokens] / total:.6f} {final / summary[prefix]}" for summary in summaries]
        (folder / file).write_text(" ".join(words) + "\n")


def table(summaries: list[dict[str, Any]]) -> str:
    """The domains as people read them."""
    total = sum(summary["tokens"] for summary in summaries)
    lines = [f"{'domain':<16}{'documents':>10}{'tokens':>14}{'share':>8}{'held out':>10}{'copies':>8}"]
    for s in summaries:
        lines.append(
            f"{s['name']:<16}{s['documents']:>10,}{s['tokens']:>14,}{s['tokens'] / total:>8.1%}"
            f"{s['valid_tokens']:>10,}{s['duplicates']:>8,}"
        )
    return "\n".join(lines)


def too_few_held_out(summaries: list[dict[str, Any]], valid_tokens: int) -> list[str]:
    """A sentence for each domain of which fewer tokens than asked for could be held out."""
    return [
        f"domain {s['name']}: {s['valid_tokens']:,} tokens are held out, fewer than the {valid_tokens:,} of "
        f"--validation-tokens, for which at most {MOST:.0%} of a domain are taken; its validation loss says little"
        for s in summaries
        if s["valid_tokens"] < valid_tokens
    ]


@contextlib.contextmanager
def partial_directory(out: Path) -> Iterator[Path]:
    """A directory beside `out` to write in; it is removed at the end unless it was published. Raises OSError."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    lock = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: a killed prepare leaves its directory there
            fcntl.flock(lock, fcntl.LOCK_EX)
        folder.chmod(0o755)  # mkdtemp is private; other users' training jobs read the data
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def sweep(out: Path) -> None:
    """Remove what killed prepares of the same name left, and put back what one of them had moved aside."""
    for old in filter(_is_abandoned, out.parent.glob(f".{out.name}.old-*")):
        if (old / "data").is_dir() and not out.exists():
            (old / "data").rename(out)
        shutil.rmtree(old, ignore_errors=True)
    for partial in filter(_is_abandoned, out.parent.glob(f".{out.name}.partial-*")):
        shutil.rmtree(partial, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Whether no living process holds the directory's lock."""
    try:
        if time.time() - folder.stat().st_ctime < JUST_MADE:
            return False
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
