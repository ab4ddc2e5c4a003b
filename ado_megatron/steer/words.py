"""What the operator writes, as plain values: `code=.3 wiki=+10% --floor .01,maths=.05 --max-epochs wiki=4`.

Nothing of the run is known here; what its domains are, and what can be granted, is for check.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from ado_megatron.errors import UserError

EVERY = ""  # stands for all domains


def shares(words: Iterable[str], where: str) -> dict[str, float | str]:
    """`code=.3` → 0.3, `wiki=30%` → 0.3, `wiki=+10%` → "+0.1", which is a part of the share that it has."""
    values: dict[str, float | str] = {}
    for word in words:
        name, text = _pair(word, where, "code=.3, wiki=30% or wiki=+10%")
        share = _number(text, where, word)
        if name in values:
            raise UserError(f"{where} {word}: domain {name!r} stands there twice; give it one share")
        if text[0] in "+-":
            if not text.endswith("%"):
                raise UserError(f"{where} {word}: a change of a share is in per cent of it, such as {name}=+10%")
            if share <= -1:
                raise UserError(f"{where} {word}: a share cannot fall by more than 100%; {name}=0 takes it out")
            values[name] = f"{share:+}"
        elif 0 <= share <= 1:
            values[name] = share
        else:
            raise UserError(f"{where} {word}: a share is from 0 to 1, or from 0% to 100%")
    return values


def weights(words: Iterable[str], where: str) -> dict[str, float]:
    """`code=4 web=6`: weights of any sum."""
    values: dict[str, float] = {}
    for word in filter(None, (word.strip() for word in words)):
        name, text = _pair(word, where, "code=.4,web=.6")
        values[name] = weight = _number(text, where, word)
        if weight < 0:
            raise UserError(f"{where} {word}: a weight is a number from 0 up")
    return _some(values, where)


def bounds(text: str, where: str) -> dict[str, float | None]:
    """`.01`, `maths=.05` or both with a comma; `none` in the place of a number takes a bound away."""
    wrong = "a share is from 0 to 1, or from 0% to 100%"
    return _limits(text, where, ".01 or maths=.05", lambda share: 0 <= share <= 1, wrong)


def epochs(text: str, where: str) -> dict[str, float | None]:
    """`4`, `wiki=2` or both with a comma; `none` in the place of a number is no cap."""
    return _limits(text, where, "4 or wiki=2", lambda most: most > 0, "a cap is a positive number of epochs, or none")


def _limits(
    text: str, where: str, example: str, allowed: Callable[[float], bool], wrong: str
) -> dict[str, float | None]:  # fmt: skip
    """A number for all (EVERY) or by domain; `none` is None. wrong: what is said of a number that is not allowed."""
    values: dict[str, float | None] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, number = _pair(word, where, example) if "=" in word else (EVERY, word)
        values[name] = value = None if number == "none" else _number(number, where, word)
        if value is not None and not allowed(value):
            raise UserError(f"{where} {word}: {wrong}")
    return _some(values, where)


def expanded(values: dict[str, Any], names_K: Iterable[str]) -> dict[str, Any]:
    """With what is said of all domains said of each; what is said of one by name counts more."""
    if EVERY not in values:
        return dict(values)
    named = {name: value for name, value in values.items() if name != EVERY}
    return dict.fromkeys(names_K, values[EVERY]) | named


def _pair(word: str, where: str, form: str) -> tuple[str, str]:
    name, _, text = word.rpartition("=")
    if not name.strip() or not text.strip():
        raise UserError(f"{where} {word}: write {form}")
    return name.strip(), text.strip()


def _number(text: str, where: str, word: str) -> float:
    per_cent = text.endswith("%")
    try:
        value = float(text[:-1] if per_cent else text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where} {word}: {text!r} is no number")
    return value / 100 if per_cent else value


def _some(values: dict[str, Any], where: str) -> dict[str, Any]:
    if not values:
        raise UserError(f"{where}: nothing is given; write a number, or domain=number")
    return values
