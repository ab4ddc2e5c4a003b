"""The training loop of one rank, from an initialised environment to the last checkpoint.

Legend: K domains.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ado_megatron.blend.domains import Domains
from ado_megatron.config import AdoConfig
from ado_megatron.mixer.loader import LoaderSettings
from ado_megatron.mixer.mixer import Mixer
from ado_megatron.mixer.world import World
from ado_megatron.trainer import checkpoints, parallel
from ado_megatron.trainer.check_data import DataSpec, check_data
from ado_megatron.trainer.data import PREFETCH_FACTOR, SAMPLE_BYTES, Validation, build_train, make_feed
from ado_megatron.trainer.mixture import make_domains
from ado_megatron.trainer.model import make_model
from ado_megatron.trainer.optimizer import make_engine
from ado_megatron.trainer.options import TrainerOptions
from ado_megatron.trainer.pipeline_loss import LossSite
from ado_megatron.trainer.progress import Progress
from ado_megatron.trainer.run_dir import check_run_dir, run_identity
from ado_megatron.trainer.step_plan import StepPlan


@dataclass
class Outcome:
    """What a rank knows after training: engine losses and gradient norms by step, validation losses, and where it
    stopped."""

    first_step: int
    last_step: int = 0
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    valid_K: np.ndarray | None = None


class Trainer:
    """One rank's engine, mixer and batches. `record`: keep every step's loss and gradient norm (costs a device sync a
    step)."""

    def __init__(self, options: TrainerOptions, config: AdoConfig, *, record: bool = False):
        self.options, self.config, self.record = options, config, record
        self.run, self.plan = Path(options.run_dir), StepPlan(options)
        data = check_data(options)
        domains = make_domains(data, options, config)
        self.place = parallel.set_up(options)
        identity = run_identity(options, config, data, self.place.dp)
        check_run_dir(options, config, identity)
        self.world = World.detect(self.place.contributes, self.place.device)
        resume_at = checkpoints.latest_step(self.run, self.world)  # collective, so every rank has checked by now
        if resume_at is None:
            checkpoints.write_identity(self.run, identity, self.world)
        self.first_step = resume_at or 0
        self._make_engine(data, domains)
        self._make_mixer(domains)
        if resume_at is not None:
            checkpoints.load(self.engine, self.mixer, self.run, resume_at)
            checkpoints.write_identity(self.run, identity, self.world)
        self.mixer.start(self.plan.consumed(self.first_step), step=self.first_step)
        datasets = build_train(data, options, self.place)
        self.feed = make_feed(datasets, self.mixer, options, self.plan, self.place, self.first_step)
        wanted = options.eval_interval and data.valid_C is not None
        self.validation = Validation(data, domains.domain_of_C, options, self.place) if wanted else None
        self.progress = Progress(options, self.mixer, self.first_step) if self.world.is_zero else None

    def _make_engine(self, data: DataSpec, domains: Domains) -> None:
        self.site = LossSite(len(domains.names_K))
        model = make_model(self.options, self.place, data.vocab_size, self.site)
        first_batch = self.plan.batch_size(self.first_step)
        self.engine, self.optimizer_name = make_engine(self.options, self.place, model, self.options.lr, first_batch)

    def _make_mixer(self, domains: Domains) -> None:
        options = self.options
        self.mixer = Mixer(
            self.config, domains, total_samples=self.plan.total_samples, block_size=options.global_batch,
            world=self.world, run_dir=self.run, log=self.say,
            loader=LoaderSettings(
                options.num_workers, PREFETCH_FACTOR, options.micro_batch, self.place.dp, self.place.dp_rank,
                sample_bytes=SAMPLE_BYTES * options.seq_length,
            ),
        )  # fmt: skip
        self.site.on_train = self._measure

    def say(self, text: str) -> None:
        if self.world.is_zero:
            print(text, flush=True) if getattr(self, "progress", None) is None else self.progress.say(text)

    def _measure(self, loss_BxL: torch.Tensor, mask_BxL: torch.Tensor, key_B: torch.Tensor) -> None:
        self.mixer.meter.add(loss_BxL, mask_BxL, key_B)
        if self.mixer.draw_log is not None:
            self.mixer.draw_log.seen(self._step, key_B.cpu().numpy())

    # ---------------------------------------------------------------- the loop

    def train(self) -> Outcome:
        """Run to the last step, or to the exit interval. Leaves a complete checkpoint of where it stopped."""
        outcome = Outcome(self.first_step, self.first_step)
        for step in range(self.first_step, self.options.steps):
            loss, lr = self._train_step(step)
            done, consumed = step + 1, self.plan.consumed(step + 1)
            self._report(outcome, done, consumed, loss, lr)
            if self.validation is not None and (done % self.options.eval_interval == 0 or done == self.options.steps):
                outcome.valid_K = self._validate(done)
            leave = self.options.exit_interval and done % self.options.exit_interval == 0
            if (
                leave
                or done == self.options.steps
                or (self.options.save_interval and done % self.options.save_interval == 0)
            ):
                checkpoints.save(self.engine, self.mixer, self.run, done, consumed, self.options.keep)
            outcome.last_step = done
            if leave:
                break
        return outcome

    def _train_step(self, step: int) -> tuple[torch.Tensor, float]:
        size = self.plan.batch_size(step)
        if size != self.engine.train_batch_size():
            self.engine.set_train_batch_size(size)
        lr = self.plan.learning_rate(step)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        if self.options.dropout:
            parallel.seed_step(self.options, self.place, step)
        self._step = step
        if self.feed is not None:
            self.feed.step = step
        self.mixer.begin_step(step)
        loss = self.engine.train_batch(self.feed)
        self.mixer.end_step(step, self.plan.consumed(step + 1))
        return loss, lr

    def _report(self, outcome: Outcome, done: int, consumed: int, loss: torch.Tensor, lr: float) -> None:
        if self.record:
            outcome.losses.append(float(loss))
            outcome.grad_norms.append(self._grad_norm())
        if self.progress is not None:
            if done % self.config.log_interval == 0 or done == self.options.steps:
                self.progress.step(done, consumed, float(loss), lr, self._grad_norm())
            self.progress.advance()

    def _grad_norm(self) -> float:
        """Before clipping, as the engine saw it; nan where it keeps none (ZeRO 0 in fp32)."""
        norm = self.engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def _validate(self, done: int) -> np.ndarray:
        """Mean token loss of each domain (nan where there is none); the engine's own mean is not used, its padding
        counts."""
        batches = self.validation.batches() if self.place.reads else None
        self.engine.eval_batch(batches, num_micro_batches=self.validation.micro_batches, bcast_loss=False)
        sums_Kx2 = self.site.take_valid().to(self.place.device)
        sums_Kx2 = self.world.sum_(sums_Kx2 if self.place.contributes else torch.zeros_like(sums_Kx2)).cpu().numpy()
        loss_K = np.full(len(sums_Kx2), np.nan)
        np.divide(sums_Kx2[:, 0], sums_Kx2[:, 1], out=loss_K, where=sums_Kx2[:, 1] > 0)
        if self.progress is not None:
            self.progress.validation(done, loss_K)
        return loss_K

    def close(self) -> None:
        """Stop loader, mixer and bar, in this order: the loader's processes read the mixer's table. Collective."""
        if self.feed is not None:
            self.feed.close()
        self.mixer.close()
        if self.progress is not None:
            self.progress.close()


def train(options: TrainerOptions, config: AdoConfig, *, record: bool = False) -> Outcome:
    """Train on this rank; the whole of a run but process groups' end. Collective."""
    trainer = Trainer(options, config, record=record)
    trainer.say(
        f"optimizer: {trainer.optimizer_name}; {trainer.world.size} ranks: tp {options.tp} × pp {options.pp} × dp "
        f"{trainer.place.dp}; device {trainer.place.device}"
    )
    if trainer.first_step:
        trainer.say(f"resumed after step {trainer.first_step}")
    outcome = trainer.train()
    trainer.close()
    if outcome.last_step:
        trainer.say(f"{outcome.last_step} of {options.steps} steps done; checkpoint in {trainer.run / 'checkpoints'}")
    return outcome
