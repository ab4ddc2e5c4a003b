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
from ado_megatron.hosts.takeover import layout_facts

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


@dataclasses.dataclass(frozen=True)
class Host:
    """What the hooks that are alike must know of a host. training, checkpointing: the modules of its training loop and
    of its checkpoints."""

    training: str
    checkpointing: str
    get_args: Callable[[], Any]
    exclusions: Callable[[Any], list[tuple[bool, str]]]  # arguments → (it is so, the sentence) of what is not served
    facts: Callable[[], Any]
    loss_func: Callable[[Any, Any], Any]  # session, the script's loss_func → the hooked one
    write: Callable[[dict[str, float], int], None]  # scalars, iteration → TensorBoard and W&B


def common(session: Any, host: Host) -> dict[str, Wrapper]:
    """The wrappers of the functions that have the same part, under the same name, in both hosts."""
    alike = {
        "build_train_valid_test_data_loaders": loaders, "train": train, "training_log": training_log,
        "evaluate_and_print_results": evaluate_and_print_results, "save_checkpoint": save_checkpoint,
        "pretrain": pretrain,
    }  # fmt: skip
    wrappers = {f"{host.training}:{name}": functools.partial(hook, session, host) for name, hook in alike.items()}
    wrappers[f"{host.checkpointing}:check_checkpoint_args"] = functools.partial(check_checkpoint_args, session)
    return wrappers | {LOSS: functools.partial(host.loss_func, session)}


def loaders(session: Any, host: Host, stock: Any) -> Any:
    """Before data is built, refuse what cannot be served and see what is resumed; after it, make the mixer."""

    def build_train_valid_test_data_loaders(provider):
        for excluded, sentence in host.exclusions(host.get_args()):
            if excluded:
                session.refuse(sentence)
        session.resume(host.facts())
        built = stock(provider)
        session.open(host.facts())
        return built

    return build_train_valid_test_data_loaders


def train(session: Any, host: Host, stock: Any) -> Any:
    """Here the script is known: its loss_func is hooked."""

    def train(forward_step_func, *args, **kwargs):
        if session.mixer is not None:
            hook_script(forward_step_func, functools.partial(host.loss_func, session))
        return stock(forward_step_func, *args, **kwargs)

    return train


def training_log(session: Any, host: Host, stock: Any) -> Any:
    """The weights, after the host's own line and scalars."""

    def training_log(loss_dict, total_loss_dict, learning_rate, iteration, *args, **kwargs):
        result = stock(loss_dict, total_loss_dict, learning_rate, iteration, *args, **kwargs)
        settings = host.get_args()
        if session.mixer is not None and iteration % settings.log_interval == 0:
            session.log_line(settings.consumed_train_samples)
            weights = session.weights(settings.consumed_train_samples)
            host.write({f"ado/weight/{name}": weight for name, weight in weights.items()}, iteration)
        return result

    return training_log


def evaluate_and_print_results(session: Any, host: Host, stock: Any) -> Any:
    """The losses by domain, after the host's own line and scalars. A run may evaluate without training first."""

    def evaluate_and_print_results(prefix, forward_step_func, data_iterator, model, iteration, *args, **kwargs):
        if session.mixer is not None:
            hook_script(forward_step_func, functools.partial(host.loss_func, session))
        result = stock(prefix, forward_step_func, data_iterator, model, iteration, *args, **kwargs)
        scalars = session.evaluated(iteration)
        if scalars and kwargs.get("write_to_tensorboard", True):
            host.write(scalars, iteration)
        return result

    return evaluate_and_print_results


def save_checkpoint(session: Any, host: Host, stock: Any) -> Any:
    """The sidecar before the host's checkpoint, so that a whole checkpoint always has one."""

    def save_checkpoint(iteration, *args, **kwargs):
        settings = host.get_args()
        session.save(settings.save, iteration, settings.consumed_train_samples)
        return stock(iteration, *args, **kwargs)

    return save_checkpoint


def check_checkpoint_args(session: Any, stock: Any) -> Any:
    """Overhears the arguments with which the loaded checkpoint was trained."""

    def check_checkpoint_args(checkpoint_args, *args, **kwargs):
        session.saved_layout = layout_facts(checkpoint_args)
        return stock(checkpoint_args, *args, **kwargs)

    return check_checkpoint_args


def pretrain(session: Any, host: Host, stock: Any) -> Any:
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
