"""Who may write in a run directory: one process, rank zero of the run, for as long as it lives.

The lock is a file. It names its owner (host, process, when it started, a random token) and the owner touches it every
few seconds. A lock whose owner is known to be gone, or that nobody has touched while we watched, is stale and is taken
over. Only the order of operations of one directory is relied on (create exclusively, rename), and no clock is compared
with another machine's, so it holds on a shared file system too.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ado_megatron.errors import UserError

TOUCH_EVERY = 5.0  # seconds
STALE_AFTER = 60.0  # seconds without a touch, watched by us


class OwnerLock:
    """The lock of `directory`, held from `acquire` to `release`. `lost` says that another process has taken it over."""

    def __init__(self, directory: str | Path, *, touch_every: float = TOUCH_EVERY, stale_after: float = STALE_AFTER):
        self.path = Path(directory) / "owner.json"
        self.lost = False
        self._touch_every, self._stale_after = touch_every, stale_after
        self._me = {
            "host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid()), "space": _space(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"), "token": secrets.token_hex(8),
        }  # fmt: skip
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, say: Callable[[str], None] = lambda text: None) -> None:
        """Take the lock. UserError naming the owner if a living process holds it; OSError if it cannot be written.

        say: told when a lock of another machine has to be watched, which takes `stale_after` seconds.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._create():
            owner = self._read()
            if owner is None:
                continue  # released just now
            lives = _lives(owner)
            if lives:
                raise self._taken(owner)
            if lives is None:
                say(f"{self.path} names a process that may still run ({_name(owner)}); watching it")
                self._watch(owner)
            self._remove(owner)
        self._thread = threading.Thread(target=self._keep, name="ado-owner-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if not self.lost and (self._read() or {}).get("token") == self._me["token"]:
                self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Write the whole file under a name of ours and link it: readers never see a part of it."""
        mine = self.path.with_name(f".owner.{self._me['token']}")
        mine.write_text(json.dumps(self._me))
        try:
            _link(mine, self.path)
        except FileExistsError:
            return False
        finally:
            mine.unlink()
        return True

    def _read(self) -> dict[str, Any] | None:
        """The owner; None if there is none. A file that is no lock has an owner without a name, who must be watched."""
        try:
            owner = json.loads(self.path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            owner = {}
        return owner if isinstance(owner, dict) else {}

    def _watch(self, owner: dict[str, Any]) -> None:
        """Return when nobody has touched the lock for `stale_after` seconds. UserError as soon as somebody does."""
        touched, deadline = self._touched(), time.monotonic() + self._stale_after
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._stale_after / 20))
            now = self._touched()
            if now is None:
                return
            if now != touched:
                raise self._taken(owner)

    def _taken(self, owner: dict[str, Any]) -> UserError:
        return UserError(
            f"{self.path.parent} is being written by another process ({_name(owner)}); two runs cannot share a run "
            "directory: end that one first, or name another directory"
        )

    def _touched(self) -> int | None:
        try:
            return self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _remove(self, owner: dict[str, Any]) -> None:
        """Take a stale lock away, unless another process was quicker and put its own there."""
        aside = self.path.with_name(f".owner.stale.{self._me['token']}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        try:
            if json.loads(aside.read_text() or "{}").get("token") != owner.get("token"):
                _link(aside, self.path)  # theirs, back to its place
        except (ValueError, AttributeError, FileExistsError):
            pass
        aside.unlink()

    def _keep(self) -> None:
        """Touch the lock until the end; notice when it is somebody else's."""
        while not self._end.wait(self._touch_every):
            try:
                if (self._read() or {}).get("token") != self._me["token"]:
                    self.lost = True
                    return
                os.utime(self.path)
            except OSError:
                continue  # a file system that is away for a moment; others see no touch, and say so before they write


def _link(source: Path, target: Path) -> None:
    """A second name for a file; a copy where the file system has no hard links. FileExistsError if it is taken."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        with open(target, "x") as file:
            file.write(source.read_text())


def _born(pid: int) -> str | None:
    """When a process started, in ticks since the machine did; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _space() -> str:
    """The machine and its space of process numbers: only inside it does a number say who lives."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _lives(owner: dict[str, Any]) -> bool | None:
    """Whether the owner, a process of this machine, lives; None if that cannot be known from here. A run of this very
    process has ended, or another could not begin."""
    same_space = bool(_space()) and owner.get("space") == _space()
    if not same_space or not isinstance(owner.get("pid"), int):
        return None
    pid = owner["pid"]
    return pid != os.getpid() and _born(pid) == owner.get("born") and not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except (OSError, IndexError):
        return True


def _name(owner: dict[str, Any]) -> str:
    if not owner:
        return "its owner is not readable"
    return f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('since')}"
