"""Hook points: what a host must look like for our hooks to fit, checked before anything runs."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ado_megatron.errors import UserError

Wrapper = Callable[[Any], Any]  # takes a function of the host, returns the hooked one
LOSS = "script:loss_func"  # lives in the training script, wherever that is


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


def install(wrappers: Mapping[str, Wrapper]) -> None:
    """Put the hooked functions in the place of the host's, in memory. Names as in a host's `wrappers`."""
    for key, wrap in wrappers.items():
        if key == LOSS:
            continue  # by `hook_script`, when the script is known
        module, name = key.split(":")
        owner: Any = importlib.import_module(module)
        *path, last = name.split(".")
        owner = functools.reduce(getattr, path, owner)
        stock = getattr(owner, last)
        hooked = wrap(stock)
        setattr(owner, last, hooked)
        package = sys.modules.get(module.rpartition(".")[0])
        if not path and getattr(package, last, None) is stock:  # the package hands it out, too
            setattr(package, last, hooked)


def hook_script(forward_step: Any, wrap: Wrapper) -> None:
    """Hook `loss_func` in the script of `forward_step`, unless that is done. Raises UserError without one."""
    names = script_globals(forward_step)
    stock = names.get("loss_func")
    if stock is None:
        raise UserError("the script has no function loss_func beside its forward_step, where the losses are measured")
    if not getattr(stock, "ado_measures", False):
        names["loss_func"] = wrap(stock)


# ---------------------------------------------------------------- hooks that are alike in both hosts


def save_checkpoint(session: Any, get_args: Callable[[], Any], stock: Any) -> Any:
    """The sidecar before the host's checkpoint, so that a whole checkpoint always has one."""

    def save_checkpoint(iteration, *args, **kwargs):
        settings = get_args()
        session.save(settings.save, iteration, settings.consumed_train_samples)
        return stock(iteration, *args, **kwargs)

    return save_checkpoint


def pretrain(session: Any, stock: Any) -> Any:
    """Close the session when the host's run ends, in whatever way all ranks end alike."""

    def pretrain(*args, **kwargs):
        try:
            result = stock(*args, **kwargs)
        except SystemExit as leaving:  # how the training loop ends early
            if not leaving.code:
                session.close()
            raise
        session.close()
        return result

    return pretrain
