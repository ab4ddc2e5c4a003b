"""Hook points: what a host must look like for our hooks to fit, checked before anything runs."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Sequence
from typing import Any

from ado_megatron.errors import UserError


@dataclasses.dataclass(frozen=True)
class HookPoint:
    """A function of the host: its module, its dotted name there, and the names its parameters must begin with."""

    module: str
    name: str
    parameters: tuple[str, ...]

    def problem(self) -> str | None:
        """What is wrong with it in the host that is importable now, or None."""
        try:
            found: Any = importlib.import_module(self.module)
        except ImportError as error:
            return f"{self.module} cannot be imported ({error})"
        for part in self.name.split("."):
            if not hasattr(found, part):
                return f"{self.module}.{self.name} does not exist"
            found = getattr(found, part)
        if not callable(found):
            return f"{self.module}.{self.name} is not a function"
        names = tuple(inspect.signature(found).parameters)
        if names[: len(self.parameters)] != self.parameters:
            wanted, actual = ", ".join(self.parameters), ", ".join(names) or "nothing"
            return f"{self.module}.{self.name} takes ({actual}), expected to begin with ({wanted})"
        return None


def check(points: Sequence[HookPoint], checkout: str) -> None:
    """Raise UserError with every hook point that is missing or looks otherwise."""
    problems = [text for point in points if (text := point.problem()) is not None]
    if problems:
        raise UserError(
            f"this version of the host at {checkout} does not fit: {'; '.join(problems)} ({len(points)} hook points "
            "were tried); use a version named in launch/README.md, or --ado-off to run it without ado"
        )


def script_globals(function: Any) -> dict[str, Any]:
    """The global names of the script that defined `function`, through partials and wrappers."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            return function.__globals__
