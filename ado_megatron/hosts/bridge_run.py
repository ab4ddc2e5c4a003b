"""A run of Megatron-Bridge: its configuration, and what its public callbacks do (EVENTS)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import torch

from ado_megatron.hosts.hooks import TOKEN
from ado_megatron.hosts.run_facts import RunFacts
from ado_megatron.hosts.session import Session
from ado_megatron.measure.board_names import by_domain, mlflow_name
from ado_megatron.measure.boards import Write

EVENTS = ("on_data_init_start", "on_train_step_end", "on_eval_end", "on_test_end")  # of Bridge


class BridgeRun:
    """The one run of this process, and what Bridge's callbacks do in it. state: Bridge's GlobalState, once there is
    one; groups: its process groups."""

    def __init__(self, session: Session):
        self.session = session
        self.state: Any = None
        self.groups: Any = None
        self.started = False

    def config(self) -> Any:
        """Bridge's ConfigContainer."""
        return self.state.cfg

    def on_data_init_start(self, context: Any) -> None:
        """No dataset is built yet: find out who drew the samples so far."""
        from megatron.bridge.training.utils.pg_utils import get_pg_collection

        self.state, self.groups = context.state, get_pg_collection(context.model)
        self.session.saved_token = getattr(context.state.train_state, TOKEN, None)
        self.session.resume(self.facts())

    def facts(self) -> RunFacts:
        """Of the configuration and this rank, where the train state stands."""
        cfg, state = self.config(), self.state.train_state
        pp, tp = self.groups.pp, self.groups.tp
        return RunFacts(
            total_samples=cfg.train.train_samples or cfg.train.train_iters * cfg.train.global_batch_size,
            block_size=cfg.train.global_batch_size, micro_batch=cfg.train.micro_batch_size, dp=self.groups.dp.size(),
            num_workers=cfg.dataset.num_workers, iteration=state.step, consumed_samples=state.consumed_train_samples,
            save=cfg.checkpoint.save, load=cfg.checkpoint.load, tensorboard=cfg.logger.tensorboard_dir,
            log_interval=cfg.logger.log_interval, contributes=pp.rank() == pp.size() - 1 and tp.rank() == 0,
            device=torch.cuda.current_device(), layout=layout_facts(cfg),
        )  # fmt: skip

    def consumed_after_step(self) -> int:
        """Train samples consumed once the running step is done; Bridge counts it later."""
        from megatron.core.num_microbatches_calculator import get_num_microbatches

        batch = self.groups.dp.size() * self.config().train.micro_batch_size * get_num_microbatches()
        return self.state.train_state.consumed_train_samples + batch

    def on_train_step_end(self, context: Any) -> None:
        """After the optimizer step, before Bridge counts and saves; also after a step that was broken off."""
        from megatron.core.rerun_state_machine import get_rerun_state_machine

        if self.session.mixer is None or get_rerun_state_machine().should_checkpoint_and_exit()[1]:
            return  # a step broken off is run again by a resumed run
        consumed, step = self.consumed_after_step(), self.state.train_state.step + 1
        self.session.end(consumed, skipped=bool(context.skipped_iter))
        if step % self.config().logger.log_interval == 0:
            self.session.log_line(consumed)
            if boards := self.boards():
                weights = by_domain("weight", self.session.weights(consumed))
                self.session.boards.write(boards, weights | self.session.fed(), step)

    def on_eval_end(self, context: Any) -> None:
        """An evaluation on the validation split is done."""
        step = self.state.train_state.step
        scalars = self.session.evaluated(step)
        if scalars and not self.config().validation.skip_train:
            self.session.boards.write(self.boards(), scalars, step)

    on_test_end = on_eval_end

    def boards(self) -> dict[str, Write]:
        """Bridge's TensorBoard, W&B and MLflow, on the rank that has them (the last)."""
        writer, wandb, mlflow = self.state.tensorboard_logger, self.state.wandb_logger, self.state.mlflow_logger

        def to_tensorboard(scalars: dict[str, float], step: int) -> None:
            for name, value in scalars.items():
                writer.add_scalar(name, value, step)

        def to_mlflow(scalars: dict[str, float], step: int) -> None:
            mlflow.log_metrics({mlflow_name(name): value for name, value in scalars.items()}, step=step)

        found: dict[str, Write] = {"TensorBoard": to_tensorboard} if writer else {}
        found |= {"W&B": wandb.log} if wandb else {}
        return found | ({"MLflow": to_mlflow} if mlflow else {})


def layout_facts(cfg: Any) -> dict[str, Any]:
    """What Bridge's order of samples depends on, of a configuration or of what run_config.yaml says of one; without
    directories, since data may move."""

    def read(part: str, name: str) -> Any:
        values = cfg.get(part) if isinstance(cfg, Mapping) else getattr(cfg, part)
        return values.get(name) if isinstance(values, Mapping) else getattr(values, name, None)

    facts = {f"dataset.{name}": read("dataset", name) for name in ("split", "random_seed", "seq_length")}
    facts["train.train_samples"] = read("train", "train_samples")
    if facts["train.train_samples"] is None:
        iters, batch = read("train", "train_iters"), read("train", "global_batch_size")
        facts["train_iters × global_batch_size"] = (iters or 0) * (batch or 0)
    for name in ("blend", "blend_per_split"):
        facts[f"dataset.{name}"] = _without_directories(read("dataset", name))
    return facts


def _without_directories(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_without_directories(one) for one in value]
    return PurePath(value).name if isinstance(value, str) else value
