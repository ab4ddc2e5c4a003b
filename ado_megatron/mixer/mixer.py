"""The loop on all ranks: plans rows on rank zero, measures on every rank, refits beside the training.

In blocks (a block is a global batch): after block t a *snapshot* is taken, that is, the interval's sums are reduced
over the world and rank zero hands the history up to t to a fit process. The laws that come back decide the rows from
block t + 1 + fit_lag on. These rows are published `lookahead` blocks before their first reader may ask for them
(refit_schedule.py).

Collectives: one sum at a snapshot or checkpoint, one broadcast and one 16-byte comparison at a publication. None per
step.

Legend: K domains, C datasets (one per prefix), S rows, T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.blend.domains import Domains
from ado_megatron.blend.epoch_caps import caps_from_config
from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.measure.draw_log import DrawLog, next_attempt
from ado_megatron.measure.meter import DomainMeter
from ado_megatron.mixer.loader import LoaderSettings, check_shared_memory
from ado_megatron.mixer.node_table import share_table
from ado_megatron.mixer.owner_lock import OwnerLock
from ado_megatron.mixer.rank_tokens import sum_over_world
from ado_megatron.mixer.rank_zero import RankZero
from ado_megatron.mixer.refit_schedule import PendingRefit, RefitSchedule, fit_deadline_of, fit_lag_of, lookahead_of
from ado_megatron.mixer.resume import Saved
from ado_megatron.mixer.sidecar import read_sidecar, write_sidecar
from ado_megatron.mixer.stop_notice import StopNotice
from ado_megatron.mixer.world import World
from ado_megatron.stream.schedule import Schedule


class Mixer:
    """The mixture of one run, on every rank.

    Order of calls: `load` (when resuming), `start`, then for every step `begin_step`, `meter.add` where the loss is
    computed, `end_step` before the framework's save block, `save` with each checkpoint; `close` at the end. All but
    `meter.add` are called by all ranks in the same order.

    domains: the same on all ranks. total_samples: samples that the run may draw. block_size: the global batch (under a
    batch ramp the final one). run_dir: rank zero writes `ado/` there. loader: what is in flight. samples_per_pass,
    in_order: how a framework's own datasets are read (Schedule): samples of each dataset where it lays out several
    epochs as one order (default: an epoch), and whether the first is read in the dataset's order. origin: where such
    datasets come from, JSON that a sidecar keeps.
    """

    def __init__(
        self, config: AdoConfig, domains: Domains, *, total_samples: int, block_size: int, world: World,
        run_dir: str | Path, loader: LoaderSettings | None = None, samples_per_pass: ArrayLike | None = None,
        in_order: bool = False, origin: dict[str, Any] | None = None, log: Callable[[str], None] = print,
    ):  # fmt: skip
        self._given, self.config, self.domains, self.world = config, config.resolved(), domains, world
        self.loader = loader or LoaderSettings()
        self.block_size, self.total_samples, self._origin, self._log = block_size, total_samples, origin, log
        self.num_blocks = -(-total_samples // block_size)
        self.directory = Path(run_dir) / "ado"
        self.lookahead = lookahead_of(config, self.loader.lookahead(block_size))
        self.refits = RefitSchedule(self.config, fit_lag_of(config, self.lookahead), self.lookahead)
        self._piece = max(self.refits.fit_lag + 1, config.log_interval)  # rows published at a time, about
        self.caps_C = caps_from_config(config, domains)
        self.schedule = Schedule(
            domains.lengths_C if samples_per_pass is None else samples_per_pass, block_size, self.num_blocks,
            config.seed, stream_id_C=domains.stream_id_C, in_order=in_order,
            min_rows=config.refit_interval + self.refits.fit_lag + self.lookahead + 2,
            wait_deadline=config.wait_deadline, own_table=world.size == 1,
        )  # fmt: skip
        self.meter = DomainMeter.of_steps(config.refit_interval, domains.domain_of_C, world.contributes, world.device)
        self.draw_log: DrawLog | None = None  # with --ado-audit, from `start` on
        self.rank_zero: RankZero | None = None  # on rank zero, from the first call on that needs it
        self._lock, self._stop = OwnerLock(self.directory), StopNotice(world.store())
        self._steps: list[tuple[int, int, int]] = []  # measured, not yet reduced: (step, samples before, samples after)
        self._step = self._consumed = 0  # steps done, samples consumed by them
        self._saved: Saved | None = None
        self.last_saved: str | None = None  # the newest checkpoint of this run that is whole, for messages

    def _on_zero(self) -> RankZero:
        """Rank zero's memory, made at the first call; what is wrong with its options shows there."""
        if self.rank_zero is None:
            config = self.config if self._saved is None else self._saved.config
            self.rank_zero = RankZero(
                config, self.domains, self.schedule, self.caps_C, self.directory, self.total_samples, self._log
            )
        return self.rank_zero

    # ---------------------------------------------------------------- start and resume

    def load(self, path: str | Path, token: str | None = None) -> None:
        """Read a sidecar; `start` then goes on from it. Collective. Raises SidecarError on every rank alike.

        token: what `save` returned for the checkpoint that is being loaded (None: the checkpoint keeps none).
        """
        self.world.run_on_rank_zero(lambda: self._read(path, token))

    def _read(self, path: str | Path, token: str | None) -> None:
        meta, arrays = read_sidecar(path, token)
        self._saved = Saved(meta, arrays, path, config=self._given, domains=self.domains, block_size=self.block_size)

    def start(self, consumed_samples: int = 0, *, step: int = 0, start_C: np.ndarray | None = None) -> None:
        """Check that all ranks agree, then plan or restore the first rows. Collective; before the first batch.

        consumed_samples and step: where the run stands (both 0, or those of the loaded sidecar). start_C: samples of
        each dataset that were drawn before by another blend: by one that left no sidecar, or only measured (shadow).
        Raises on every rank: RanksDisagree, naming the rank and the option; SidecarError for a position that the
        sidecar lacks; UserError for options that cannot be met, a directory that another run writes, or too little
        shared memory.
        """
        self.world.require_same(self._facts())
        self._step, self._consumed = step, consumed_samples
        check_shared_memory(self.loader, self.world)
        self.world.run_on_rank_zero(self._take_directory)
        state = self.world.run_on_rank_zero(lambda: self._go_on(start_C))
        share_table(self.world, self.schedule, lambda: self._restore(state))
        self.world.run_on_rank_zero(lambda: self._on_zero().check_supply())
        self.world.run_on_rank_zero(lambda: self._on_zero().console.start(step))
        self._publish()
        self.world.run_on_rank_zero(lambda: self._on_zero().say_forecast(consumed_samples))
        if self.config.audit:
            self._open_draw_log(step, consumed_samples)

    def _take_directory(self) -> None:
        """Rank zero: hold the run directory alone from here on."""
        try:
            self._lock.acquire(lambda text: self._log(f"ado: {text}"))
        except OSError as error:
            raise UserError(f"{self.directory} cannot be written: {error.strerror or error}") from error

    def _go_on(self, start_C: np.ndarray | None) -> dict[str, Any] | None:
        """Rank zero: what the other ranks need where the run does not begin at its first sample."""
        if self._saved:
            return self._on_zero().restore(self._saved, self._consumed, start_C, self.refits)
        return self._on_zero().begin_at(self._consumed, start_C, self.refits) if self._consumed else None

    def _restore(self, state: dict[str, Any] | None) -> None:
        """Schedule and refits where the run goes on; nothing where it begins (None)."""
        if state is not None:
            self.schedule.stream_id_C[:] = state["stream_id_C"]
            self.schedule.load_state_dict(state["schedule"])
            self.refits.restore(state["next_snapshot"], state["pending"])
            self.refits.add(state["extra"], self._consumed // self.block_size)

    def _open_draw_log(self, step: int, consumed_samples: int) -> None:
        attempt = self.world.run_on_rank_zero(lambda: next_attempt(self.directory / "audit"))
        place = {} if self.loader.dp_rank is None else {"dp_rank": self.loader.dp_rank}
        self.draw_log = DrawLog(
            self.directory / "audit", self.world.rank, attempt=attempt, step=step, seed=self.config.seed,
            lengths_C=self.schedule.length_C, start_C=self.schedule.cumulative(consumed_samples),
            stream_id_C=self.schedule.stream_id_C, first_sample=consumed_samples, world_size=self.world.size, **place,
        )  # fmt: skip

    def _facts(self) -> dict[str, Any]:
        """What every rank must have started with alike, named so that a message can say what differs."""
        return self.config.facts() | {
            "data": self.domains.fingerprint(), "number of samples": self.total_samples,
            "block size": self.block_size, "lookahead": self.lookahead, "fit lag": self.refits.fit_lag,
        }  # fmt: skip

    # ---------------------------------------------------------------- the loop

    def begin_step(self, step: int) -> None:
        """Start an attempt of training step `step` (0-based); a second attempt replaces the first."""
        if len(self._steps) >= self.meter.rows:
            self._reduce()
        self.meter.begin(len(self._steps))

    def end_step(self, step: int, consumed_samples: int, skipped: bool = False) -> None:
        """After the optimizer step, before the save block. skipped: the update did not happen, forget its losses.

        Raises UserError on every rank, after the same step, where one of them can no longer write its draw log, or
        where another run has taken the directory over.
        """
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
        if self.world.is_zero:  # no other rank need know
            self._on_zero().look_for_requests(self._step, blocks_done, self.refits)
        while self.refits.next_snapshot < blocks_done:
            self._snapshot()
        while (refit := self.refits.pop_due(blocks_done)) is not None:
            self._apply(refit)
        if self.schedule.planned < min(blocks_done + self.lookahead, self.refits.planned_until, self.num_blocks):
            self._publish()
        self._end_if_asked(step)

    def _end_if_asked(self, step: int) -> None:
        """Post what keeps this rank from going on, and leave with all others where one of them posted something."""
        if self.draw_log is not None and self.draw_log.failure is not None:
            self._stop.post(step, f"rank {self.world.rank}: {self.draw_log.failure}; {self._where_to_resume()}")
        if self._lock.lost:
            self._stop.post(step, f"another run has taken {self.directory} over; this one ends")
        sentence = self._stop.due(step)
        if sentence is not None:
            raise UserError(sentence)

    def _where_to_resume(self) -> str:
        return "mend it and resume from the last whole checkpoint" + (f", {self.last_saved}" if self.last_saved else "")

    def _snapshot(self) -> None:
        """Reduce, and start the fit on the history up to here."""
        self._reduce()
        refit = self.refits.take(self._step)
        if self.world.is_zero:
            self._on_zero().begin_fit(refit, self.refits)

    def _apply(self, refit: PendingRefit) -> None:
        """Put the snapshot's laws in force and publish the rows that they decide."""
        applies_at, deadline = self.refits.applies_at(refit.block), fit_deadline_of(self.config, self.world.timeout())
        self._publish(lambda: self._on_zero().finish_fit(refit, self._step, applies_at, deadline))

    def _publish(self, before: Callable[[], None] = lambda: None) -> None:
        """Plan on rank zero, publish on every rank, and compare, the next rows. before: done on rank zero.
        Rows that are published never change, so only those are that readers need soon: a change by hand (console.py)
        holds from the first that is not. On this occasion all ranks hear of the snapshots that one has asked for.
        """
        first, blocks_done = self.schedule.planned, self._consumed // self.block_size

        def plan() -> tuple[np.ndarray | None, list[int]]:
            before()
            self.refits.add(extra := self._on_zero().console.take_refits(), blocks_done)
            until = min(self.refits.planned_until, self.num_blocks)
            stop = min(until, blocks_done + self.lookahead + self._piece)
            return (self._on_zero().plan(stop - first, until) if stop > first else None), extra

        rows_SxC, extra = self.world.run_on_rank_zero(plan)
        self.refits.add(extra, blocks_done)
        if rows_SxC is not None:
            self.world.require_same_rows(first, self.schedule.publish(first, rows_SxC))

    def _reduce(self) -> None:
        """One sum over the world of the steps since the last; rank zero appends them to history and metrics."""
        if not self._steps:
            return
        sums = sum_over_world(self.world, self.meter.take(len(self._steps)))
        if self.world.is_zero:
            self._on_zero().recorder.record(self._steps, *(one.cpu().numpy() for one in sums))
        self._steps.clear()

    def weights_K(self, consumed_samples: int) -> np.ndarray:
        """The weights of the block that holds the next sample. Rank zero knows them exactly, others by their row."""
        block = min(consumed_samples // self.block_size, self.num_blocks - 1)
        if self.world.is_zero:
            return self._on_zero().planner.weights_K(block)
        return self.domains.by_domain(self.schedule.row(block)) / self.block_size

    # ---------------------------------------------------------------- checkpoints

    def save(self, path: str | Path, step: int, consumed_samples: int) -> str:
        """Write the sidecar of the checkpoint after `step` steps. Collective. Returns its token, the same on every
        rank: a checkpoint that keeps it can only be resumed with this sidecar.

        Raises UserError on every rank, with rank, path and reason, where one could not write its sidecar or draw log.
        """
        self._reduce()
        token = ""

        def write() -> None:
            nonlocal token
            if self.world.is_zero:
                token = write_sidecar(path, *self._on_zero().pack(step, consumed_samples, self.refits, self._origin))
            if self.draw_log is not None:
                self.draw_log.flush()

        if self.world.is_zero:
            self._on_zero().recorder.flush(step, consumed_samples)
        self.world.require_success(write, self._where_to_resume)
        if self.world.is_zero:
            self._on_zero().export_static(consumed_samples)
        self.last_saved = f"of step {step}"
        return self.world.broadcast(token)

    def close(self) -> None:
        """Write what is measured, stop fits, give the directory back. Collective. UserError as of `save`."""
        self._reduce()
        if self.rank_zero is not None:
            self.rank_zero.recorder.flush(self._step, self._consumed)
            self.rank_zero.recorder.metrics.close()
        self.cancel_fits()
        if self.draw_log is not None:
            self.world.require_success(self.draw_log.close, self._where_to_resume)
        self._lock.release()

    def cancel_fits(self) -> None:
        """Stop fits under way, and remove their files: where `close` does not come any more, since the run fails."""
        if self.rank_zero is not None:
            self.rank_zero.cancel_fits()
