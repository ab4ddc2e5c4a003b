"""What a person sees of the run: lines, progress bar, metrics.jsonl, boards (boards.py). Rank zero only.

None of it may stop a run: where it cannot be written (a closed pipe, a full disk, a directory that is gone), this is
said once and the run goes on.

Legend: K domains.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from ado_megatron.config import AdoConfig
from ado_megatron.measure.board_names import by_domain, of_step
from ado_megatron.mixer import Mixer
from ado_megatron.report.board_feed import BoardFeed
from ado_megatron.trainer.boards import RunBoards
from ado_megatron.trainer.options import TrainerOptions


class Progress:
    """Shows and records the run from `first_step` on. Close it at the end."""

    def __init__(self, options: TrainerOptions, config: AdoConfig, mixer: Mixer, first_step: int) -> None:
        assert mixer.rank_zero is not None, "only rank zero shows progress"
        self._mixer, self._names_K, self._metrics = mixer, mixer.domains.names_K, mixer.rank_zero.recorder.metrics
        self._bar = tqdm(
            total=options.steps, initial=first_step, unit="step", desc="train", file=_Terminal(sys.stderr),
            dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 10.0, disable=not options.progress,
        )  # fmt: skip
        self._boards, self._feed = RunBoards(options, config, first_step), BoardFeed(mixer.directory)
        self._since: tuple[float, int | None] = (time.monotonic(), None)

    @staticmethod
    def print(text: str) -> None:
        """A line on stdout; when that is closed, nothing."""
        _Terminal(sys.stdout).write(text + "\n")

    def say(self, text: str) -> None:
        """A line of the log that does not break the bar."""
        with tqdm.external_write_mode(file=sys.stdout):
            self.print(text)

    def advance(self) -> None:
        """One step more."""
        self._bar.update()

    def step(self, done: int, consumed: int, loss: float, lr: float, grad_norm: float) -> None:
        """Report after `done` steps; called once a logging interval, so that the device is asked for the loss only
        then. loss: of this step, in nats a token. grad_norm: before clipping."""
        now, (then, before) = time.monotonic(), self._since
        rate = (consumed - before) / max(now - then, 1e-9) if before is not None else float("nan")
        self._since = (now, consumed)
        self._metrics.write("progress", done, loss=loss, lr=lr, grad_norm=grad_norm, samples_per_second=rate)
        weights_K = np.asarray(self._mixer.weights_K(consumed))
        largest = ", ".join(f"{self._names_K[k]} {weights_K[k]:.0%}" for k in np.argsort(-weights_K, kind="stable")[:3])
        self._bar.set_postfix_str(f"loss {loss:.3f} | {largest}", refresh=False)
        scalars = of_step(loss=loss, lr=lr, grad_norm=grad_norm)
        scalars |= by_domain("weight", dict(zip(self._names_K, weights_K, strict=True)))
        if self._boards.any:
            scalars |= self._feed.look()
        self._boards.write(scalars, done)

    def validation(self, done: int, loss_K: np.ndarray) -> None:
        """Mean token loss of each domain in nats (nan: no samples)."""
        self._metrics.write("validation", done, loss_K=loss_K)
        pairs = zip(self._names_K, loss_K, strict=True)
        self._boards.write(by_domain("validation", {name: loss for name, loss in pairs if np.isfinite(loss)}), done)

    def close(self) -> None:
        """Close the bar and the boards."""
        self._bar.close()
        self._boards.close()


class _Terminal:
    """A stream that people look at. When its reader is gone it is pointed at nothing, for us and for all libraries."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        """Write and flush."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def flush(self) -> None:
        """Flush."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # no descriptor: a stream that was closed or replaced
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)
