"""A signal ends the run after a step that all ranks have done, with a checkpoint; a second one ends it at once.

The signal may reach one rank or all. About once a second (after each step if steps take longer) the ranks
add up who was asked, so that all of them leave after the same step: one sum of 16 bytes over the world. A thread looks
at the signals themselves: the main thread may stand in a collective, where Python runs no handler.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

import torch

from ado_megatron.mixer import World

ASK_EVERY = 1.0  # seconds between two sums, where a step is shorter
TOGETHER = 1.0  # seconds in which signals count as one: a job's end may reach a rank directly and through its launcher
_MOST_STEPS = 1 << 20  # between two sums


class ExitSignal:
    """The signals of one rank from `start` to `stop`, and the agreement of all ranks about them.

    numbers: signals that end the run. end: called with the number for a second signal; the default ends the process
    with 128 + the number.
    """

    def __init__(
        self, world: World, numbers: Sequence[int], *, clock: Callable[[], float] = time.monotonic,
        end: Callable[[int], None] = lambda number: os._exit(128 + number),
    ) -> None:  # fmt: skip
        self._world, self._numbers, self._clock, self._end = world, tuple(numbers), clock, end
        self._asked, self._asked_at = 0, 0.0
        self._next, self._interval, self._looked = 0, 1, clock()
        self._pipe: tuple[int, int] | None = None
        self._before: dict[int, object] = {}

    def start(self) -> None:
        """Take the signals over. In the main thread; elsewhere (and where one already waits for signals) do nothing."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _leave_it_to_the_thread) for number in self._numbers}
        threading.Thread(target=self._read, args=(self._pipe[0],), name="exit-signal", daemon=True).start()

    def stop(self) -> None:
        """Give the signals back as they were."""
        if self._pipe is None:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(-1)
        os.close(self._pipe[1])  # the thread reads the end of the pipe and closes its side
        self._pipe = None

    def _read(self, descriptor: int) -> None:
        while data := os.read(descriptor, 64):
            for number in data:
                if number in self._numbers:
                    self.ask(number)
        os.close(descriptor)

    def ask(self, number: int) -> None:
        """A signal has come."""
        now = self._clock()
        if not self._asked:
            self._asked, self._asked_at = number, now
        elif now - self._asked_at > TOGETHER:
            self._end(number)

    def due(self, step: int) -> int:
        """The signal with which every rank leaves after this step (0-based), 0 for none. Collective, the same step on
        all ranks."""
        if step < self._next:
            return 0
        now = self._clock()
        seconds = max((now - self._looked) / self._interval, 1e-9)  # of a step; rank zero's counts
        self._looked = now
        wish = min(max(int(ASK_EVERY / seconds), 1), 2 * self._interval, _MOST_STEPS)
        told = torch.tensor([self._asked, wish if self._world.is_zero else 0], dtype=torch.int64)
        if self._world.size == 1:
            number, self._interval = self._asked, wish
        else:
            number, self._interval = self._agree(told)
        self._next = step + self._interval
        return number

    def _agree(self, told: torch.Tensor) -> tuple[int, int]:
        """(a signal that some rank was asked by, rank zero's wish). The sum says that there is one, a gather which.
        """
        total, wish = self._world.all_reduce_sum(told.to(self._world.device)).tolist()
        if total == 0:
            return 0, wish
        return next(number for number in self._world.gather(self._asked) if number), wish


def _leave_it_to_the_thread(number: int, frame: FrameType | None) -> None:
    """What Python calls in the main thread; by then the number is in the pipe."""


def name_of(number: int) -> str:
    """SIGTERM for 15."""
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
