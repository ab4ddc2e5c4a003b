"""Megatron-Bridge (067f987df): where its training loop is hooked (HOOK_POINTS below).

Data, batches and attempts are hooked in megatron-core (megatron_core.py), before Bridge's get_batch_from_iterator,
which blanks every key that it does not know. What its public callbacks see in time is done by these (bridge_run.py):
the checkpoint is loaded, a step or an evaluation is done. Hooked is what comes between them: loaders built but not yet
read, the loss function of a forward_step, a skipped iteration, and a checkpoint before it is written
(on_checkpoint_save comes after, and a checkpoint without a sidecar would be taken for stock's).
Every tensor-parallel rank builds the datasets and reads them. The token of the sidecar goes into the train state.
No file of Bridge changes.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch

from ado_megatron.errors import UserError
from ado_megatron.hosts import exclusions, hooks, megatron_core
from ado_megatron.hosts.bridge_run import EVENTS, BridgeRun, layout_facts
from ado_megatron.hosts.hooks import TOKEN, Framework, HookPoint, Wrapper
from ado_megatron.hosts.session import Session

_TRAINING = "megatron.bridge.training."
PRETRAIN, TRAIN, EVAL, CALLBACKS = (_TRAINING + name for name in ("pretrain", "train", "eval", "callbacks"))
CHECKPOINTING, STATE = _TRAINING + "checkpointing", _TRAINING + "state"


# ---------------------------------------------------------------- from start to end


def _pretrain(session: Session, framework: Framework, stock: Any) -> Any:
    """Refuse what cannot be served, before Bridge starts; else add our callbacks to those of the script."""
    run: BridgeRun = framework.build

    def pretrain(config, forward_step_func, callbacks=None, *args, **kwargs):
        from megatron.bridge.training.callbacks import CallbackManager, normalize_callbacks

        if run.started:
            raise UserError("pretrain() is called a second time in this process; start a process for each run")
        run.started = True
        for excluded, sentence in framework.exclusions(config):
            if excluded:
                session.refuse(sentence)
        if not session.silent:
            manager = CallbackManager() if callbacks is None else normalize_callbacks(callbacks)
            for event in EVENTS:
                manager.register(event, getattr(run, event))
            callbacks = manager
        return stock(config, forward_step_func, callbacks, *args, **kwargs)

    return hooks.guarded(session, functools.wraps(stock)(pretrain), ends=False)


def _guarded(session: Session, framework: Framework, stock: Any) -> Any:
    """Here, inside pretrain's own handling of errors: it takes the process groups down, which `close` needs and which
    tell the ranks apart; and it prints every error with its frames, a sentence of ours need not have."""
    guarded = hooks.guarded(session, stock, ends=False)

    @functools.wraps(stock)
    def call(*args, **kwargs):
        try:
            return guarded(*args, **kwargs)
        except SystemExit as leaving:
            if leaving.code == 2:
                logging.getLogger(PRETRAIN).addFilter(lambda record: record.exc_info is None)
            raise

    return call


def _train(session: Session, framework: Framework, stock: Any) -> Any:
    @functools.wraps(stock)
    def train(*args, **kwargs):
        try:
            return stock(*args, **kwargs)
        except SystemExit as leaving:  # how the training loop ends early
            if not leaving.code:
                session.close()
            raise

    return _guarded(session, framework, train)


def _finish_train(session: Session, framework: Framework, stock: Any) -> Any:
    @functools.wraps(stock)
    def finish_train(*args, **kwargs):
        session.close()
        return stock(*args, **kwargs)

    return _guarded(session, framework, finish_train)


# ---------------------------------------------------------------- between the callbacks


def _loaders(session: Session, framework: Framework, stock: Any) -> Any:
    def build_train_valid_test_data_loaders(*args, **kwargs):
        built = stock(*args, **kwargs)
        if not session.silent:
            session.open(framework.facts(), hooks.number_of(built))
        return built

    return build_train_valid_test_data_loaders


def _prepare_forward_step(session: Session, framework: Framework, stock: Any) -> Any:
    """What every forward_step returns is (output, partial(loss, loss_mask)): the losses are overheard on the way."""

    def prepare_forward_step_func(forward_step_func, state):
        prepared = stock(forward_step_func, state)

        def forward_step(*args, **kwargs):
            output, loss_func = prepared(*args, **kwargs)
            return output, overheard(session, loss_func)

        return prepared if session.mixer is None else forward_step

    return prepare_forward_step_func


def overheard(session: Session, loss_func: Any) -> Any:
    """A forward_step's loss function, whose losses [B, …] and mask the session sees. It raises UserError, when called,
    if it is no partial of a loss mask or is given no tensor."""

    def call(output, *args, **kwargs):
        if not kwargs.get("non_loss_data"):
            bound = loss_func if isinstance(loss_func, functools.partial) else functools.partial(loss_func)
            mask = bound.keywords.get("loss_mask", bound.args[0] if bound.args else None)
            if not (isinstance(mask, torch.Tensor) and isinstance(output, torch.Tensor)):
                raise UserError(
                    "the script's forward_step does not return partial(loss, loss_mask) over a tensor of losses, as "
                    "Bridge's gpt_step does, so a loss does not tell its domain; return that, or say --ado-off"
                )
            session.measure(output, mask)
        return loss_func(output, *args, **kwargs)

    return call


def _dummy_train_step(session: Session, framework: Framework, stock: Any) -> Any:
    run: BridgeRun = framework.build

    def dummy_train_step(*args, **kwargs):
        stock(*args, **kwargs)
        if session.mixer is not None:
            session.end(run.consumed_after_step(), skipped=True)

    return dummy_train_step


def _save_checkpoint(session: Session, framework: Framework, stock: Any) -> Any:
    """The sidecar before the checkpoint, so that a whole checkpoint always has one."""

    def save_checkpoint_and_time(state, *args, **kwargs):
        train_state = state.train_state
        token = session.save(state.cfg.checkpoint.save, train_state.step, train_state.consumed_train_samples)
        setattr(train_state, TOKEN, token)
        return stock(state, *args, **kwargs)

    return save_checkpoint_and_time


def _state_dict(session: Session, framework: Framework, stock: Any) -> Any:
    def state_dict(self):
        values, token = stock(self), getattr(self, TOKEN, None)
        if token is not None:  # everything in a train state is a tensor
            values[TOKEN] = torch.tensor(list(token.encode()), dtype=torch.uint8)
        return values

    return state_dict


def _load_state_dict(session: Session, framework: Framework, stock: Any) -> Any:
    def load_state_dict(self, state_dict):
        token = state_dict.get(TOKEN)
        setattr(self, TOKEN, None if token is None else bytes(token.tolist()).decode())
        return stock(self, state_dict)

    return load_state_dict


def _read_run_config(session: Session, framework: Framework, stock: Any) -> Any:
    """Overhears the configuration with which the loaded checkpoint was trained."""

    def read_run_config(*args, **kwargs):
        run_config = stock(*args, **kwargs)
        session.saved_layout = layout_facts(run_config)
        return run_config

    return read_run_config


HOOK_POINTS = (
    *megatron_core.HOOK_POINTS,
    HookPoint(PRETRAIN, "pretrain", ("config", "forward_step_func", "callbacks"), _pretrain),
    HookPoint(PRETRAIN, "setup", ("state",), _guarded),
    HookPoint(PRETRAIN, "train", ("forward_step_func", "model"), _train),
    HookPoint(PRETRAIN, "evaluate_and_print_results", ("state", "prefix", "forward_step_func"), _guarded),
    HookPoint(PRETRAIN, "_finish_train", ("global_state", "checkpoint_manager"), _finish_train),
    HookPoint("megatron.bridge.data.loaders", "build_train_valid_test_data_loaders", ("cfg", "train_state"), _loaders),
    HookPoint(TRAIN, "prepare_forward_step_func", ("forward_step_func", "state"), _prepare_forward_step),
    HookPoint(EVAL, "prepare_forward_step_func", ("forward_step_func", "state"), _prepare_forward_step),
    HookPoint(TRAIN, "_dummy_train_step", ("global_state", "train_data_iterator"), _dummy_train_step),
    HookPoint(TRAIN, "save_checkpoint_and_time", ("state", "model"), _save_checkpoint),
    HookPoint(STATE, "TrainState.state_dict", ("self",), _state_dict),
    HookPoint(STATE, "TrainState.load_state_dict", ("self", "state_dict"), _load_state_dict),
    HookPoint(CHECKPOINTING, "read_run_config", ("run_config_filename",), _read_run_config),
    # called by ours
    *(HookPoint(CALLBACKS, f"Callback.{event}", ("self", "context")) for event in EVENTS),
    HookPoint(CALLBACKS, "CallbackManager.register", ("self", "event_name", "fn")),
    HookPoint(CALLBACKS, "normalize_callbacks", ("callbacks",)),
    HookPoint(_TRAINING + "utils.pg_utils", "get_pg_collection", ("model",)),
    HookPoint(megatron_core.RERUN, "RerunStateMachine.should_checkpoint_and_exit", ("self",)),
)  # fmt: skip


def wrappers(session: Session) -> dict[str, Wrapper]:
    """What each hooked function becomes in a run of `session`: "module:name" → (the stock function → ours)."""
    run = BridgeRun(session)
    framework = Framework(
        "Megatron-Bridge", run.config, exclusions.megatron_bridge, run.facts, overheard, run.boards, run
    )
    return {name: wrap for name, wrap in hooks.wrappers(HOOK_POINTS, session, framework).items() if name != hooks.LOSS}
