"""One run under a framework: what the hooks of both share. A framework's module wires its functions to methods here.

    checkpoint loaded ─── resume() ─ who drew the samples so far
    data loaders built ── open() ── the mixer, from the lengths that rank zero saw; every waiting blend gets its table
    batch drawn ───────── drawn() ── takes our keys out of the batch and keeps them for the loss site
    loss ──────────────── measure()
    attempt of a step ─── begin(); the optimizer step done: end(), before the framework's save block
    checkpoint ────────── save()
    evaluation done ───── evaluated(), with --ado-validation (evaluation.py)

Legend: K domains, C datasets (prefixes), B samples of a micro-batch, L tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ado_megatron.blend.domains import Domains
from ado_megatron.blend.indexed_files import check_distinct, look_at
from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.hosts import takeover
from ado_megatron.hosts.console import by_name, say
from ado_megatron.hosts.evaluation import Validation
from ado_megatron.hosts.run_facts import RunFacts
from ado_megatron.hosts.takeover import ADAPTIVE, NEW, SHADOW, BlendFacts, StockBlend, sidecar_path
from ado_megatron.hosts.train_sets import KEY, SAMPLE, AdaptiveTrainSet, ShadowTrainSet
from ado_megatron.measure.board_names import by_domain
from ado_megatron.measure.boards import Boards
from ado_megatron.mixer.loader import LoaderSettings
from ado_megatron.mixer.mixer import Mixer
from ado_megatron.mixer.world import World
from ado_megatron.report.board_feed import BoardFeed

PREFETCH_FACTOR = 2  # torch's default, which both frameworks leave as it is


class Session:
    """The mixer of this process and what is between the hooks. Without a mixer no method does anything."""

    def __init__(self, config: AdoConfig):
        self.config = config
        self.mixer: Mixer | None = None
        self.silent = False  # shadow mode on a run that cannot be measured
        self.drawn_by = NEW  # who drew the samples before the loaded checkpoint
        self.origin: dict[str, Any] | None = None  # of the loaded run (takeover.drawn_by)
        self.saved_layout: dict[str, Any] | None = None  # layout_facts of the loaded checkpoint
        self.saved_token: str | None = None  # of the loaded checkpoint: which sidecar belongs to it, if it says so
        self._contributes = False  # this rank's losses count
        self._train_sets: list[AdaptiveTrainSet | ShadowTrainSet] = []
        self._drawn: list[tuple[torch.Tensor, torch.Tensor]] = []  # keys and samples of the running attempt
        self._unmeasured: deque[torch.Tensor] = deque()  # those of them whose loss is still to come
        self._seen: list[torch.Tensor] = []
        self._step = 0
        self._validation = Validation()
        self.boards = Boards()
        self.at_end = contextlib.ExitStack()  # what is let go when the training has ended, in whatever way
        self._feed: BoardFeed | None = None

    # ---------------------------------------------------------------- data

    @property
    def adaptive(self) -> bool:
        """True if our blend takes the place of the framework's."""
        return not self.config.shadow and not self.silent

    def refuse(self, sentence: str) -> None:
        """Stop with a sentence, or in shadow mode say it and leave the framework unmeasured."""
        if not self.config.shadow:
            raise UserError(sentence)
        if not self.silent:
            say(f"nothing is measured in this run: {sentence}")
        self.silent = True

    @property
    def takes_over(self) -> bool:
        """True if the samples before the loaded checkpoint were drawn by the other blend than this run's."""
        return self.drawn_by not in (NEW, SHADOW if self.config.shadow else ADAPTIVE)

    @property
    def needs_stock(self) -> bool:
        """True if our blend goes on where the framework's own ended, which must be laid out once more to know where."""
        return self.adaptive and (self.takes_over or self.origin is not None)

    def resume(self, facts: RunFacts) -> None:
        """The checkpoint is loaded, datasets are not yet built: find out who drew the samples so far. Collective."""
        if self.mixer is not None or self.silent:
            return
        world = World.detect(facts.contributes, facts.device)
        try:
            self.drawn_by, self.origin = world.run_on_rank_zero(
                lambda: takeover.drawn_by(facts.load, facts.iteration, self.saved_token)
            )
            if self.takes_over and self.drawn_by != ADAPTIVE:
                takeover.check_same_layout(self.saved_layout, facts.layout)
        except UserError as error:
            self.refuse(str(error))

    def train_set(
        self, datasets: Sequence[Any], weights: Sequence[float], prefixes: Sequence[str], size: int, id_key: str,
        stock: StockBlend | None = None,
    ) -> AdaptiveTrainSet:  # fmt: skip
        """Our train dataset in place of the framework's: one-epoch `datasets`, one a prefix; reads only after `open`.
        stock: the framework's blend, if `needs_stock`."""
        self._train_sets.append(AdaptiveTrainSet(datasets, weights, prefixes, size, id_key, stock))
        return self._train_sets[-1]

    def shadow_set(self, stock: Any, prefixes: Sequence[str], documents: str) -> ShadowTrainSet:
        """The framework's own blended train dataset, whose samples carry our keys beside what they are."""
        self._train_sets.append(ShadowTrainSet(stock, prefixes, documents))
        return self._train_sets[-1]

    def evaluated_set(self, kind: str, stock: Any, prefixes: Sequence[str]) -> Any:
        """The framework's validation or test dataset, whose samples carry their prefix if their losses are wanted."""
        if stock is None or self.silent or not self.config.validation:
            return stock
        return self._validation.watch(kind, stock, prefixes)

    def open(self, facts: RunFacts, loaders: int = 1) -> None:
        """Make the mixer (first call) and give its table to the train sets built since. Collective, all ranks. loaders:
        data loaders of this rank, for training and evaluation."""
        if self.silent:
            return
        if self.mixer is None:
            self._make_mixer(facts, loaders)
        if self.mixer is None:
            return
        for train_set in self._train_sets:
            train_set.bind(self.mixer.schedule, self.mixer.domains)
        self._train_sets.clear()
        if self.config.validation:
            self._validation.open(self.mixer)

    def _make_mixer(self, facts: RunFacts, loaders: int) -> None:
        world = World.detect(facts.contributes, facts.device)
        mine = self._train_sets[0].blend if world.is_zero and self._train_sets else None
        blend = world.broadcast(mine)
        if blend is None:
            self.refuse("the framework built no blended train dataset, so there is no mixture to adapt")
            return
        config = self.config
        if config.shadow:  # a framework's own blend knows no caps, and the rows that ours would lay out are not read
            config = dataclasses.replace(config, max_epochs=None)
        try:
            domains = world.run_on_rank_zero(lambda: _domains(blend, config))
            mixer = Mixer(
                config, domains, total_samples=facts.total_samples, block_size=facts.block_size, world=world,
                run_dir=facts.save or facts.tensorboard or ".", samples_per_pass=blend.passes, in_order=True,
                origin=blend.origin, log=say,
                loader=LoaderSettings(
                    facts.num_workers, PREFETCH_FACTOR, facts.micro_batch, facts.dp,
                    sample_bytes=self._sample_bytes() if facts.num_workers else 0, loaders=loaders,
                ),
            )  # fmt: skip
            self._start(mixer, world, facts)
        except UserError as error:
            self.refuse(str(error))
            return
        self.mixer, self._contributes, self._step = mixer, facts.contributes, facts.iteration
        say(f"{'measuring the stock blend of' if self.config.shadow else 'mixing'} {len(domains.names_K)} domains")

    def _sample_bytes(self) -> int:
        """What a sample of this rank's train set takes when a worker hands it over; 0 where this rank reads none."""
        return self._train_sets[0].sample_bytes() if self._train_sets else 0

    def _start(self, mixer: Mixer, world: World, facts: RunFacts) -> None:
        """Start the mixer where the checkpoint stands. UserError on every rank if that cannot be."""
        start_C = world.run_on_rank_zero(lambda: self._drawn_by_stock(facts)) if self.takes_over else None
        if self.drawn_by in (ADAPTIVE, SHADOW):
            mixer.load(sidecar_path(facts.load or ".", facts.iteration), self.saved_token)
            mixer.last_saved = f"of step {facts.iteration}"
        mixer.start(facts.consumed_samples, step=facts.iteration, start_C=start_C)

    def _drawn_by_stock(self, facts: RunFacts) -> np.ndarray:
        """Rank zero: samples of each dataset before the checkpoint, if one blend goes on from the other. UserError."""
        train_set = self._train_sets[0]
        index_N = train_set.dataset_index
        if index_N is None:
            raise RuntimeError("the framework's own blend was not laid out, though needs_stock asked for it")
        adaptive = takeover.last_adaptive(facts.load, facts.iteration)
        if adaptive is not None:  # at the checkpoint or, with the framework alone in between, before
            takeover.check_stock_continues(adaptive, train_set.blend, index_N)
        num_datasets = len(train_set.blend.prefixes)
        return takeover.count_drawn(index_N, facts.consumed_samples, num_datasets)

    # ---------------------------------------------------------------- batches and losses

    def drawn(self, batch: Any) -> Any:
        """The batch without our keys, which are kept for the loss site; any other batch as it is."""
        batch = self._validation.drawn(batch)
        if not isinstance(batch, dict) or KEY not in batch:
            return batch
        batch = dict(batch)
        key_B, sample_B = batch.pop(KEY), batch.pop(SAMPLE)
        if self.mixer is not None:
            self._unmeasured.append(key_B)
            if self.mixer.draw_log is not None:
                self._drawn.append((key_B, sample_B))
        return batch

    def measure(self, loss: torch.Tensor, mask: torch.Tensor) -> None:
        """Per-token losses and mask of the oldest micro-batch drawn and not yet measured, [B, …]."""
        if self.mixer is None or not self._contributes:
            return
        if not torch.is_grad_enabled():
            self._validation.measure(loss, mask)
            return
        if not self._unmeasured:
            raise RuntimeError("a loss was computed for which no batch of the adaptive blend was drawn on this rank")
        key_B = self._unmeasured.popleft()
        loss_BxL, mask_BxL = loss.reshape(len(key_B), -1), mask.reshape(len(key_B), -1)
        self.mixer.meter.add(loss_BxL, mask_BxL, key_B)
        if self.mixer.draw_log is not None:
            self._seen.append(key_B)

    # ---------------------------------------------------------------- steps and checkpoints

    def begin(self) -> None:
        """An attempt of the running step starts; a replay of the same step starts again."""
        if self.mixer is not None:
            self._drawn.clear()
            self._unmeasured.clear()
            self._seen.clear()
            self.mixer.begin_step(self._step)

    def end(self, consumed_samples: int, skipped: bool) -> None:
        """The step is done, `consumed_samples` includes its batch. Collective at interval ends."""
        if self.mixer is None:
            return
        if self._contributes and self._unmeasured and not skipped:
            left = len(self._unmeasured)
            raise RuntimeError(f"step {self._step} drew {left} micro-batches whose loss was not measured")
        if self.mixer.draw_log is not None:
            for key_B, sample_B in self._drawn:
                self.mixer.draw_log.drawn(self._step, key_B.numpy(), sample_B.numpy())
            for key_B in self._seen:
                self.mixer.draw_log.seen(self._step, key_B.numpy())
            if skipped and not self._seen and self._contributes:
                self.mixer.draw_log.skipped(self._step)
        self.mixer.end_step(self._step, consumed_samples, skipped=skipped)
        self._step += 1

    def save(self, directory: str | None, iteration: int, consumed_samples: int) -> str | None:
        """The sidecar of the framework's checkpoint of `iteration`; written first, so a whole checkpoint always has
        one. Returns its token, which the checkpoint is to keep; None if no sidecar was written. Collective."""
        if self.mixer is None or directory is None:
            return None
        return self.mixer.save(sidecar_path(directory, iteration), iteration, consumed_samples)

    def weights(self, consumed_samples: int) -> dict[str, float]:
        """Weight in force by domain name (exact on rank zero, from the table's row on others); {} without a mixer."""
        if self.mixer is None:
            return {}
        return dict(zip(self.mixer.domains.names_K, self.mixer.weights_K(consumed_samples).tolist(), strict=True))

    def fed(self) -> dict[str, float]:
        """What rank zero has written of losses, laws and events since the last call, for the boards of this rank."""
        if self._feed is None and self.mixer is not None:
            self._feed = BoardFeed(self.mixer.directory)
        return {} if self._feed is None else self._feed.look()

    def log_line(self, consumed_samples: int) -> None:
        """The weights, after the framework's own log line; of many domains the largest."""
        if self.mixer is not None:
            say(f"step {self._step} weights | {by_name(self.weights(consumed_samples))}")

    def evaluated(self, step: int) -> dict[str, float]:
        """After the framework's evaluation: scalars for its boards, by name; recorded and logged, too. Collective."""
        scalars: dict[str, float] = {}
        for one in self._validation.finish(step, self.mixer) if self.mixer is not None else ():
            say(f"step {step} {one.kind} loss | {by_name(one.losses)}")
            scalars |= by_domain(one.kind, one.losses)
        return scalars

    def abandon(self) -> None:
        """This rank ends with an error; what it started goes with it. Not collective."""
        if self.mixer is not None:
            self.mixer.cancel_fits()

    def close(self) -> None:
        """End of the run. Collective. UserError on every rank where a draw log cannot be written to its end."""
        if self.mixer is not None:
            self.mixer.close()
            self.mixer = None


def _domains(blend: BlendFacts, config: AdoConfig) -> Domains:
    """The domains of the framework's train blend, with what their files say. Reads a few blocks of each. UserError."""
    files = look_at(blend.prefixes)
    check_distinct([file for file in files if file is not None], "the train blend")
    content_C = [0 if file is None else file.content for file in files]
    return Domains.build(blend.prefixes, blend.weights, blend.lengths, config, content_C=content_C)
