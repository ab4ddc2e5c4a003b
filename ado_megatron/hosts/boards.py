"""Our weights and losses in the framework's TensorBoard and W&B, which never stop the training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from ado_megatron.files import BestEffort

Write = Callable[[dict[str, float], int], None]  # (scalars by name, step)


class Boards:
    """Writes scalars to boards. One that raises is told once and tried again after ever longer pauses.

    What a board lacks stands in metrics.jsonl, so nothing is kept for it.
    """

    def __init__(self) -> None:
        self._efforts: dict[str, BestEffort] = {}

    def write(self, boards: Mapping[str, Write], scalars: dict[str, float], step: int) -> None:
        """boards: by name, those that this rank has (none on most)."""
        for name, write in boards.items():
            # whatever a client of somebody else's service may raise
            effort = self._efforts.setdefault(name, BestEffort(f"weights and losses for {name}", errors=(Exception,)))
            effort.attempt(functools.partial(write, scalars, step))
