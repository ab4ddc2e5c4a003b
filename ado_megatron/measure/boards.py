"""Our scalars in TensorBoard and W&B, the framework's or those of `pretrain`, which never stop the training.

Their names are the table of board_names.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from ado_megatron.files import BestEffort

Write = Callable[[dict[str, float], int], None]  # (scalars by name, step)


class Boards:
    """Writes scalars to boards. One that raises is told once and tried again after ever longer pauses.

    What a board lacks stands in metrics.jsonl, so nothing is kept for it. A name has one value a step, the first one:
    the frameworks evaluate twice after the last step where that is an evaluation step, TensorBoard would keep both
    points and W&B the last.
    """

    def __init__(self) -> None:
        self._efforts: dict[str, BestEffort] = {}
        self._last: dict[str, int] = {}  # the newest step of each name

    def write(self, boards: Mapping[str, Write], scalars: Mapping[str, float], step: int) -> None:
        """boards: by name, those that this rank has (none on most)."""
        new = {name: value for name, value in scalars.items() if self._last.get(name) != step}
        if not boards or not new:
            return
        self._last.update(dict.fromkeys(new, step))
        for name, write in boards.items():
            self.attempt(name, functools.partial(write, new, step))

    def attempt(self, name: str, action: Callable[[], object], *, now: bool = False) -> bool:
        """Something else with the board of that name (open it, close it), which may fail as a write may."""
        # whatever a client of somebody else's service may raise
        effort = self._efforts.setdefault(name, BestEffort(f"weights and losses for {name}", errors=(Exception,)))
        return effort.attempt(action, now=now)
