"""How a rank that must end the run tells the others, without a collective: a note in the rendezvous store.

A rank whose proof or state cannot be written posts a sentence and the step after which every rank is to stop. The
others look at the store every few seconds, between two steps. All then stop at the end of the same step, so none is
left waiting in a collective.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable
from typing import Any

LOOK_EVERY = 5.0  # seconds between two looks at the store
_numbers = itertools.count()  # of the notices of this process: a store outlives a mixer, its keys must not


class StopNotice:
    """One rank's view of the store. store: torch.distributed's, or None in a world of one process."""

    def __init__(self, store: Any | None, clock: Callable[[], float] = time.monotonic):
        self._store, self._clock = store, clock
        self._key = f"ado_megatron/stop/{next(_numbers)}"
        self._notice: tuple[int, str] | None = None  # (stop after this step, why)
        self._looked, self._last, self._step_seconds = clock(), clock(), 0.0

    def post(self, step: int, sentence: str) -> None:
        """Ask every rank to stop. The step is far enough ahead that all will have looked before they reach it."""
        if self._notice is not None:
            return
        ahead = 2 + math.ceil(3 * LOOK_EVERY / self._step_seconds) if self._step_seconds > 0 else 2
        self._notice = (step + (ahead if self._store is not None else 0), sentence)
        if self._store is not None:
            if self._store.add(f"{self._key}/posts", 1) == 1:  # of several ranks that post, the first one's counts
                self._store.set(self._key, json.dumps(self._notice))
            self._read(self._store)

    def due(self, step: int) -> str | None:
        """After `step`: the sentence with which every rank ends now, or None."""
        now = self._clock()
        self._step_seconds, self._last = now - self._last, now
        if self._notice is None and self._store is not None and now - self._looked >= LOOK_EVERY:
            self._looked = now
            if self._store.check([self._key]):
                self._read(self._store)
        if self._notice is not None and step >= self._notice[0]:
            return self._notice[1]
        return None

    def _read(self, store: Any) -> None:
        """Take what stands in the store; waits for a rank that is just writing it."""
        step, sentence = json.loads(store.get(self._key))
        self._notice = (int(step), str(sentence))
