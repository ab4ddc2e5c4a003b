"""What a person sees of the run: progress bar, metrics.jsonl, TensorBoard. Rank zero only.

Legend: K domains.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ado_megatron.mixer.mixer import Mixer
from ado_megatron.trainer.options import TrainerOptions


class Progress:
    """Shows and records the run from `first_step` on. Close it at the end."""

    def __init__(self, options: TrainerOptions, mixer: Mixer, first_step: int):
        self._mixer, self._names_K = mixer, mixer.domains.names_K
        self._bar = tqdm(
            total=options.steps, initial=first_step, unit="step", desc="train", file=sys.stderr, dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10.0, disable=not options.progress,
        )  # fmt: skip
        self._board = _board(Path(options.run_dir) / "tensorboard", first_step) if options.tensorboard else None
        self._since = (time.monotonic(), None)

    def say(self, text: str) -> None:
        """A line of the log that does not break the bar."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def advance(self) -> None:
        self._bar.update()

    def step(self, done: int, consumed: int, loss: float, lr: float, grad_norm: float) -> None:
        """Report after `done` steps; called once a logging interval, so that the device is asked for the loss only
        then."""
        now, (then, before) = time.monotonic(), self._since
        rate = (consumed - before) / max(now - then, 1e-9) if before is not None else float("nan")
        self._since = (now, consumed)
        self._mixer.rank_zero.recorder.metrics.write(
            "progress", done, loss=loss, lr=lr, grad_norm=grad_norm, samples_per_second=rate
        )
        weights_K = np.asarray(self._mixer.weights_K(consumed))
        largest = ", ".join(f"{self._names_K[k]} {weights_K[k]:.0%}" for k in np.argsort(-weights_K, kind="stable")[:3])
        self._bar.set_postfix_str(f"loss {loss:.3f} | {largest}", refresh=False)
        if self._board is not None:
            self._board.add_scalar("train/loss", loss, done)
            self._board.add_scalar("train/lr", lr, done)
            self._board.add_scalar("train/grad_norm", grad_norm, done)
            for name, weight in zip(self._names_K, weights_K, strict=True):
                self._board.add_scalar(f"weight/{name}", float(weight), done)

    def validation(self, done: int, loss_K: np.ndarray) -> None:
        """Mean token loss of each domain (nan: no samples)."""
        self._mixer.rank_zero.recorder.metrics.write("validation", done, loss_K=loss_K)
        if self._board is not None:
            for name, loss in zip(self._names_K, loss_K, strict=True):
                if np.isfinite(loss):
                    self._board.add_scalar(f"validation/{name}", float(loss), done)

    def close(self) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()


def _board(folder: Path, first_step: int):
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first_step)
