"""Rank zero's memory of the mixture: what was measured, the laws and the fits under way, the rows that they decide.

Nothing here talks to another process of the run; the mixer carries what is decided here to the other ranks.

Legend: K domains, C datasets (one per prefix), S rows (blocks), T steps.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ado_megatron.blend.domains import Domains
from ado_megatron.blend.epoch_caps import forecast_lines
from ado_megatron.blend.static_export import blend_text, describe_continuation, not_continued
from ado_megatron.config import AdoConfig
from ado_megatron.errors import SidecarError
from ado_megatron.files import atomic_write
from ado_megatron.measure.prometheus import check_prometheus
from ado_megatron.mixer import refit_process
from ado_megatron.mixer.alarm_desk import AlarmDesk
from ado_megatron.mixer.console import Console
from ado_megatron.mixer.planner import Planner
from ado_megatron.mixer.recorder import Recorder
from ado_megatron.mixer.refit_process import request
from ado_megatron.mixer.refit_schedule import PendingRefit, RefitSchedule
from ado_megatron.mixer.resume import Saved, pack
from ado_megatron.mixer.sidecar import read_sidecar
from ado_megatron.npz import unnest
from ado_megatron.scaling_law.fit_process import PROGRAM, Fit
from ado_megatron.scaling_law.transfer_option import number, parse_transfer
from ado_megatron.steer.journal import extra_refits, values_of
from ado_megatron.stream.schedule import Schedule

FORECASTS = 24  # domains that the start of a run speaks of
LOG = logging.getLogger(__name__)


class RankZero:
    """Plans rows, keeps history and metrics, runs fits, restores and packs all of it.

    schedule: this rank's own, read only. caps_C: samples of each dataset that the run may draw (None: no cap). run:
    RUN/ado. total_samples: of the whole run. log: says a line to the user.
    """

    def __init__(
        self, config: AdoConfig, domains: Domains, schedule: Schedule, caps_C: np.ndarray | None, run: Path,
        total_samples: int, log: Callable[[str], None],
    ):  # fmt: skip
        self.config, self.domains, self.schedule, self.caps_C = config, domains, schedule, caps_C
        self._run, self._total_samples, self._log = run, total_samples, log
        self.num_blocks = schedule.num_blocks
        check_prometheus(config.prometheus)
        self.planner = Planner(config, domains, schedule.block_size, caps_C, schedule.num_blocks)
        self.recorder = Recorder(run / "metrics.jsonl", config, domains, self.planner, schedule)
        self._alarms = AlarmDesk(self.planner, schedule, self.recorder, log)
        self.console = Console(run, self.planner, self.recorder, log)
        self._transfer_K = transfers(config, domains)
        self._rows_SxC = np.zeros((0, len(domains.prefixes_C)), dtype=np.int32)  # laid out, not yet published
        self._planned: dict[str, np.ndarray] | None = None  # rows to come, as a fit's process has planned them
        self._fits: dict[int, tuple[dict[str, np.ndarray], Fit]] = {}  # block → the history that is fitted, its fit

    # ---------------------------------------------------------------- rows and laws

    def plan(self, num_rows: int, until: int) -> np.ndarray:
        """The next rows to publish, counts_SxC (int32), under the laws in force. until: the first row whose laws are
        not known yet; all rows before it are laid out at once."""
        if num_rows > len(self._rows_SxC):
            self._rows_SxC = np.concatenate([self._rows_SxC, self._lay_out(until - self.planner.next_block)])
        rows_SxC, self._rows_SxC = self._rows_SxC[:num_rows], self._rows_SxC[num_rows:]
        return rows_SxC

    def _lay_out(self, num_rows: int) -> np.ndarray:
        """The planner's next rows, as a fit's process has planned them or else planned here."""
        rows_SxC = None if self._planned is None else self.planner.adopt(self._planned, num_rows)
        self._planned = None
        if rows_SxC is None:
            rows_SxC = self.planner.plan(num_rows)
        for note in self.planner.take_notes():
            self._log(f"ado: {note}")
        return rows_SxC

    def look_for_requests(self, step: int, blocks_done: int, refits: RefitSchedule) -> None:
        """Grant or refuse what operators ask for; rows that are laid out and not yet published are then void.

        step, blocks_done: done so far. Looks every log_interval steps, and where a snapshot is due.
        """
        if step % self.config.log_interval and refits.next_snapshot >= blocks_done:
            return
        if self.console.look(step, blocks_done, self.schedule, refits):
            self.planner.rewind(self.schedule.planned)
            self._rows_SxC = self._rows_SxC[:0]

    def begin_fit(self, refit: PendingRefit, refits: RefitSchedule) -> None:
        """Start the fit of a snapshot on the history up to it, where one is due: by the options, by what an operator
        has made of them, or because one asked for it."""
        self._alarms.mark(refit.block)
        regimes = self.planner.regimes
        wanted = refit.block in extra_refits(regimes.entries)
        if wanted or self.config.refit_at(refit.block) or regimes.at(refit.block).config.refit_at(refit.block):
            self._start_fit(refit.block, self.recorder.history.snapshot(refit.step), refits)

    def _start_fit(self, block: int, history: dict[str, np.ndarray], refits: RefitSchedule) -> None:
        """The rows under its laws are planned in the fit's process, where they follow those that are planned now."""
        first, stop = refits.applies_at(block), min(refits.applies_at(refits.snapshot_after(block)), self.num_blocks)
        more = None
        if refits.fit_lag > 0 and first == self.planner.next_block < stop:
            more = request(self.planner, stop - first)
        fit = Fit(
            history, self.config, self._transfer_K, directory=self._run / "fits",
            program=PROGRAM if more is None else refit_process.PROGRAM, more=more,
        )  # fmt: skip
        self._fits[block] = history, fit

    def finish_fit(self, refit: PendingRefit, step: int, applies_at: int, deadline: float) -> None:
        """Put the laws of a snapshot in force; where it has none, or its fit failed, the old ones stay.

        step: steps done now. applies_at: the first block under the laws. deadline: seconds that the fit may still take.
        """
        history, fit = self._fits.pop(refit.block, ({}, None))
        if fit is None:
            self._alarms.look(refit.step, refit.block, self.recorder.history.snapshot(refit.step), None, None)
            return
        outcome = fit.result(deadline)
        if outcome.laws is None:
            self._log(f"ado: the fit at block {refit.block} failed, the old laws stay in force: {outcome.reason}")
        else:
            self.planner.laws = outcome.laws.merged(self.planner.laws)
            self._planned = outcome.more
        self.recorder.write_fit(step, refit.step, applies_at, outcome)
        failure = outcome.reason if outcome.laws is None else None
        self._alarms.look(refit.step, refit.block, history, outcome.laws, failure)
        if outcome.waited > 1.0:
            self._log(f"ado: the training waited {outcome.waited:.1f} s for the fit of block {refit.block}")

    def cancel_fits(self) -> None:
        """Stop the fits under way."""
        for _, fit in self._fits.values():
            fit.cancel()
        self._fits.clear()

    # ---------------------------------------------------------------- start and resume

    def restore(self, saved: Saved, consumed_samples: int, start_C: np.ndarray | None, refits: RefitSchedule) -> dict:
        """Go on from a sidecar; returns what the other ranks need of it. With start_C only from what was measured: the
        rows of the sidecar are not what was drawn. Raises SidecarError if it stands elsewhere."""
        if saved.meta["consumed_samples"] != consumed_samples:
            raise SidecarError(
                f"the sidecar stands at {saved.meta['consumed_samples']} samples but the checkpoint at "
                f"{consumed_samples}; resume from the sidecar that was written with this checkpoint"
            )
        if saved.changes:
            self._log(f"ado: goes on with other options or data than before, which were {'; '.join(saved.changes)}")
        self.console.restore(saved)
        self.planner.restore(saved)
        self.recorder.restore(saved)
        self._alarms.restore(saved)
        if start_C is not None:
            return self.begin_at(consumed_samples, start_C, refits)
        next_snapshot, pending = saved.refits(refits.snapshot_after)
        refits.restore(next_snapshot, [(block, step) for block, step, _ in pending])
        refits.add(extra_refits(self.planner.regimes.entries), consumed_samples // self.schedule.block_size)
        for block, _, history in pending:
            if history is not None:
                self._start_fit(block, history, refits)
        return self._for_others(saved.schedule_state(), saved.stream_id_C(), refits)

    def begin_at(self, consumed_samples: int, start_C: np.ndarray | None, refits: RefitSchedule) -> dict:
        """A stream that begins where another one, of which only start_C is known, ended; returns what the other ranks
        need. Raises SidecarError inside a block, or where start_C is not known."""
        block, rest = divmod(consumed_samples, self.schedule.block_size)
        if start_C is None or rest:
            raise SidecarError(
                f"the checkpoint stands at {consumed_samples} samples but has no sidecar of an adaptive run"
                + (f", and that is no multiple of the global batch {self.schedule.block_size}" if rest else "")
                + "; start from a checkpoint that has one, or from a static one at a whole batch"
            )
        start_C = np.asarray(start_C, dtype=np.int64)
        self.planner.begin_at(block, start_C)
        refits.restore(refits.snapshot_after(block - 1), [])
        schedule = self.schedule.state_dict(0) | {"first_block": block, "start_C": start_C}
        return self._for_others(schedule, self.domains.stream_id_C, refits)

    def _for_others(self, schedule: dict[str, Any], stream_id_C: np.ndarray, refits: RefitSchedule) -> dict:
        """What the other ranks need of a restored rank zero; of the rows those that this run still has."""
        rows = max(self.schedule.num_blocks - schedule["first_block"], 0)  # the run may be cut short
        schedule = schedule | {"counts_SxC": schedule["counts_SxC"][:rows]}
        pending = [(refit.block, refit.step) for refit in refits.pending]
        return {
            "schedule": schedule, "stream_id_C": stream_id_C, "next_snapshot": refits.next_snapshot,
            "pending": pending, "extra": refits.extra,
        }  # fmt: skip

    def check_supply(self) -> None:
        """UserError if the rest of the run cannot be fed under the caps."""
        self.planner.regimes.check_supply(self.schedule.planned, self.planner.laid_out_C)

    def say_forecast(self, consumed_samples: int) -> None:
        """How often each domain will have been read at the end under the present weights, and when one runs out."""
        weights_K = self.planner.weights_K(consumed_samples // self.schedule.block_size)
        left = self.schedule.num_samples - consumed_samples
        caps_C = self.planner.regimes.at(self.schedule.planned).caps_C
        lines = forecast_lines(self.domains, weights_K, self.schedule.cumulative(consumed_samples), left, caps_C)
        more = [f"and {len(lines) - FORECASTS} more domains: see the report"] if len(lines) > FORECASTS else []
        for line in lines[:FORECASTS] + more:
            self._log(f"ado: under the present weights, {line}")

    # ---------------------------------------------------------------- checkpoints

    def pack(self, step: int, consumed_samples: int, refits: RefitSchedule, origin: dict[str, Any] | None) -> tuple:
        """(meta, arrays) of the sidecar of the checkpoint after `step` steps. origin: as of Mixer."""
        block_size = self.schedule.block_size
        pending = [(refit.block, refit.step, self._fits.get(refit.block, (None,))[0]) for refit in refits.pending]
        return pack(
            {"step": step, "consumed_samples": consumed_samples, "block_size": block_size,
             "next_cut": refits.next_snapshot, "origin": origin, "journal": values_of(self.planner.regimes.entries),
             "save": secrets.token_hex(8)},  # else two saves that hold the same would have the same token
            config=self.config, domains=self.domains, schedule=self.schedule.state_dict(consumed_samples),
            planner=self.planner.to_arrays(-(-consumed_samples // block_size), self.schedule.planned),
            history=self.recorder.history.to_arrays(), alarms=self._alarms.to_arrays(), pending=pending,
        )  # fmt: skip

    def export_static(self, consumed_samples: int) -> None:
        """Write the mixture so far as a blend of fixed weights, where the user asked for it."""
        path, prefixes_C = self.config.export_static, self.domains.prefixes_C
        if path is None or consumed_samples <= 0:
            return
        drawn_C = self.schedule.cumulative(consumed_samples)
        try:
            atomic_write(path, blend_text(prefixes_C, drawn_C).encode())
        except OSError as error:  # no state of the run: the next checkpoint writes it anew
            LOG.warning("--ado-export-static %s could not be written: %s", path, error)
            return
        if self.schedule.in_order:
            datasets = not_continued(self.domains.lengths_C, drawn_C, self._total_samples)
            self._log(f"ado: {path}: {describe_continuation(prefixes_C, datasets, consumed_samples)}")


def transfers(config: AdoConfig, domains: Domains) -> np.ndarray | None:
    """transfer_K where --ado-transfer names a file; None where the options say it themselves. Raises UserError."""
    if config.transfer is None or number(config.transfer) is not None:
        return None
    return parse_transfer(config.transfer, domains.names_K, _saved_transfers)


def _saved_transfers(path: str) -> tuple[list[str], np.ndarray]:
    """(domain names, transfer_K) of the sidecar of an earlier run. Raises SidecarError."""
    meta, arrays = read_sidecar(path)
    laws = unnest("planner/", arrays)
    if "laws.transfer_K" not in laws:
        raise SidecarError(f"the sidecar {path} holds no laws with a transfer; give one of a run that estimated it")
    return meta["names_K"], laws["laws.transfer_K"]
