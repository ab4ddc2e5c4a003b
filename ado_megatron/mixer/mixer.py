"""The conductor: plans rows on rank zero, measures on every rank, refits beside the training.

One cycle, in blocks (a block is a global batch). After block t, a *cut*: the interval's sums are reduced over the world
and rank zero hands the history up to t to a fit process. The laws that come back decide the rows from block
t + 1 + fit_lag on, wherever the clock stands, so a slow fit changes when the run waits and never what it trains on. The
rows of a cycle are published `lead` blocks before their first reader may ask for them (refits.py).

Collectives: one sum at a cut or checkpoint, one broadcast and one 8-byte comparison at a publication. None per step.

Legend: K domains, C columns, S rows, T steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ado_megatron.blend.domains import Domains
from ado_megatron.blend.epoch_caps import caps_from_config, check_supply, forecast_lines
from ado_megatron.blend.static_export import blend_text, not_continued, outlook
from ado_megatron.config import AdoConfig
from ado_megatron.errors import SidecarError, UserError
from ado_megatron.files import atomic_write
from ado_megatron.measure.draw_log import DrawLog
from ado_megatron.measure.meter import DomainMeter
from ado_megatron.mixer.planner import Planner
from ado_megatron.mixer.recorder import Recorder
from ado_megatron.mixer.refit_schedule import Cycle, Refits
from ado_megatron.mixer.resume import Saved, pack
from ado_megatron.mixer.sidecar import read_sidecar, write_sidecar
from ado_megatron.mixer.world import World
from ado_megatron.stream.schedule import Schedule, lead_blocks

FORECASTS = 24  # domains that the start of a run speaks of
METER_BYTES = 64 << 20  # at most this much device memory between two reductions


class Mixer:
    """The mixture of one run, on every rank.

    Order of calls: `load` (when resuming), `start`, then for every step `begin_step`, `meter.add` at the loss site,
    `end_step` before the host's save block, `save` with each checkpoint; `close` at the end. All but `meter.add` are
    called by all ranks in the same order.

    domains: the same on all ranks. total_samples: samples that the run may draw. block_size: the global batch (under a
    batch ramp the final one). num_workers, prefetch_factor, micro_batch, dp: the loader's settings, from which the lead
    is computed. dp_rank: this rank's place, for the audit. in_order: a new run first reads datasets in their own order
    (Schedule). pass_C: samples of each dataset, where one lays out several epochs as one order (default: an epoch).
    origin: where such datasets come from, JSON that a sidecar keeps. run_dir: rank zero writes `ado/` there.
    """

    def __init__(
        self, config: AdoConfig, domains: Domains, *, total_samples: int, block_size: int, world: World,
        run_dir: str | Path, num_workers: int = 0, prefetch_factor: int = 2, micro_batch: int = 1, dp: int = 1,
        dp_rank: int | None = None, pass_C=None, in_order: bool = False, origin: dict[str, Any] | None = None,
        log: Callable[[str], None] = print,
    ):  # fmt: skip
        self.config, self.domains, self.world = config.resolved(), domains, world
        self.block_size, self.total_samples, self._origin = block_size, total_samples, origin
        self.num_blocks = -(-total_samples // block_size)
        self.directory, self._log = Path(run_dir) / "ado", log
        # One more than the loader needs: under a batch ramp a step may straddle two blocks.
        self.lead = _lead(config, 1 + lead_blocks(num_workers, prefetch_factor, micro_batch, dp, block_size))
        fit_lag = config.fit_lag
        if fit_lag is None:  # a twentieth of the interval is minutes on a cluster; a fit takes seconds
            fit_lag = self.lead - 2 + max(1, config.refit_interval // 20)
        self.refits = Refits(self.config, fit_lag, self.lead)
        self.caps_C = caps_from_config(config, domains)
        self.schedule = Schedule(
            domains.lengths_C if pass_C is None else pass_C, block_size, self.num_blocks, config.seed,
            stream_id_C=domains.stream_id_C, in_order=in_order,
            min_rows=config.refit_interval + fit_lag + self.lead + 2,
            wait_deadline=config.wait_deadline,
        )  # fmt: skip
        num_domains = len(domains.names_K)
        rows = max(1, min(config.refit_interval + 1, METER_BYTES // (16 * num_domains)))
        self.meter = DomainMeter(
            rows, domains.domain_of_C, num_domains, contributes=world.contributes, device=world.device
        )
        self.draw_log: DrawLog | None = None  # with --ado-audit, from `start` on
        self._place = {} if dp_rank is None else {"dp_rank": dp_rank}
        self._steps: list[tuple[int, int, int]] = []  # measured, not yet reduced: (step, samples before, samples after)
        self._step = self._consumed = 0  # steps done, samples consumed by them
        self._saved: Saved | None = None
        if world.is_zero:
            self.planner = Planner(self.config, domains, block_size, self.caps_C)
            path = self.directory / "metrics.jsonl"
            self.recorder = Recorder(path, self.config, domains, self.planner, self.schedule)

    # ---------------------------------------------------------------- start and resume

    def start(self, consumed_samples: int = 0, *, step: int = 0, start_C: np.ndarray | None = None) -> None:
        """Check that all ranks agree, then plan or restore the first rows. Collective; before the first batch.

        consumed_samples and step: where the run stands (both 0, or those of the loaded sidecar). start_C: samples of
        each column that were drawn before by another blend: by one that left no sidecar, or only measured (shadow).
        Raises RanksDisagree, naming the rank and the option, and SidecarError for a position that the sidecar lacks.
        """
        self.world.require_same(self._facts())
        self._step, self._consumed = step, consumed_samples
        state = self.world.from_zero(lambda: self._go_on(start_C))
        if state is not None:
            rows_SxC, first = state["schedule"]["counts_SxC"], state["schedule"]["first_block"]
            state["schedule"]["counts_SxC"] = rows_SxC[: max(self.num_blocks - first, 0)]  # the run may be cut short
            self.schedule.stream_id_C[:] = state["stream_id_C"]
            self.schedule.load_state_dict(state["schedule"])
            if not self.world.is_zero:
                self.refits.restore(state["next_cut"], [(block, at, None) for block, at in state["cycles"]])
        self.world.from_zero(self._check_supply)
        if self.world.is_zero:
            self.recorder.metrics.start(step)
        self._publish()
        if self.world.is_zero:
            self._say_forecast()
        if self.config.audit:
            attempt = self.world.broadcast(time.time_ns())
            self.draw_log = DrawLog(
                self.directory / "audit", self.world.rank, attempt=attempt, step=step, seed=self.config.seed,
                lengths_C=self.schedule.length_C, start_C=self.schedule.cumulative(consumed_samples),
                world_size=self.world.size, **self._place,
            )  # fmt: skip

    def _check_supply(self) -> None:
        """Rank zero: UserError if the rest of the run cannot be fed under the caps."""
        spans = self.planner.policy.spans(self.schedule.planned, self.num_blocks)
        samples = [(weights_K, blocks * self.block_size) for weights_K, blocks in spans]
        check_supply(self.domains, self.caps_C, samples, self.planner.laid_out_C)

    def _say_forecast(self) -> None:
        """How often each domain will have been read at the end under the present weights, and when one runs out."""
        drawn_C = self.schedule.cumulative(self._consumed)
        left = self.num_blocks * self.block_size - self._consumed
        lines = forecast_lines(self.domains, self.weights_K(self._consumed), drawn_C, left, self.caps_C)
        more = [f"and {len(lines) - FORECASTS} more domains: see the report"] if len(lines) > FORECASTS else []
        for line in lines[:FORECASTS] + more:
            self._log(f"ado: under the present weights, {line}")

    def _go_on(self, start_C: np.ndarray | None) -> dict[str, Any] | None:
        """Rank zero: what the other ranks need where the run does not begin at its first sample."""
        if self._saved:
            return self._restore(start_C)
        return self._begin_at(start_C) if self._consumed else None

    def _restore(self, start_C: np.ndarray | None) -> dict[str, Any]:
        """Rank zero: take over the loaded sidecar; returns what the other ranks need of it. With start_C only what was
        measured: the rows of the sidecar are not what was drawn."""
        saved, meta = self._saved, self._saved.meta
        if meta["consumed_samples"] != self._consumed:
            raise SidecarError(
                f"the sidecar stands at {meta['consumed_samples']} samples but the checkpoint at {self._consumed}; "
                "resume from the sidecar that was written with this checkpoint"
            )
        if saved.changes:
            self._log(f"ado: goes on with other options or data than before, which were {'; '.join(saved.changes)}")
        self.planner.restore(saved)
        self.recorder.restore(saved.history())
        if start_C is not None:
            return self._begin_at(start_C)
        self.refits.restore(*saved.refits(self.refits.cut_after))
        return self._for_others(saved.schedule_state(), saved.stream_id_C())

    def _for_others(self, schedule: dict[str, Any], stream_id_C: np.ndarray) -> dict[str, Any]:
        """What the other ranks need of a restored rank zero."""
        cycles = [(cycle.block, cycle.step) for cycle in self.refits.cycles]
        return {
            "schedule": schedule, "stream_id_C": stream_id_C, "next_cut": self.refits.next_cut, "cycles": cycles
        }  # fmt: skip

    def _begin_at(self, start_C: np.ndarray | None) -> dict[str, Any]:
        """Rank zero: a stream that begins where another one, of which only start_C is known, ended."""
        block, rest = divmod(self._consumed, self.block_size)
        if start_C is None or rest:
            raise SidecarError(
                f"the checkpoint stands at {self._consumed} samples but has no sidecar of an adaptive run"
                + (f", and that is no multiple of the global batch {self.block_size}" if rest else "")
                + "; start from a checkpoint that has one, or from a static one at a whole batch"
            )
        start_C = np.asarray(start_C, dtype=np.int64)
        self.planner.begin_at(block, start_C)
        self.refits.restore(self.refits.cut_after(block - 1), [])
        schedule = self.schedule.state_dict(0) | {"first_block": block, "start_C": start_C}
        return self._for_others(schedule, self.domains.stream_id_C)

    def _facts(self) -> dict[str, Any]:
        """What every rank must have started with alike, named so that a message can say what differs."""
        return self.config.facts() | {
            "data": self.domains.fingerprint(),
            "number of samples": self.total_samples, "block size": self.block_size, "lead": self.lead,
            "fit lag": self.refits.fit_lag,
        }  # fmt: skip

    def load(self, path: str | Path) -> None:
        """Read a sidecar; `start` then goes on from it. Collective. Raises SidecarError on every rank alike."""
        self.world.from_zero(lambda: self._read(path))

    def _read(self, path: str | Path) -> None:
        self._saved = Saved(
            *read_sidecar(path), path, config=self.config, domains=self.domains, block_size=self.block_size
        )

    # ---------------------------------------------------------------- the loop

    def begin_step(self, step: int) -> None:
        """Start an attempt of training step `step` (0-based); a second attempt replaces the first."""
        if len(self._steps) >= self.meter.rows:
            self._reduce()
        self.meter.begin(len(self._steps))

    def end_step(self, step: int, consumed_samples: int, skipped: bool = False) -> None:
        """After the optimizer step, before the save block. skipped: the update did not happen, forget its losses."""
        if skipped:
            self.meter.discard()
        self._steps.append((step, self._consumed, consumed_samples))
        self._step, self._consumed = step + 1, consumed_samples
        if self.refits.fit_lag == 0 and consumed_samples % self.block_size:
            raise UserError(
                f"--ado-fit-lag 0 needs steps of whole blocks, but step {step} ended at sample {consumed_samples} and "
                f"a block has {self.block_size}; under a batch ramp give --ado-fit-lag 1 or more"
            )
        blocks_done = consumed_samples // self.block_size
        while self.refits.next_cut < blocks_done:
            self._cut()
        while (cycle := self.refits.pop_due(blocks_done)) is not None:
            self._apply(cycle)

    def _cut(self) -> None:
        """Reduce, and start the fit on the history up to here."""
        self._reduce()
        fits = self.world.is_zero and self.config.refit_at(self.refits.next_cut)
        self.refits.cut(self._step, self.recorder.history.cut(self._step) if fits else None)

    def _apply(self, cycle: Cycle) -> None:
        """Put the cycle's laws in force and publish the rows that they decide."""
        if cycle.fit is not None:
            outcome = cycle.fit.result(self.config.wait_deadline)
            if outcome.laws is None:
                self._log(f"ado: the fit at block {cycle.block} failed, the old laws stay in force: {outcome.reason}")
            else:
                self.planner.laws = outcome.laws.merged(self.planner.laws)
            self.recorder.write_fit(self._step, cycle.step, self.refits.applies_at(cycle.block), outcome)
            if outcome.waited > 1.0:
                self._log(f"ado: the training waited {outcome.waited:.1f} s for the fit of block {cycle.block}")
        self._publish()

    def _publish(self) -> None:
        """Plan on rank zero, publish on every rank, and compare, the rows up to the horizon."""
        first, stop = self.schedule.planned, min(self.refits.horizon, self.num_blocks)
        if stop <= first:
            return
        rows_SxC = self.world.from_zero(lambda: self.planner.plan(stop - first))
        self.schedule.publish(first, rows_SxC)
        digest_S = np.array([self.schedule.row_digest(b) for b in range(first, stop)], dtype=np.int64)
        self.world.require_same_rows(first, digest_S)

    def _reduce(self) -> None:
        """One sum over the world of the steps since the last; rank zero appends them to history and metrics."""
        if not self._steps:
            return
        sums_TxKx2 = self.world.sum_(self.meter.take(len(self._steps)))
        if self.world.is_zero:
            self.recorder.record(self._steps, sums_TxKx2.cpu().numpy())
        self._steps.clear()

    def weights_K(self, consumed_samples: int) -> np.ndarray:
        """The weights of the block that holds the next sample. Rank zero knows them exactly, others by their row."""
        block = min(consumed_samples // self.block_size, self.num_blocks - 1)
        if self.world.is_zero:
            return self.planner.weights_K(block)
        return self.domains.by_domain(self.schedule.row(block)) / self.block_size

    # ---------------------------------------------------------------- checkpoints

    def save(self, path: str | Path, step: int, consumed_samples: int, nonce: str | None = None) -> None:
        """Write the sidecar of the checkpoint after `step` steps. Collective; every rank sees a failure.

        nonce: a mark of this save that the checkpoint keeps, too; the sidecar has it under this name."""
        self._reduce()
        problem = None
        if self.world.is_zero:
            self.recorder.flush(step, consumed_samples)
            try:
                write_sidecar(path, *self._sidecar(step, consumed_samples, nonce))
                self._export_static(consumed_samples)
            except OSError as error:
                problem = f"the sidecar {path} could not be written: {error}"
        if self.draw_log is not None:
            self.draw_log.flush()
        problem = self.world.broadcast(problem)
        if problem is not None:
            raise UserError(problem)

    def _sidecar(
        self, step: int, consumed_samples: int, nonce: str | None
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        first_free_block = -(-consumed_samples // self.block_size)
        return pack(
            {"step": step, "consumed_samples": consumed_samples, "block_size": self.block_size,
             "next_cut": self.refits.next_cut, "origin": self._origin, "nonce": nonce},
            config=self.config, domains=self.domains, schedule=self.schedule.state_dict(consumed_samples),
            planner=self.planner.to_arrays(first_free_block), history=self.recorder.history.to_arrays(),
            cycles=[(c.block, c.step, c.history) for c in self.refits.cycles],
        )  # fmt: skip

    def _export_static(self, consumed_samples: int) -> None:
        if self.config.export_static is not None and consumed_samples > 0:
            prefixes_C, drawn_C = self.domains.prefixes_C, self.schedule.cumulative(consumed_samples)
            atomic_write(self.config.export_static, blend_text(prefixes_C, drawn_C).encode())
            if self.schedule.in_order:
                columns = not_continued(self.domains.lengths_C, drawn_C, self.total_samples)
                self._log(f"ado: {self.config.export_static}: {outlook(prefixes_C, columns, consumed_samples)}")

    def close(self) -> None:
        """Write what is measured, stop fits under way. Collective."""
        self._reduce()
        if self.world.is_zero:
            self.recorder.flush(self._step, self._consumed)
            self.refits.cancel()
        if self.draw_log is not None:
            self.draw_log.close()


def _lead(config: AdoConfig, bound: int) -> int:
    if config.lead is None:
        return bound
    if config.lead < bound:
        raise UserError(
            f"--ado-lead {config.lead} is too small: the loader's workers may hold samples of {bound} blocks; give at "
            f"least {bound}, or fewer workers or prefetched batches"
        )
    return config.lead
