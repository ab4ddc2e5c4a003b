"""Real file systems with little room or none: under a file that a running process writes, and as shared memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def moved_to_a_full_disk(file: Path, mount: Path) -> Iterator[None]:
    """While this lasts, `file` is a link to its copy on a tmpfs of 256 kB, mounted at `mount`, that is full. Skips
    where mounting is not allowed."""
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", mount], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        os.symlink(mount / file.name, mount.with_name("link"))
        with open(mount / "filler", "wb", buffering=0) as filler:
            filler.write(bytes((192 << 10) - file.stat().st_size))
            # at once, since what is written between these two is lost
            shutil.copy(file, mount / file.name)
            os.replace(mount.with_name("link"), file)
            with contextlib.suppress(OSError):
                while filler.write(bytes(1 << 10)):
                    pass
        yield
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


def shared_memory_of(size: str) -> list[str]:
    """What to put before a command so that its /dev/shm is a tmpfs of its own of `size`. Skips where that is not
    allowed."""
    words = ["unshare", "-Urm", "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("no namespace of its own can be made here")
    return words
