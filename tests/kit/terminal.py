"""A command under a pseudo-terminal: keys go in, and what it draws is looked at as text."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]")


class Terminal:
    """`ado-megatron` with these arguments, on a terminal of so many columns and rows."""

    def __init__(self, *argv: str, columns: int = 100, rows: int = 30):
        self._master, self.slave = pty.openpty()
        self.resize(columns, rows)
        self.settings = termios.tcgetattr(self.slave)
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ado_megatron.cli", *argv], stdin=self.slave, stdout=self.slave, stderr=self.slave,
            env=environment, start_new_session=True,
        )  # fmt: skip
        self.raw = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def _read(self, seconds: float) -> None:
        while select.select([self._master], [], [], seconds)[0]:
            self.raw += os.read(self._master, 1 << 16).decode(errors="replace")
            seconds = 0.0

    def screen(self) -> str:
        """What the last drawing of the whole page put there: what follows the last jump home."""
        drawings = [_ESCAPES.sub("", part) for part in self.raw.split("\x1b[H")]
        return next((text for text in reversed(drawings) if text.strip()), "")

    def wait(self, *words: str, absent: str | None = None, seconds: float = 60.0) -> str:
        """The first page that holds all words and not the absent one; AssertionError with the last one after a time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._read(0.1)
            page = self.screen()
            if all(word in page for word in words) and (absent is None or absent not in page):
                return page
            if self.process.poll() is not None:
                break
        raise AssertionError(f"no page with {words} and without {absent!r}; the last one:\n{self.screen()}")

    def end(self, keys: str = "q") -> int:
        """Press these keys and return the exit code."""
        self.press(keys)
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read(0.1)
        return self.process.wait(timeout=1)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self.slave)
