"""Rank zero's end of `ado-megatron set`: finds requests, grants or refuses them, keeps the journal.

Legend: K domains, C datasets (one per prefix).
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ado_megatron.blend.epoch_caps import forecast_lines
from ado_megatron.errors import UserError
from ado_megatron.mixer.planner import Planner
from ado_megatron.mixer.recorder import Recorder
from ado_megatron.mixer.refit_schedule import RefitSchedule
from ado_megatron.mixer.resume import Saved
from ado_megatron.policy.registry import WITHOUT_LAWS
from ado_megatron.steer import journal
from ado_megatron.steer.check import check_bounds, what_of
from ado_megatron.steer.journal import Entry
from ado_megatron.steer.requests import Inbox, Request
from ado_megatron.steer.steering import BY_DOMAIN
from ado_megatron.stream.schedule import Schedule

LOG = logging.getLogger(__name__)
_WARNINGS = 5  # domains that an answer says to run out


@dataclasses.dataclass(frozen=True)
class _Now:
    """Where the run stands. published: the first block that no rank has planned."""

    step: int
    blocks_done: int
    published: int
    schedule: Schedule
    refits: RefitSchedule


class Console:
    """Requests in, entries of the journal out. run: RUN/ado. log: says a line to the user.

    The journal is that of the planner; what is granted here holds from a block on of which no row is published, so the
    planner lays out anew what it has laid out beyond.
    """

    def __init__(self, run: Path, planner: Planner, recorder: Recorder, log: Callable[[str], None]):
        self._planner, self._recorder, self._log = planner, recorder, log
        self._regimes = planner.regimes
        self._path, self._inbox = run / journal.NAME, Inbox(run)
        self._refits: list[int] = []  # blocks after which snapshots are wanted, not yet told to the other ranks
        self._times: deque[tuple[float, int]] = deque(maxlen=8)  # (seconds, steps done) at the last looks

    # ---------------------------------------------------------------- start and resume

    def restore(self, saved: Saved) -> None:
        """The journal of a sidecar, and what was granted after it by the same run before it was killed."""
        entries = journal.entries_of(saved.meta["journal"], saved.path) if "journal" in saved.meta else []
        try:
            later = journal.read_journal(self._path)
        except UserError as error:
            LOG.warning("%s; the run goes on with the journal of its sidecar", error)
            later = []
        planned = saved.meta["schedule"]["first_block"] + len(saved.arrays["schedule/counts_SxC"])
        if later[: len(entries)] == entries and all(e.block >= planned for e in later[len(entries) :]):
            entries = later
        self._regimes.entries[:] = entries
        if entries:
            self._log(f"ado: goes on with {len(entries)} changes by hand, as `ado-megatron set RUN --list` shows")
        steering = journal.in_force(entries, planned)
        gone = {name for values in BY_DOMAIN for name in getattr(steering, values)} - set(self._planner.domains.names_K)
        if gone:
            names = ", ".join(sorted(gone))
            self._log(f"ado: not in this blend, so what was set of them by hand does not count: {names}")
        try:
            check_bounds(steering, self._planner.domains)
        except UserError as error:
            self._log(f"ado: with this blend the shares that were set by hand cannot be kept and do not count: {error}")

    def start(self, step: int) -> None:
        """Begin to write and to listen, after `step` steps."""
        self._recorder.start(step)
        for entry in self._regimes.entries:
            if entry.step > step:  # granted later than the checkpoint: its record is gone with the steps
                self._record(entry, step)
        try:
            if self._regimes.entries or self._path.exists():  # a journal of a run that went before is no more
                journal.write_journal(self._path, self._regimes.entries)
            self._inbox.open()
        except OSError as error:
            LOG.warning("%s cannot be written (%s), so nobody can change this run", error.filename, error.strerror)

    # ---------------------------------------------------------------- requests

    def look(self, step: int, blocks_done: int, schedule: Schedule, refits: RefitSchedule) -> bool:
        """Answer the requests that came since the last look; True if the journal has grown. Raises nothing.

        step, blocks_done: done so far.
        """
        self._times.append((time.monotonic(), step))
        grown = False
        for request in self._inbox.look():
            now = _Now(step, blocks_done, schedule.planned, schedule, refits)
            try:
                answer = self._grant(request, now)
                grown = True
            except UserError as error:
                answer = {"refused": str(error)}
            except Exception as error:  # a request is the work of a person, and must never end a training
                LOG.warning("a request could not be granted", exc_info=True)
                answer = {"refused": f"the request cannot be understood ({type(error).__name__}: {error})"}
            self._inbox.answer(request.token, answer)
        return grown

    def take_refits(self) -> list[int]:
        """Blocks after which a snapshot was asked for since the last call."""
        refits, self._refits = self._refits, []
        return refits

    def _grant(self, request: Request, now: _Now) -> dict[str, Any]:
        """Journal what a request asks for, and say from where it holds. Raises UserError, and nothing has changed."""
        if request.refusal is not None:
            raise UserError(request.refusal)
        if now.published >= now.schedule.num_blocks:
            raise UserError("every step of this run is planned already, so nothing can change; resume it for longer")
        entry = self._entry(request, now)
        entries = [*self._regimes.entries, entry]
        self._check(entries, entry, now)
        try:
            journal.write_journal(self._path, entries)
        except OSError as error:
            raise UserError(f"{self._path} cannot be written ({error.strerror}), so nothing was changed") from error
        self._regimes.entries.append(entry)
        if "refit_after" in entry.what:
            self._refits.append(entry.what["refit_after"])
        self._record(entry, now.step)
        self._log(f"ado: change {entry.id} by {entry.who} holds from block {entry.block} on: {entry.what}")
        return self._answer(entry, now)

    def _entry(self, request: Request, now: _Now) -> Entry:
        asked = dict(request.values.get("asked", {}))
        entries, first = self._regimes.entries, now.published
        block = _block_of(request.values.get("at_step"), now)
        what, before = {}, {}
        if asked.pop("refit_now", False):
            if asked or block != first:
                raise UserError("a refit is asked for alone, and is made as soon as it can be")
            what = {"refit_after": self._refit_after(now)}
            block = now.refits.applies_at(what["refit_after"])
        elif asked.pop("undo", False):
            last = journal.last_that_counts(entries)
            if asked or last is None:
                raise UserError("an undo stands alone" if asked else "there is no change that could be undone")
            what = {"undo": last.id}
        else:
            steering = journal.in_force(entries, block)
            what = what_of(
                asked, domains=self._planner.domains, config=self._planner.config, steering=steering,
                weights_K=self._planner.weights_K(max(first - 1, 0)),
            )  # fmt: skip
            before = steering.before(what)
        return Entry(
            len(entries) + 1, block, now.step, request.who, time.strftime("%Y-%m-%d %H:%M:%S %z"), what, before,
            request.token,
        )  # fmt: skip

    def _refit_after(self, now: _Now) -> int:
        configs = (self._planner.config, self._regimes.at(now.published).config)
        policies = {config.value("policy") for config in configs}
        if policies <= WITHOUT_LAWS:
            raise UserError(f"policy {policies.pop()} uses no laws, so there is nothing to fit; --policy changes it")
        start, block = self._planner.config.value("start_step"), now.refits.soonest(now.published)
        if block < start:
            raise UserError(f"laws are fitted from step {start} on (--ado-start-step), not at step {block}")
        if now.refits.applies_at(block) >= now.schedule.num_blocks:
            raise UserError("laws fitted now would come into force after the end of the run")
        return block

    def _check(self, entries: list[Entry], new: Entry, now: _Now) -> None:
        """UserError where some block from the new entry's on could not be laid out."""
        regimes = self._regimes.with_entries(entries)
        for block in sorted({e.block for e in entries if e.block >= new.block}):
            check_bounds(journal.in_force(entries, block), self._planner.domains)
            regimes.at(block)  # its policy can be made
        drawn_C = now.schedule.cumulative(now.published * now.schedule.block_size)
        regimes.check_supply(now.published, drawn_C)

    def _answer(self, entry: Entry, now: _Now) -> dict[str, Any]:
        (first, step), (last, _) = self._times[0], self._times[-1]
        blocks = entry.block - now.blocks_done
        seconds = (last - first) / (now.step - step) * blocks if now.step > step else None
        return {"entry": entry.to_dict(), "step": now.step, "blocks": blocks, "seconds": seconds,
                "notes": self._notes(entry.block, now)}  # fmt: skip

    def _notes(self, block: int, now: _Now) -> list[str]:
        """What runs out under the weights to come, as far as they are known."""
        regime, schedule = self._regimes.at(block), now.schedule
        drawn_C = schedule.cumulative(now.published * schedule.block_size)
        weights_K = regime.bent(self._planner.weights_K(max(now.published - 1, 0)))
        left = schedule.num_samples - now.published * schedule.block_size
        lines = forecast_lines(self._planner.domains, weights_K, drawn_C, left, regime.caps_C)
        return [line for line in lines if "does not run out" not in line][:_WARNINGS]

    def _record(self, entry: Entry, step: int) -> None:
        values = entry.to_dict()
        del values["step"], values["request"]
        self._recorder.metrics.write("change", step, **values)


def _block_of(at_step: Any, now: _Now) -> int:
    """The first block of a step (counted from 0), or the first that no rank has planned. UserError for one that is."""
    if at_step is None:
        return now.published
    block = now.blocks_done + int(at_step) - now.step
    if block < now.published:
        first = now.step + now.published - now.blocks_done
        raise UserError(f"step {at_step} is planned already; a change can hold from step {first} on")
    if block >= now.schedule.num_blocks:
        raise UserError(f"step {at_step} is beyond the end of the run, which has {now.schedule.num_blocks} blocks")
    return block
