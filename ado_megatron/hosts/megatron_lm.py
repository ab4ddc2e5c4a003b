"""Megatron-LM (core_v0.16.1, core_v0.19.0 and main d98e8a6): where its training loop is hooked (HOOK_POINTS below).

Data, batches and attempts are hooked in megatron-core (megatron_core.py). The loss is overheard in the script's
loss_func; `get_batch` never sees anything of ours. No file of the checkout changes.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from ado_megatron.hosts import exclusions, hooks, megatron_core
from ado_megatron.hosts.hooks import Framework, HookPoint, Wrapper
from ado_megatron.hosts.run_facts import RunFacts
from ado_megatron.hosts.session import Session
from ado_megatron.hosts.takeover import layout_facts
from ado_megatron.measure.boards import Write

TRAINING, CHECKPOINTING = "megatron.training.training", "megatron.training.checkpointing"


def get_args() -> Any:
    """The framework's arguments."""
    from megatron.training.global_vars import get_args

    return get_args()


def _facts() -> RunFacts:
    from megatron.core import parallel_state as mpu

    args = get_args()
    contributes = mpu.is_pipeline_last_stage(ignore_virtual=True) and mpu.get_tensor_model_parallel_rank() == 0
    return RunFacts(
        total_samples=args.train_samples or args.train_iters * args.global_batch_size,
        block_size=_final_batch(args), micro_batch=args.micro_batch_size, dp=mpu.get_data_parallel_world_size(),
        num_workers=args.num_workers, iteration=args.iteration, consumed_samples=args.consumed_train_samples,
        save=args.save, load=args.load, tensorboard=args.tensorboard_dir, log_interval=args.log_interval,
        contributes=contributes, device=torch.cuda.current_device(),
        layout=layout_facts(args),
    )  # fmt: skip


def _final_batch(args) -> int:
    """The global batch, under main's --step-batch-size-schedule the last one."""
    from megatron.core import num_microbatches_calculator as module

    if getattr(args, "step_batch_size_schedule", None) is None:
        return args.global_batch_size
    return module._GLOBAL_NUM_MICROBATCHES_CALCULATOR.global_batch_size


# ---------------------------------------------------------------- losses and steps


def _loss_func(session: Session, stock: Any) -> Any:
    @functools.wraps(stock)
    def loss_func(loss_mask, output_tensor, *args, **kwargs):
        session.measure(output_tensor, loss_mask)
        return stock(loss_mask, output_tensor, *args, **kwargs)

    return hooks.measuring(loss_func)


def _batch_samples() -> int:
    from megatron.core import num_microbatches_calculator, parallel_state

    args, micro_batches = get_args(), num_microbatches_calculator.get_num_microbatches()
    return parallel_state.get_data_parallel_world_size() * args.micro_batch_size * micro_batches


def _train_step(session: Session, framework: Framework, stock: Any) -> Any:
    def train_step(*args, **kwargs):
        result = stock(*args, **kwargs)
        skipped, leave = bool(result[1]), bool(result[3])
        if not leave:  # else the step was broken off, to be run again by a resumed run
            session.end(get_args().consumed_train_samples + _batch_samples(), skipped)
        return result

    return train_step


def _dummy_train_step(session: Session, framework: Framework, stock: Any) -> Any:
    def dummy_train_step(data_iterator):
        stock(data_iterator)
        session.end(get_args().consumed_train_samples + _batch_samples(), True)

    return dummy_train_step


def boards() -> dict[str, Write]:
    """The framework's TensorBoard and W&B, on the rank that has them (the last)."""
    from megatron.training.global_vars import get_tensorboard_writer, get_wandb_writer

    writer, wandb = get_tensorboard_writer(), get_wandb_writer()

    def to_tensorboard(scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)

    found: dict[str, Write] = {"TensorBoard": to_tensorboard} if writer is not None else {}
    return found | ({"W&B": wandb.log} if wandb else {})


FRAMEWORK = Framework("Megatron-LM", get_args, exclusions.megatron_lm, _facts, _loss_func, boards)
HOOK_POINTS = (
    *hooks.alike(TRAINING, CHECKPOINTING),
    *megatron_core.HOOK_POINTS,
    HookPoint(TRAINING, "train_step", ("forward_step_func", "data_iterator", "model", "optimizer"), _train_step),
    HookPoint(TRAINING, "dummy_train_step", ("data_iterator",), _dummy_train_step),
    # called by ours
    HookPoint("megatron.core.parallel_state", "is_pipeline_last_stage", ("ignore_virtual",)),
)  # fmt: skip


def wrappers(session: Session) -> dict[str, Wrapper]:
    """What each hooked function becomes in a run of `session`: "module:name" → (the stock function → ours)."""
    return hooks.wrappers(HOOK_POINTS, session, FRAMEWORK)
