"""The training loop of one rank, from an initialised environment to the last checkpoint.

Legend: B samples of a micro-batch, L tokens, K domains.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.utils import Split

from ado_megatron.blend.domains import Domains
from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.mixer import LoaderSettings, Mixer, World
from ado_megatron.trainer import checkpoints, parallel
from ado_megatron.trainer.check_data import DataSpec, check_data
from ado_megatron.trainer.data import PREFETCH_FACTOR, SAMPLE_BYTES, build_on_readers, make_train_iterator
from ado_megatron.trainer.evaluation import Evaluation
from ado_megatron.trainer.exit_signal import ExitSignal, name_of
from ado_megatron.trainer.mixture import make_domains
from ado_megatron.trainer.model import make_model
from ado_megatron.trainer.optimizer import make_engine
from ado_megatron.trainer.options import TrainerOptions, exit_signals
from ado_megatron.trainer.pipeline_loss import PipelineLoss
from ado_megatron.trainer.progress import Progress
from ado_megatron.trainer.run_dir import check_run_dir, run_identity, write_identity
from ado_megatron.trainer.step_plan import StepPlan


@dataclass
class TrainResult:
    """What a rank knows after training: engine losses and gradient norms by step, validation losses, where it stopped,
    and the signal that asked it to (0: none)."""

    first_step: int
    last_step: int = 0
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    valid_K: np.ndarray | None = None
    stopped_by: int = 0


class Trainer:
    """One rank's engine, mixer and batches. `record`: keep every step's loss and gradient norm (costs a device sync a
    step). Making one is collective; it raises UserError for what is wrong with data, options or run directory."""

    def __init__(self, options: TrainerOptions, config: AdoConfig, *, record: bool = False) -> None:
        self.options, self.config, self.record = options, config, record
        self.run, self.plan, self.progress = Path(options.run_dir), StepPlan(options), None
        data = check_data(options)
        domains = make_domains(data, options, config)
        self.place = parallel.set_up(options)
        self._identity = run_identity(options, config, data, self.place.dp)
        self.world = World.detect(self.place.contributes, self.place.device)
        self.world.require_success(lambda: check_run_dir(options, config, self._identity))
        resume_at = checkpoints.step_to_resume(self.run, self.world, options.resume)
        self.first_step = self._first_step(resume_at)
        self._write_identity(trained=resume_at is not None)
        self._make_engine(data, domains)
        self._make_mixer(domains)
        if resume_at is not None:
            checkpoints.load(self.engine, self.mixer, self.run, resume_at)
        self._make_batches(data, domains)
        self.progress = Progress(options, config, self.mixer, self.first_step) if self.world.is_zero else None

    def _first_step(self, resume_at: int | None) -> int:
        if resume_at is not None and resume_at > self.options.steps:
            raise UserError(
                f"the checkpoint to resume from is of step {resume_at}, after the end of a run of --steps "
                f"{self.options.steps}; give at least {resume_at}"
            )
        return resume_at or 0

    def _write_identity(self, *, trained: bool) -> None:
        """config.json, after every rank has checked the directory. Collective; raises UserError on every rank."""
        self.world.require_success(
            lambda: write_identity(self.run, self._identity, trained=trained) if self.world.is_zero else None
        )

    def _make_engine(self, data: DataSpec, domains: Domains) -> None:
        self.loss = PipelineLoss(len(domains.names_K))
        model = make_model(self.options, self.place, data.vocab_size, self.loss)
        first_batch = self.plan.batch_size(self.first_step)
        self.engine, self.optimizer_name = make_engine(self.options, self.place, model, self.options.lr, first_batch)

    def _make_mixer(self, domains: Domains) -> None:
        options = self.options
        self.mixer = Mixer(
            self.config, domains, total_samples=self.plan.total_samples, block_size=options.global_batch,
            world=self.world, run_dir=self.run, log=self.say,
            loader=LoaderSettings(
                options.num_workers, PREFETCH_FACTOR, options.micro_batch, self.place.dp, self.place.dp_rank,
                sample_bytes=SAMPLE_BYTES * options.seq_length if self.place.reads else 0,
            ),
        )  # fmt: skip
        self.loss.on_train = self._measure

    def _make_batches(self, data: DataSpec, domains: Domains) -> None:
        """Build the datasets, start the mixer, and make the iterators over both."""
        options, place, vocab = self.options, self.place, data.vocab_size
        datasets = build_on_readers(data.train_C, Split.train, options, vocab, place, self.world)
        self.evaluation = None
        if options.eval_interval and data.valid_C is not None:
            self.evaluation = Evaluation(data.valid_C, domains.domain_of_C, options, place, vocab, self.world)
        self.mixer.start(self.plan.consumed(self.first_step), step=self.first_step)
        self.batches = make_train_iterator(datasets, self.mixer, options, self.plan, place, self.first_step)

    def say(self, text: str) -> None:
        """A line for the user, from rank zero; one that cannot be written stops nothing."""
        if self.world.is_zero:
            Progress.print(text) if self.progress is None else self.progress.say(text)

    def _measure(self, loss_BxL: torch.Tensor, mask_BxL: torch.Tensor, key_B: torch.Tensor) -> None:
        self.mixer.meter.add(loss_BxL, mask_BxL, key_B)
        if self.mixer.draw_log is not None:
            self.mixer.draw_log.seen(self._step, key_B.cpu().numpy())

    # ---------------------------------------------------------------- the loop

    def train(self) -> TrainResult:
        """Run to the last step, to the exit interval, or until a signal asks for the end. Leaves a whole checkpoint of
        where it stopped."""
        exits = ExitSignal(self.world, exit_signals(self.options))
        exits.start()
        try:
            return self._train(exits)
        except BaseException:
            self.mixer.cancel_fits()
            raise
        finally:
            exits.stop()

    def _train(self, exits: ExitSignal) -> TrainResult:
        options, result = self.options, TrainResult(self.first_step, self.first_step)
        for step in range(self.first_step, options.steps):
            loss, lr = self._train_step(step)
            done, consumed = step + 1, self.plan.consumed(step + 1)
            if step == 0:
                self._write_identity(trained=True)
            self._report(result, done, consumed, loss, lr)
            if self.evaluation is not None and (_is_multiple(done, options.eval_interval) or done == options.steps):
                result.valid_K = self.evaluation.run(self.engine, self.loss, self.world)
                if self.progress is not None:
                    self.progress.validation(done, result.valid_K)
            result.stopped_by = exits.due(step)
            leave = result.stopped_by or _is_multiple(done, options.exit_interval)
            if leave or done == options.steps or _is_multiple(done, options.save_interval):
                checkpoints.save(self.engine, self.mixer, self.run, done, consumed, options.keep)
            result.last_step = done
            if leave:
                break
        return result

    def _train_step(self, step: int) -> tuple[torch.Tensor, float]:
        """The loss of the step (a scalar on the device, not yet waited for) and its learning rate."""
        size = self.plan.batch_size(step)
        if size != self.engine.train_batch_size():
            self.engine.set_train_batch_size(size)
        lr = self.plan.learning_rate(step)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        if self.options.dropout:
            parallel.seed_step(self.options, self.place, step)
        self._step = step
        if self.batches is not None:
            self.batches.step = step
        self.mixer.begin_step(step)
        loss = self.engine.train_batch(self.batches)
        self.mixer.end_step(step, self.plan.consumed(step + 1))
        return loss, lr

    def _report(self, result: TrainResult, done: int, consumed: int, loss: torch.Tensor, lr: float) -> None:
        if self.record:
            result.losses.append(float(loss))
            result.grad_norms.append(self._grad_norm())
        if self.progress is not None:
            if done % self.config.log_interval == 0 or done == self.options.steps:
                self.progress.step(done, consumed, float(loss), lr, self._grad_norm())
            self.progress.advance()

    def _grad_norm(self) -> float:
        """Before clipping, as the engine saw it; nan where it keeps none (ZeRO 0 in fp32)."""
        norm: Any = self.engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def close(self) -> None:
        """Stop loader, mixer and bar, in this order: the loader's processes read the mixer's table. Collective."""
        if self.batches is not None:
            self.batches.close()
        self.mixer.close()
        if self.progress is not None:
            self.progress.close()


def _is_multiple(step: int, interval: int) -> bool:
    """Whether something that happens every `interval` steps (0: never) happens after this one."""
    return interval > 0 and step % interval == 0


def train(options: TrainerOptions, config: AdoConfig, *, record: bool = False) -> TrainResult:
    """Train on this rank; the whole of a run but process groups' end. Collective."""
    trainer = Trainer(options, config, record=record)
    trainer.say(
        f"optimizer: {trainer.optimizer_name}; {trainer.world.size} ranks: tp {options.tp} × pp {options.pp} × dp "
        f"{trainer.place.dp}; device {trainer.place.device}"
    )
    if trainer.first_step:
        trainer.say(f"resumed after step {trainer.first_step}")
    result = trainer.train()
    trainer.close()
    asked = f"ended by {name_of(result.stopped_by)}: " if result.stopped_by else ""
    if result.last_step:
        where = trainer.run / "checkpoints"
        trainer.say(f"{asked}{result.last_step} of {options.steps} steps done; checkpoint in {where}")
    return result
