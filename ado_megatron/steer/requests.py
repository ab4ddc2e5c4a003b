"""Requests and answers between `ado-megatron set` and rank zero of a run: files in RUN/ado/requests.

    TOKEN.json      a request, whole from the moment at which it has that name
    TOKEN.taken     rank zero has it now: it will be answered, and can no longer be withdrawn
    TOKEN.answer    the answer; the command reads and removes it

Each passage is one rename, so a request is either withdrawn by the command or taken by rank zero, never both. Only the
directory's order of operations is relied on, so it holds on a shared file system too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pwd
import re
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ado_megatron.errors import UserError
from ado_megatron.files import atomic_write

FOLDER = "requests"
MOST_BYTES = 64 << 10
WAIT = 60.0  # seconds that the command waits for an answer
_STALE = 2 * WAIT  # a request this old has nobody who waits for it
_NUDGE = 5.0  # seconds between two changes of the folder by a command that waits
_NAME = re.compile(r"[0-9a-f]{8,64}\.json")


@dataclasses.dataclass(frozen=True)
class Request:
    """A request that rank zero has taken: its content, or why it is refused without being looked into."""

    token: str
    values: dict[str, Any]
    who: str = ""  # the owner of the file, at the machine that it names
    refusal: str | None = None


class Inbox:
    """Rank zero's end. directory: RUN/ado."""

    def __init__(self, directory: Path):
        self._directory, self.folder = directory, directory / FOLDER
        self._seen = -1  # when the folder changed last, as far as it was listed

    def open(self) -> None:
        """Make the folder, with the rights of its parent, and remove what was taken by a process that is gone."""
        self.folder.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):
            os.chmod(self.folder, stat.S_IMODE(self._directory.stat().st_mode))
        for path in [*self.folder.glob("*.taken"), *self.folder.glob(".*.tmp")]:
            with contextlib.suppress(OSError):
                path.unlink()

    def look(self) -> list[Request]:
        """The requests that came since the last look, oldest first; one stat where there is none. Raises nothing."""
        try:
            changed = os.stat(self.folder).st_mtime_ns
            if changed == self._seen:
                return []
            self._seen = changed
            names = sorted(filter(_NAME.fullmatch, os.listdir(self.folder)))
        except OSError:
            return []
        return [request for name in names if (request := self._take(name)) is not None]

    def answer(self, token: str, values: dict[str, Any]) -> None:
        """Leave the answer, and forget the request. Raises nothing: a command without an answer says so."""
        with contextlib.suppress(OSError):
            atomic_write(self.folder / f"{token}.answer", json.dumps(values).encode())
            os.chmod(self.folder / f"{token}.answer", 0o644)
        with contextlib.suppress(OSError):
            (self.folder / f"{token}.taken").unlink()

    def _take(self, name: str) -> Request | None:
        token = name.removesuffix(".json")
        try:
            os.rename(self.folder / name, self.folder / f"{token}.taken")
            values, user = self._read(self.folder / f"{token}.taken")
            return Request(token, values, f"{user}@{str(values.get('host', '?'))[:64]}")
        except FileNotFoundError:
            return None  # withdrawn just now
        except UserError as error:
            return Request(token, {}, refusal=str(error))
        except (OSError, ValueError, RecursionError) as error:
            return Request(token, {}, refusal=f"the request {name} cannot be read ({' '.join(str(error).split())})")

    def _read(self, path: Path) -> tuple[dict[str, Any], str]:
        """The content of a request, and its owner's name. Raises UserError for one of another user, a link, or one that
        is too large."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"the request is a link, or cannot be read ({error.strerror}); it is not read") from error
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
            os.close(descriptor)
            raise UserError("the request is no file of its own but a link, a pipe or a directory; it is not read")
        with os.fdopen(descriptor, "rb") as file:
            if not may_change(self._directory, facts.st_uid):
                raise UserError(f"{_user(facts.st_uid)} does not own {self._directory}, so cannot change this run")
            if facts.st_size > MOST_BYTES:
                raise UserError(f"the request has {facts.st_size:,} bytes; more than {MOST_BYTES:,} are not read")
            if time.time() - facts.st_mtime > _STALE:
                raise UserError("the request is old, and nobody waits for its answer; say it again")
            values = json.loads(file.read(MOST_BYTES + 1))
        if not isinstance(values, dict):
            raise UserError("the request is no JSON object")
        return values, _user(facts.st_uid)


def may_change(directory: Path, uid: int) -> bool:
    """Whether a user may change the run: the owner of its directory, or one of its group where the group may write."""
    facts = os.stat(directory)
    if uid == facts.st_uid:
        return True
    if not facts.st_mode & stat.S_IWGRP:
        return False
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return False
    return facts.st_gid in os.getgrouplist(user.pw_name, user.pw_gid)


def ask(
    directory: Path, values: dict[str, Any], *, wait: float = WAIT, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:  # fmt: skip
    """File a request and return rank zero's answer. directory: RUN/ado.

    Raises UserError where it is not answered in `wait` seconds; it is then withdrawn, or the sentence says that rank
    zero has taken it. say: told what happens when that takes longer than a moment.
    """
    path = file_request(directory, values)
    reply = path.with_suffix(".answer")
    try:
        answer = _wait(reply, wait, say)
    except KeyboardInterrupt:
        if not _withdraw(path):
            say("rank zero has taken the request already; `ado-megatron set RUN --list` shows whether it holds")
        raise
    if answer is None and not _withdraw(path):
        answer = _wait(reply, wait, say)  # taken at the last moment
        if answer is None:
            raise UserError(
                f"rank zero has taken the request and then said nothing for {wait:g} s; it may have ended: "
                "`ado-megatron set RUN --list` shows whether the change was made"
            )
    if answer is None:
        raise UserError(
            f"rank zero of the run in {directory.parent} did not answer in {wait:g} s, so the request is withdrawn and "
            "nothing was changed; is the run going on, and does it make a step now and then?"
        )
    return answer


def file_request(directory: Path, values: dict[str, Any]) -> Path:
    """Write a request for rank zero, and return its path. Raises UserError for a user who may not change the run."""
    if not may_change(directory, os.geteuid()):
        raise UserError(f"{_user(os.geteuid())} does not own {directory}, so cannot change this run")
    path = directory / FOLDER / f"{time.time_ns():016x}{secrets.token_hex(4)}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, json.dumps(values).encode())
    except OSError as error:
        raise UserError(f"{path.parent} cannot be written ({error.strerror}); ask its owner") from error
    return path


def _wait(path: Path, wait: float, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The answer, once it is there; None after `wait` seconds."""
    deadline, pause, nudged = time.monotonic() + wait, 0.02, time.monotonic()
    while True:
        try:
            answer = json.loads(path.read_bytes())
            path.unlink(missing_ok=True)
            return answer
        except FileNotFoundError:
            pass
        now = time.monotonic()
        if now >= deadline:
            return None
        if now - nudged > _NUDGE:  # two requests in one tick of the file system's clock look like one
            nudged = now
            with contextlib.suppress(OSError):
                os.utime(path.parent)
            say(f"waiting for rank zero, {deadline - now:.0f} s more")
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def _withdraw(path: Path) -> bool:
    """Take the request back; False where rank zero has it."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
