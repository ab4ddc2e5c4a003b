"""Hook points: the functions of a framework that are hooked, what they must look like, and what they become.

A framework's module lists its `HookPoint`s. All are checked before anything runs; those with a `wrap` are then replaced
in memory. The hooks that do the same in both frameworks, on functions of the same name, are here (`alike`).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ado_megatron.blend.indexed_files import reads_elsewhere
from ado_megatron.errors import UserError
from ado_megatron.hosts import console
from ado_megatron.hosts.run_facts import RunFacts
from ado_megatron.hosts.session import Session
from ado_megatron.hosts.takeover import layout_facts
from ado_megatron.measure.board_names import by_domain
from ado_megatron.measure.boards import Write
from ado_megatron.measure.prometheus import text_file

Wrapper = Callable[[Any], Any]  # takes a function of the framework, returns the hooked one
TOKEN = "ado_token"  # of the framework's arguments in a checkpoint: the sidecar that was written with it
LOSS = "script:loss_func"  # lives in the training script, wherever that is


@dataclasses.dataclass(frozen=True)
class Framework:
    """What the hooks must know of a framework.

    exclusions: arguments → (it is so, the sentence) of what is not served. loss_func: (session, the script's loss_func)
    → the hooked one. boards: this rank's TensorBoard and W&B by name. build: what the framework's own hooks hand from
    one to another while its datasets are built.
    """

    name: str
    get_args: Callable[[], Any]
    exclusions: Callable[[Any], list[tuple[bool, str]]]
    facts: Callable[[], RunFacts]
    loss_func: Callable[[Session, Any], Any]
    boards: Callable[[], dict[str, Write]]
    build: Any = None


Wrap = Callable[[Session, Framework, Any], Any]  # (…, the framework's function) → the hooked one


@dataclasses.dataclass(frozen=True)
class HookPoint:
    """A function of the framework: its module, its dotted name there, the names its parameters must begin with, and
    what makes the hooked function of it (None: it is only called by ours)."""

    module: str
    name: str
    parameters: tuple[str, ...]
    wrap: Wrap | None = None

    def problem(self) -> str | None:
        """What is wrong with it in the framework that is importable now, or None."""
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
            f"this version of the framework at {checkout} does not fit: {'; '.join(problems)} ({len(points)} hook "
            "points were tried); use a version named in launch/README.md, or --ado-off to run it without ado"
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


def wrappers(points: Sequence[HookPoint], session: Session, framework: Framework) -> dict[str, Wrapper]:
    """What each hooked function becomes: "module:name" → (the framework's function → the hooked one)."""
    hooked = {
        f"{point.module}:{point.name}": functools.partial(point.wrap, session, framework)
        for point in points
        if point.wrap is not None
    }
    return hooked | {LOSS: functools.partial(framework.loss_func, session)}


def install(wrappers: Mapping[str, Wrapper]) -> None:
    """Put the hooked functions in the place of the framework's, in memory. Names as `wrappers` returns them."""
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


def measuring(loss_func: Any) -> Any:
    """A hooked loss_func, marked so that it is not hooked once more."""
    loss_func.ado_measures = True
    return loss_func


def hook_script(forward_step: Any, wrap: Wrapper) -> None:
    """Hook `loss_func` in the script of `forward_step`, unless that is done. Raises UserError without one."""
    names = script_globals(forward_step)
    stock = names.get("loss_func")
    if stock is None:
        raise UserError("the script has no function loss_func beside its forward_step, where the losses are measured")
    if not getattr(stock, "ado_measures", False):
        names["loss_func"] = wrap(stock)


# ---------------------------------------------------------------- hooks that are alike in both frameworks


def alike(training: str, checkpointing: str) -> tuple[HookPoint, ...]:
    """The hook points that have the same part, under the same name, in the modules of both frameworks' training loop
    and checkpoints."""
    evaluate = ("prefix", "forward_step_func", "data_iterator", "model", "iteration")
    log = ("loss_dict", "total_loss_dict", "learning_rate", "iteration")
    provider = ("build_train_valid_test_datasets_provider",)
    return (
        HookPoint(training, "pretrain", (), pretrain),
        HookPoint(training, "build_train_valid_test_data_loaders", provider, loaders),
        HookPoint(training, "train", ("forward_step_func", "model", "optimizer", "opt_param_scheduler"), train),
        HookPoint(training, "training_log", log, training_log),
        HookPoint(training, "evaluate_and_print_results", evaluate, evaluate_and_print_results),
        HookPoint(training, "save_checkpoint", ("iteration", "model"), save_checkpoint),
        HookPoint(checkpointing, "check_checkpoint_args", ("checkpoint_args",), check_checkpoint_args),
    )


def loaders(session: Session, framework: Framework, stock: Any) -> Any:
    """Before data is built, refuse what cannot be served and see what is resumed; after it, make the mixer."""

    def build_train_valid_test_data_loaders(provider):
        for excluded, sentence in framework.exclusions(framework.get_args()):
            if excluded:
                session.refuse(sentence)
        named = getattr(framework.get_args(), "data_args_path", None)
        copied = reads_elsewhere(named) if isinstance(named, str) else None
        if copied is not None:
            console.say(copied)
        session.resume(framework.facts())
        built = stock(provider)
        session.open(framework.facts(), number_of(built))
        return built

    return build_train_valid_test_data_loaders


def number_of(loaders: Any) -> int:
    """How many there are in what a framework returns: loaders, lists of them, None where this rank reads none."""
    if isinstance(loaders, (list, tuple)):
        return sum(map(number_of, loaders))
    return int(loaders is not None)


def train(session: Session, framework: Framework, stock: Any) -> Any:
    """Here the script is known: its loss_func is hooked."""

    def train(forward_step_func, *args, **kwargs):
        if session.mixer is not None:
            hook_script(forward_step_func, functools.partial(framework.loss_func, session))
        return stock(forward_step_func, *args, **kwargs)

    return train


def training_log(session: Session, framework: Framework, stock: Any) -> Any:
    """The weights, after the framework's own line and scalars."""

    def training_log(loss_dict, total_loss_dict, learning_rate, iteration, *args, **kwargs):
        result = stock(loss_dict, total_loss_dict, learning_rate, iteration, *args, **kwargs)
        settings = framework.get_args()
        if session.mixer is not None and iteration % settings.log_interval == 0:
            session.log_line(settings.consumed_train_samples)
            scalars = by_domain("weight", session.weights(settings.consumed_train_samples))
            if boards := _boards(session, framework):
                session.boards.write(boards, scalars | session.fed(), iteration)
        return result

    return training_log


def _boards(session: Session, framework: Framework) -> dict[str, Write]:
    """This rank's boards: those of the framework and, on rank zero, the file of --ado-prometheus."""
    boards, path = dict(framework.boards()), session.config.prometheus
    if path is not None and session.mixer is not None and session.mixer.world.is_zero:
        boards["Prometheus"] = text_file(path, session.mixer.directory.parent.resolve().name).write
    return boards


def evaluate_and_print_results(session: Session, framework: Framework, stock: Any) -> Any:
    """The losses by domain, after the framework's own line and scalars. A run may evaluate without training first."""

    def evaluate_and_print_results(prefix, forward_step_func, data_iterator, model, iteration, *args, **kwargs):
        if session.mixer is not None:
            hook_script(forward_step_func, functools.partial(framework.loss_func, session))
        result = stock(prefix, forward_step_func, data_iterator, model, iteration, *args, **kwargs)
        scalars = session.evaluated(iteration)
        if scalars and kwargs.get("write_to_tensorboard", True):
            session.boards.write(_boards(session, framework), scalars, iteration)
        return result

    return evaluate_and_print_results


def save_checkpoint(session: Session, framework: Framework, stock: Any) -> Any:
    """The sidecar before the framework's checkpoint, so that a whole checkpoint always has one. The sidecar's token
    (Mixer.save) goes among the arguments, which both frameworks write whole into every checkpoint."""

    def save_checkpoint(iteration, *args, **kwargs):
        settings = framework.get_args()
        token = session.save(settings.save, iteration, settings.consumed_train_samples)
        setattr(settings, TOKEN, token)
        return stock(iteration, *args, **kwargs)

    return save_checkpoint


def check_checkpoint_args(session: Session, framework: Framework, stock: Any) -> Any:
    """Overhears the arguments with which the loaded checkpoint was trained, and the token of its sidecar."""

    def check_checkpoint_args(checkpoint_args, *args, **kwargs):
        session.saved_layout = layout_facts(checkpoint_args)
        session.saved_token = getattr(checkpoint_args, TOKEN, None)  # none where it was saved without a sidecar
        return stock(checkpoint_args, *args, **kwargs)

    return check_checkpoint_args


def pretrain(session: Session, framework: Framework, stock: Any) -> Any:
    """Close the session when the framework's run ends, in whatever way all ranks end alike."""
    return guarded(session, stock, ends=True)


def guarded(session: Session, stock: Any, *, ends: bool) -> Any:
    """A function of the framework in which a UserError ends the process with its one sentence and exit code 2, as
    everywhere. ends: the run ends with it, which closes the session."""

    @functools.wraps(stock)
    def call(*args, **kwargs):
        try:
            try:
                result = stock(*args, **kwargs)
            except SystemExit as leaving:  # how the training loop ends early
                if ends and not leaving.code:
                    session.close()
                raise
            if ends:
                session.close()
            return result
        except UserError as error:
            sentence = str(error)
        finally:
            session.at_end.close()
        # Here the error, and with it the frames of the training, are gone, so that its loaders can end their workers.
        session.abandon()
        console.end_with(UserError(sentence))

    return call
