"""One rank of `ado-megatron pretrain` under a launcher: trains, and ends with whoever started it.

The parent makes a folder that its ranks find in the environment:

    alive      a named pipe whose write end the parent holds; it closes when the parent ends, however that happens, also
               when nobody reaps it and its process id lives on
    rank_N     process id of rank N
    failed     made by a rank that fails; the others, which may wait for it in a collective, end soon after
    done       made by rank zero when it is through: the signal that ended the run, or 0
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from ado_megatron import messages
from ado_megatron.errors import UserError
from ado_megatron.processes import die_with_parent
from ado_megatron.trainer.options import parse

_FOLDER = "ADO_MEGATRON_PRETRAIN"
LOOK_EVERY = 0.5  # seconds
AFTER_A_FAILURE = 10.0  # seconds that a rank goes on when another one has failed


def say(text: str) -> None:
    """A line on stderr; when that is closed, nothing."""
    with contextlib.suppress(OSError, ValueError):
        print(f"ado-megatron: {text}", file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Folder:
    """What parent and ranks know of each other; the module's docstring lists the files."""

    path: Path

    @classmethod
    @contextlib.contextmanager
    def made(cls) -> Iterator[Folder]:
        """In the parent: the folder, and the pipe held open, until the block ends."""
        with tempfile.TemporaryDirectory(prefix="ado-megatron-") as name:
            os.mkfifo(Path(name, "alive"))
            held = os.open(Path(name, "alive"), os.O_RDWR | os.O_CLOEXEC)
            try:
                yield cls(Path(name))
            finally:
                os.close(held)

    @classmethod
    def given(cls) -> Folder | None:
        """In a rank: the parent's folder, or None under a launcher of the user's own."""
        return cls(Path(os.environ[_FOLDER])) if _FOLDER in os.environ else None

    def environment(self) -> dict[str, str]:
        """What a rank needs to find it."""
        return {_FOLDER: str(self.path)}

    def ended_by(self) -> int | None:
        """What rank zero wrote when it was through: 0 or a signal; None if it never was."""
        with contextlib.suppress(OSError, ValueError):
            return int((self.path / "done").read_text())
        return None

    def signal_ranks(self, number: int) -> bool:
        """Send a signal to all ranks that have begun; False if there is none."""
        told = False
        for path in self.path.glob("rank_*"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(path.read_text()), number)
                told = True
        return told

    def write(self, name: str, value: int) -> None:
        """Make one of the files, whole at once. The folder may be gone with the parent."""
        with contextlib.suppress(OSError):
            partial = self.path / f".{name}.{os.getpid()}"
            partial.write_text(str(value))
            partial.rename(self.path / name)


def run_rank(argv: list[str]) -> int:
    """Train on this rank; its exit code. Bad input that only shows here: rank zero says it, and every rank ends with 2.

    argv: the words after `ado-megatron pretrain`.
    """
    folder, number = Folder.given(), int(os.environ["RANK"])
    if folder is not None:
        _follow(folder)
        folder.write(f"rank_{number}", os.getpid())
    messages.print_warnings("ado-megatron: ")
    # Remarks of the libraries about each other, once a rank and import; nothing a user could act on.
    for module in ("megatron", "deepspeed", "torch.distributed"):
        warnings.filterwarnings("ignore", module=module)
    try:
        options, config = parse(argv)
        from ado_megatron.trainer import loop, parallel

        stopped_by = loop.train(options, config).stopped_by
        parallel.tear_down()
    except UserError as error:
        _fail(folder, number, error)
    except KeyboardInterrupt:  # before training: nothing is to be saved
        if number == 0:
            say("interrupted before the first step")
        os._exit(130)
    except BaseException:
        if folder is not None:
            folder.write("failed", number)
        raise
    if folder is None:
        return 128 + stopped_by if stopped_by else 0
    if number == 0:
        folder.write("done", stopped_by)
    return 0


def _fail(folder: Folder | None, number: int, error: UserError) -> None:
    """Say it and end with 2 at once: peers may wait in a collective, there is no orderly end to wait for."""
    if number != 0:
        time.sleep(5.0)  # rank zero says the same; the launcher stops this rank meanwhile
    say(f"error: {error}")
    if folder is not None:
        folder.write("failed", number)
    os._exit(2)


def _follow(folder: Folder) -> None:
    """End this rank when its launcher (by the kernel) or the parent (by its pipe) is gone, or when another rank failed
    and this one does not come through."""
    launcher = os.getppid()
    die_with_parent(launcher)
    try:
        alive = os.open(folder.path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # the parent ended before this rank began
        os._exit(143)

    def parent_lives() -> bool:
        try:
            return os.read(alive, 1) != b""
        except BlockingIOError:
            return True

    def watch() -> None:
        failed_at = None
        while parent_lives() and os.getppid() == launcher:
            if (folder.path / "failed").exists():
                failed_at = failed_at or time.monotonic()
                if time.monotonic() - failed_at > AFTER_A_FAILURE:
                    os._exit(1)
            time.sleep(LOOK_EVERY)
        if not parent_lives():  # nobody else is left to remove it
            shutil.rmtree(folder.path, ignore_errors=True)
        os._exit(143)

    threading.Thread(target=watch, name="follow-parents", daemon=True).start()
