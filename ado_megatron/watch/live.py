"""The live page: keys are read, the page is drawn, and the terminal is left as it was found."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ado_megatron.errors import UserError
from ado_megatron.watch.page import Line, View, page
from ado_megatron.watch.preview import Preview
from ado_megatron.watch.state import Followed, State

_SEQUENCES = {
    b"\x1b[A": "up", b"\x1b[B": "down", b"\x1b[5~": "pgup", b"\x1b[6~": "pgdn", b"\x1b[H": "home", b"\x1b": "escape",
    b"\r": "enter", b"\n": "enter", b"\x7f": "backspace", b"\x08": "backspace",
}  # fmt: skip


def live(followed: Followed, view: View, every: float, console: Console, fit: bool = True) -> None:
    """Show the run until q. Looks at its file every `every` seconds. fit: preview the next refit."""
    preview, state, due, problem = Preview(), None, 0.0, None
    try:
        with _keys() as keys, Live(console=console, screen=True, auto_refresh=False) as screen:
            while True:
                if time.monotonic() >= due:
                    due = time.monotonic() + every
                    state, problem = _look(followed, preview if fit else None, state)
                width, height = console.size
                lines = page(state, view, width, height, problem) if state else _waiting(followed, problem)
                text = Text("\n").join(Text(line.text, line.style, no_wrap=True) for line in lines)
                screen.update(text, refresh=True)
                for key in keys(max(due - time.monotonic(), 0.0)):
                    if key in ("q", "\x03") and not view.typing:
                        return
                    view = view.after(key, max(height - 12, 1))
    finally:
        preview.cancel()


def _look(followed: Followed, preview: Preview | None, state: State | None) -> tuple[State | None, str | None]:
    """The state after another look, and what is wrong; the last one where nothing can be read now."""
    try:
        new = followed.look()
        if not followed.measured:
            return None, followed.problem
        run = followed.run() if new or state is None else state.run
        if preview is not None:
            preview.look(run, followed.steering(run))
        next_K = None if preview is None else preview.weights_K
        if new or state is None or state.next_K is not next_K:
            state = followed.state(run, next_K)
    except UserError as error:
        return state, str(error)
    return state, followed.problem


def _waiting(followed: Followed, problem: str | None) -> list[Line]:
    return [Line(f"{followed.path}: nothing is measured yet", "bold"), Line(problem or "", "red")]


@contextlib.contextmanager
def _keys() -> Iterator:
    """A function that waits so many seconds at most and returns the keys pressed; none where stdin is no terminal."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave the screen before ending
    descriptor = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    settings = None if descriptor is None else termios.tcgetattr(descriptor)

    def wait(seconds: float) -> list[str]:
        if descriptor is None:
            time.sleep(seconds)
            return []
        if not select.select([descriptor], [], [], seconds)[0]:
            return []
        data = os.read(descriptor, 256)
        return ["q"] if not data else keys_of(data)

    try:
        if descriptor is not None:
            tty.setcbreak(descriptor)
        yield wait
    finally:
        if descriptor is not None and settings is not None:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, settings)
        signal.signal(signal.SIGTERM, before)


def keys_of(data: bytes) -> list[str]:
    """The keys that a terminal sent: names of special ones, characters of others."""
    keys: list[str] = []
    while data:
        known = next((seq for seq in sorted(_SEQUENCES, key=len, reverse=True) if data.startswith(seq)), None)
        if known is None:
            text = data.decode(errors="ignore")
            if text[:1].isprintable() or text[:1] == "\x03":
                keys.append(text[:1])
            data = data[max(len(text[:1].encode()), 1) :]
        else:
            keys.append(_SEQUENCES[known])
            data = data[len(known) :]
    return [key for key in keys if key]
