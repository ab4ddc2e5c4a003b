"""A run without a model and without a meter, quick enough for hundreds of them, and what an operator does to it.

Laws are a plain function of the history, so a stream that differs in one sample has other laws and other rows.

Legend: K domains, T steps.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from ado_megatron.audit import audit
from ado_megatron.mixer.loader import LoaderSettings
from ado_megatron.mixer.mixer import Mixer
from ado_megatron.mixer.world import World
from ado_megatron.scaling_law import fit_process
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.steer.journal import extra_refits
from ado_megatron.steer.requests import file_request
from ado_megatron.stream.sample_key import pack_key
from tests.kit.mixing import config, domains

BATCH = 8


class QuickFit(fit_process.Fit):
    """Laws at once, by a formula of the whole history."""

    def __init__(self, history, options, transfer_K=None, *, directory=None, program=None, more=None):
        sums_K = sum(np.asarray(a, np.float64).sum(axis=0) for a in history.values() if np.ndim(a) == 2)
        mark_K = np.modf(sums_K * 0.6180339887)[0]
        self._laws = Laws.given(np.stack([1.0 + mark_K, 0.2 * mark_K, 0.2 + 0.5 * mark_K], axis=1), 0.0)

    def result(self, deadline):
        return fit_process.FitOutcome(self._laws, "", 0.0, 0.0)

    def cancel(self):
        pass


class QuickRun:
    """One process of a run: each step is a block; its losses follow from how much of each domain was seen."""

    def __init__(self, path, conf, steps, *, doms=None, journal=(), workers=0):
        self.path, self.steps = Path(path), steps
        loader = LoaderSettings(num_workers=workers, prefetch_factor=2, micro_batch=BATCH, dp=1)
        self.messages: list[str] = []
        self.mixer = Mixer(conf, doms or domains(conf), total_samples=steps * BATCH, block_size=BATCH,
                           world=World.single(), run_dir=path, loader=loader, log=self.messages.append)  # fmt: skip
        self.mixer.meter = self
        self.rows = 1 << 30
        if journal:
            self.mixer._on_zero().planner.regimes.entries.extend(journal)
            self.mixer.refits.add(extra_refits(journal), 0)
        self.step, self.stream, self._sums = 0, [], []

    # what the mixer asks of a meter

    def begin(self, row):
        pass

    def take(self, rows):
        sums, self._sums = self._sums, []
        return torch.tensor(np.array(sums))

    def start(self, sidecar=None):
        if sidecar is not None:
            self.mixer.load(sidecar)
            self.step = self.mixer._saved.meta["step"]
        self.mixer.start(self.step * BATCH, step=self.step)
        return self

    def train(self, until):
        while self.step < until:
            self.mixer.begin_step(self.step)
            column_n, j_n, sample_n = self.mixer.schedule.block(self.step)
            if self.mixer.draw_log is not None:
                key_n = pack_key(np.arange(self.step * BATCH, (self.step + 1) * BATCH), column_n)
                self.mixer.draw_log.drawn(self.step, key_n, sample_n)
                self.mixer.draw_log.seen(self.step, key_n)
            counts_K = np.bincount(column_n, minlength=len(self.mixer.domains.names_K))
            losses_K = np.bincount(column_n, 1.0 + 4.0 * (j_n + 8.0) ** -0.3, minlength=len(counts_K))
            self._sums.append(np.stack([losses_K, counts_K.astype(np.float64)], axis=1))
            self.stream.append((column_n.tolist(), sample_n.tolist()))
            self.step += 1
            self.mixer.end_step(self.step - 1, self.step * BATCH)
        return self

    def save(self, path):
        self.mixer.save(path, self.step, self.step * BATCH)

    def kill(self):
        """End as a process that is killed ends, but for the lock, which a new process would find stale."""
        if self.mixer.draw_log is not None:
            self.mixer.draw_log.flush()
        self.mixer._lock.release()

    def ask(self, **asked):
        """File a request, train until it is answered, and return the answer."""
        at_step = asked.pop("at_step", None)
        path = file_request(self.mixer.directory, {"host": "here", "asked": asked, "at_step": at_step})
        answer = path.with_suffix(".answer")
        while not answer.exists() and self.step < self.steps:
            self.train(self.step + 1)
        if not answer.exists():
            path.unlink()
            return {"refused": "the run is over"}
        return json.loads(answer.read_text())


@dataclasses.dataclass
class Steered:
    """What a sequence came to: the journal, the samples of each step as they count in the end, the audit's result."""

    entries: list
    stream: list
    refused: list[str]


def asked_at_random(rng, names):
    """A change of any kind; some cannot be granted."""
    kind = rng.integers(12)
    name = str(rng.choice(names))
    share = float(rng.choice([0.0, 0.05, 0.2, 0.4, 0.7]))
    return [
        {"pins": {name: share}}, {"pins": {name: f"{rng.uniform(-0.5, 0.5):+.3f}"}}, {"unpin": [""]},
        {"floor": {name: share / 2}}, {"ceiling": {name: 0.3 + share / 2}},
        {"floor": {"": None}, "ceiling": {"": None}},
        {"policy": str(rng.choice(["static", "ado", "plan"]))}, {"target": {name: 1.0, names[0]: 0.5}},
        {"max_epochs": {name: float(rng.choice([1.0, 2.0, 30.0]))}}, {"hold": bool(rng.integers(2))},
        {"undo": True}, {"refit_now": True},
    ][kind]  # fmt: skip


def steered_run(path: Path, seed: int) -> tuple[QuickRun, list, list[str]]:
    """A run of random changes, checkpoints, kills and resumes: (its last process, the stream, what was refused)."""
    rng = np.random.default_rng(seed)
    steps = int(rng.integers(60, 140))
    conf = config(
        policy=str(rng.choice(["ado", "ado", "plan", "static"])), refit_interval=int(rng.choice([10, 20, 35])),
        fit_lag=int(rng.integers(0, 9)), log_interval=int(rng.integers(1, 8)), start_step=int(rng.choice([0, 10, 20])),
        early_refits=bool(rng.integers(2)), max_epochs=[None, "8,maths=3"][rng.integers(2)], plan_gate=0.0,
        probe=float(rng.choice([0.0, 0.0, 10.0])), probe_length=7, audit=True,
    )  # fmt: skip
    run = QuickRun(path, conf, steps, workers=int(rng.integers(3))).start()
    stream, saved, refused = run.stream, None, []
    while run.step < steps:
        act = rng.integers(6)
        if act <= 2:
            asked = asked_at_random(rng, run.mixer.domains.names_K)
            if rng.integers(5) == 0 and "refit_now" not in asked:
                asked["at_step"] = run.step + int(rng.integers(5, 50))
            answer = run.ask(**asked)
            if "refused" in answer:
                refused.append(answer["refused"])
            elif "at_step" not in asked and "refit_now" not in asked:  # it holds soon
                mixer = run.mixer
                assert answer["blocks"] <= mixer.lookahead + max(mixer.refits.fit_lag, conf.log_interval - 1), answer
        elif act == 3:
            run.save(path / "s.ado")
            saved = run.step
        elif act == 4 and saved is not None:
            run.kill()
            stream = stream[:saved]
            run = QuickRun(path, conf, steps, workers=int(rng.integers(3))).start(path / "s.ado")
            run.stream = stream
        run.train(min(run.step + int(rng.integers(1, 25)), steps))
    run.mixer.close()
    return run, stream, refused


def assert_audit_is_clean(path: Path) -> None:
    result = audit(path)
    assert result.failure is None, result.failure
    assert (result.repeated, result.skipped) == (0, 0)
