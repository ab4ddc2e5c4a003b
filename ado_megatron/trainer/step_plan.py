"""What each step is: its batch, its first sample, its learning rate. Pure arithmetic, so that a resume needs no state.

A step consumes consecutive global sample indices. Under a ramp its size follows Megatron's rule: START, then INCREMENT
more after every SAMPLES / ((global - START) / INCREMENT) consumed samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ado_megatron.trainer.options import TrainerOptions


class StepPlan:
    """Batch sizes, consumed samples and learning rates of the steps of a run."""

    def __init__(self, options: TrainerOptions) -> None:
        self.options = options
        ramp = options.rampup_batch_size
        # The steps of the ramp by size: (first step, first sample, size). The last entry goes on for ever.
        self._pieces = [(0, 0, options.global_batch)]
        if ramp is not None and ramp[0] < options.global_batch:
            start, increment, samples = ramp
            self._pieces = _ramp_pieces(start, increment, options.global_batch, samples)

    def _piece(self, step: int) -> tuple[int, int, int]:
        return max(piece for piece in self._pieces if piece[0] <= step)

    def batch_size(self, step: int) -> int:
        """Samples of training step `step` (0-based)."""
        return self._piece(step)[2]

    def consumed(self, step: int) -> int:
        """Samples consumed before training step `step`."""
        first_step, first_sample, size = self._piece(step)
        return first_sample + (step - first_step) * size

    @property
    def total_samples(self) -> int:
        """Samples of all steps."""
        return self.consumed(self.options.steps)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then constant, linear or cosine decay to min_lr at the last step."""
        o = self.options
        if step < o.lr_warmup_steps:
            return o.lr * (step + 1) / o.lr_warmup_steps
        if o.lr_decay == "constant":
            return o.lr
        low = o.lr / 10 if o.min_lr is None else o.min_lr
        done = min(1.0, (step - o.lr_warmup_steps) / max(1, o.steps - o.lr_warmup_steps))
        left = 1.0 - done if o.lr_decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return low + (o.lr - low) * left

    def micro_batches(self, first_step: int, dp: int, dp_rank: int) -> Iterator[list[int]]:
        """Global sample indices of each micro-batch of data-parallel rank `dp_rank`, from `first_step` to the end of
        the run.

        As in Megatron, micro-batches of all ranks lie next to each other: rank r reads the r-th part of every
        micro_batch · dp samples.
        """
        micro = self.options.micro_batch
        for step in range(first_step, self.options.steps):
            start = self.consumed(step)
            for first in range(start + dp_rank * micro, start + self.batch_size(step), micro * dp):
                yield list(range(first, first + micro))


def _ramp_pieces(start: int, increment: int, final: int, samples: int) -> list[tuple[int, int, int]]:
    """(first step, first sample, samples of a step) of each size, by Megatron's rule (num_microbatches_calculator)."""
    per_increment = samples / ((final - start) // increment)
    step, consumed, pieces, size = 0, 0, [], 0
    while size < final:
        now = final if consumed > samples else min(final, start + int(consumed / per_increment) * increment)
        if now != size:
            size = now
            pieces.append((step, consumed, size))
        step, consumed = step + 1, consumed + size
    return pieces
