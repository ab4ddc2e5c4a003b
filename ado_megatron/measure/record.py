"""One line of a metrics.jsonl whose values are checked when they are asked for.

A file may be damaged, cut, or edited by hand. Whoever reads it asks a record for a count, a number or an array of a
shape, and gets that or a UserError which names file, line and what is wrong; nobody else checks.
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

import numpy as np

from ado_megatron.errors import UserError

MOST = 1 << 48  # of anything counted: a sum over a million lines still fits in 64 bits
LARGEST = 1e30  # of any measured number: its square still fits in a double


class Record(dict[str, Any]):
    """A JSON object with its place in a file."""

    def __init__(self, values: dict[str, Any], path: str | Path, line: int):
        super().__init__(values)
        self.path, self.line = path, line

    def bad(self, what: str) -> UserError:
        """The error that says what is wrong with this line."""
        return UserError(f"line {self.line} of {self.path} is damaged: {what}")

    def value(self, name: str) -> Any:
        """The value under `name`, whatever it is. UserError where there is none."""
        if name not in self:
            raise self.bad(f"it lacks {name}")
        return self[name]

    def integer(self, name: str, low: int = 0, high: int = MOST) -> int:
        """A whole number from low to high."""
        return int(self.array(name, low=low, high=high, whole=True))

    def number(self, name: str, default: float | None = None) -> float:
        """A number; JSON's null is nan. default: for a record that lacks it (None: it must be there)."""
        if default is not None and name not in self:
            return default
        return float(self.array(name))

    def texts(self, name: str, count: int | None = None) -> list[str]:
        """A list of texts, `count` of them (None: any number)."""
        values = self.value(name)
        if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
            raise self.bad(f"{name} is not a list of texts")
        if count is not None and len(values) != count:
            raise self.bad(f"{name} has {len(values)} entries, not {count}")
        return values

    def array(
        self, name: str, *shape: int, low: float = -LARGEST, high: float = LARGEST, whole: bool = False
    ) -> np.ndarray:
        """Numbers of the given shape (nothing: one number), float64 with nan for null; int64 and no null if `whole`."""
        flat = [self.value(name)]
        for size in shape:
            if not all(isinstance(part, list) and len(part) == size for part in flat):
                raise self.bad(f"{name} does not hold {' x '.join(map(str, shape))} numbers")
            flat = [item for part in flat for item in part]
        kinds = {int} if whole else {int, float, type(None)}
        if not set(map(type, flat)) <= kinds:  # a text or a truth value would turn into a number silently
            odd = next(item for item in flat if type(item) not in kinds)
            raise self.bad(f"{name} holds {reprlib.repr(odd)}, which is no {'whole ' if whole else ''}number")
        try:
            array_N = np.array(flat, dtype=np.int64 if whole else np.float64)
        except OverflowError:
            raise self.bad(f"{name} holds a number that is too large") from None
        outside_N = (array_N < low) | (array_N > high)
        if outside_N.any():
            raise self.bad(f"{name} holds {array_N[outside_N][0]:g}, which is outside {low:g} to {high:g}")
        return array_N.reshape(shape)
