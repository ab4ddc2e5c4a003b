"""A training run without a model: losses follow a law of what was drawn, so any change of the stream shows in them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import torch

from ado_megatron.blend.domains import Domains
from ado_megatron.config import AdoConfig
from ado_megatron.measure.metrics import read_metrics
from ado_megatron.mixer.loader import LoaderSettings
from ado_megatron.mixer.mixer import Mixer
from ado_megatron.mixer.sidecar import read_sidecar
from ado_megatron.mixer.world import World
from ado_megatron.scaling_law import fit_process
from ado_megatron.scaling_law.smoothing import fit_history
from ado_megatron.stream.sample_key import pack_key

LENGTHS = (1000, 300, 70)
NAMES = ("code", "wiki", "maths")
TOKENS = 4  # tokens of a sample

# Fits early and often, and no wait for the smoothing of long runs.
CONFIG = AdoConfig(policy="ado", refit_interval=20, start_step=20, ignore_steps=2, stride=1, early_refits=False,
                   log_interval=5, wait_deadline=20.0)  # fmt: skip


def config(**changes) -> AdoConfig:
    return dataclasses.replace(CONFIG, **changes)


def domains(conf: AdoConfig = CONFIG, names=NAMES, lengths=LENGTHS, weights=(5.0, 3.0, 2.0)) -> Domains:
    return Domains.build([f"data/{name}_text_document" for name in names], weights, lengths, conf)


def loss_of(dataset_id: int, drawn: int) -> float:
    """The loss of a sample of a dataset of which `drawn` were seen before: each dataset has a law of its own."""
    epsilon, beta, alpha = ((1.0, 4.0, 0.30), (2.0, 3.0, 0.15), (0.5, 6.0, 0.60), (1.5, 2.0, 0.4))[dataset_id]
    return epsilon + beta * (drawn + 8) ** -alpha


class FitInPlace(fit_process.Fit):
    """A fit without a process of its own, for the tests that are not about the process."""

    def __init__(self, history, options, transfer_K=None, *, directory=None, program=None, more=None):
        self._laws = fit_history(history, options)

    def result(self, deadline):
        return fit_process.FitOutcome(self._laws, "", 0.0, 0.0)

    def cancel(self):
        pass


def records(path, kind: str) -> list[dict]:
    """The records of one type in the metrics.jsonl of a run."""
    return [r for r in read_metrics(path / "ado" / "metrics.jsonl") if r["type"] == kind]


RUNS: list[Run] = []  # a test may abandon a run as a crash would; its fits are stopped after the test


def stop_fits() -> None:
    for run in RUNS:
        if run.mixer.rank_zero is not None:
            run.mixer.rank_zero.cancel_fits()
        run.mixer._lock.release()
    RUNS.clear()


class Run:
    """One process of a run: draws the indices that its data rank owns, and measures them."""

    def __init__(
        self, path, conf=CONFIG, *, doms=None, steps=100, batch=16, world=None, dp=1, dp_rank=0, sizes=None,
        loader=None, **kwargs,
    ):  # fmt: skip
        self.messages: list[str] = []
        self.steps, self.batch, self.dp, self.dp_rank = steps, batch, dp, dp_rank
        self.sizes = [batch] * steps if sizes is None else sizes  # samples of each step (batch ramp)
        self.mixer = Mixer(
            conf, doms or domains(conf), total_samples=sum(self.sizes), block_size=batch,
            world=world or World.single(), run_dir=path, loader=LoaderSettings(dp=dp, **(loader or {})),
            log=self.messages.append, **kwargs,
        )  # fmt: skip
        RUNS.append(self)
        self.step = self.consumed = 0
        self.stream: list[tuple[int, int]] = []  # (dataset, j) of every sample trained on, in order

    def start(self, sidecar=None) -> Run:
        if sidecar is not None:
            self.mixer.load(sidecar)
            meta = self.mixer._saved.meta if self.mixer.world.is_zero else None
            meta = self.mixer.world.broadcast(meta)
            self.step, self.consumed = meta["step"], meta["consumed_samples"]
        self.mixer.start(self.consumed, step=self.step)
        return self

    def train(self, until: int, *, skip=(), replay=()) -> Run:
        while self.step < until:
            size = self.sizes[self.step]
            for _ in range(2 if self.step in replay else 1):
                self.mixer.begin_step(self.step)
                for i in range(self.consumed + self.dp_rank, self.consumed + size, self.dp):
                    dataset_id, j = self.mixer.schedule.locate(i)
                    loss = torch.full((1, TOKENS), loss_of(dataset_id, j), dtype=torch.float64)
                    self.mixer.meter.add(loss, torch.ones(1, TOKENS), torch.tensor([pack_key(i, dataset_id)]))
            self.stream += [self.mixer.schedule.locate(i) for i in range(self.consumed, self.consumed + size)]
            self.consumed += size
            self.mixer.end_step(self.step, self.consumed, skipped=self.step in skip)
            self.step += 1
        return self

    def save(self, path) -> None:
        self.mixer.save(path, self.step, self.consumed)

    def rows(self) -> np.ndarray:
        return np.array([self.mixer.schedule.row(b) for b in range(self.mixer.schedule.planned)])


def assert_nothing_repeated_or_skipped(stream) -> None:
    """Each dataset's j counts 0, 1, 2, … in the order of the stream (within a block the order of j is shuffled)."""
    for dataset_id in {dataset_id for dataset_id, _ in stream}:
        assert sorted(j for c, j in stream if c == dataset_id) == list(range(sum(c == dataset_id for c, _ in stream)))


def content_of(sidecar) -> tuple[str, dict[str, tuple]]:
    """All that a sidecar holds but the number of its save."""
    meta, arrays = read_sidecar(sidecar)
    del meta["save"]
    return json.dumps(meta, sort_keys=True), {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()}
