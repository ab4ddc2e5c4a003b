"""When laws are fitted and from which block they hold: the same on every rank, however long a fit takes.

    snapshot after block t ── fit ──► publish, `lookahead` rows early ──► first row under the new laws: t + 1 + fit_lag

The laws fitted after block t take effect at block t + 1 + fit_lag; a slow fit delays training but never changes the
data. Rows are planned up to the first row of the oldest snapshot whose laws are not in force yet (or of the next
snapshot to come).
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError


@dataclasses.dataclass(frozen=True)
class PendingRefit:
    """A snapshot whose laws are not yet in force. block: after which it was taken. step: steps done then."""

    block: int
    step: int


class RefitSchedule:
    """The snapshots of a run, in order. fit_lag: blocks from a snapshot to the first row under its laws, less one.
    lookahead: rows that must stay planned beyond the blocks done."""

    def __init__(self, config: AdoConfig, fit_lag: int, lookahead: int):
        self._config, self.fit_lag, self.lookahead = config, fit_lag, lookahead
        self._extra: set[int] = set()  # blocks after which an operator wants a snapshot
        self.pending: deque[PendingRefit] = deque()
        self.next_snapshot = 0 if config.refit_at(0) else self.snapshot_after(0)

    def snapshot_after(self, block: int) -> int:
        """The next block after which a snapshot is taken: every refit, and every refit_interval blocks in any case."""
        interval, early = self._config.refit_interval, self._config.value("start_step")
        following = (block // interval + 1) * interval
        while 0 < early <= block:
            early *= 2
        if block < early < following and self._config.refit_at(early):
            following = early
        return min([following, *(extra for extra in self._extra if extra > block)])

    def add(self, blocks: Iterable[int], blocks_done: int) -> None:
        """Take snapshots after these blocks, too, but for those that are past."""
        self._extra.update(blocks)
        last = self.pending[-1].block if self.pending else -1
        to_come = [block for block in self._extra if block >= blocks_done and block > last]
        self.next_snapshot = min([*to_come, self.next_snapshot])

    @property
    def extra(self) -> list[int]:
        """What was added."""
        return sorted(self._extra)

    def soonest(self, planned: int) -> int:
        """The first block after which an extra snapshot can be taken, if every rank hears of it when rows from
        `planned` on are published next; the next snapshot to come at the latest."""
        first = planned - self.lookahead + 1  # blocks done then
        if planned >= self.planned_until:  # these rows wait for laws, or a snapshot
            first = max(first, (self.pending[0].block if self.pending else self.next_snapshot) + 1)
        return min(max(first, planned - 1 - self.fit_lag, 1), self.next_snapshot)

    def take(self, step: int) -> PendingRefit:
        """Take the next snapshot, after `step` steps."""
        refit = PendingRefit(self.next_snapshot, step)
        self.pending.append(refit)
        self.next_snapshot = self.snapshot_after(self.next_snapshot)
        return refit

    def pop_due(self, blocks_done: int) -> PendingRefit | None:
        """The oldest snapshot if its laws must be there now, so that `lookahead` rows stay planned; never before it is
        taken."""
        if self.pending:
            block = self.pending[0].block
            if blocks_done >= max(block + 1, block + 2 + self.fit_lag - self.lookahead):
                return self.pending.popleft()
        return None

    def applies_at(self, block: int) -> int:
        """The first row under the laws of the snapshot after `block`."""
        return block + 1 + self.fit_lag

    @property
    def planned_until(self) -> int:
        """The first row whose laws are not known yet."""
        return self.applies_at(self.pending[0].block if self.pending else self.next_snapshot)

    def restore(self, next_snapshot: int, pending: Iterable[tuple[int, int]]) -> None:
        """Go on from a saved plan: the next snapshot, and (block, step) of those whose laws were still to come."""
        self.next_snapshot = next_snapshot
        self.pending = deque(PendingRefit(block, step) for block, step in pending)


def fit_lag_of(config: AdoConfig, lookahead: int) -> int:
    """Blocks from a snapshot to the first row under its laws, less one."""
    if config.fit_lag is not None:
        return config.fit_lag
    return lookahead - 2 + max(1, config.refit_interval // 20)  # minutes on a cluster; a fit takes seconds


def fit_deadline_of(config: AdoConfig, timeout: float | None) -> float:
    """Seconds that rank zero waits for a fit: its peers stand in a broadcast meanwhile, so less than half of what their
    process group allows, which is `timeout` (None: not known)."""
    return config.fit_deadline if timeout is None else min(config.fit_deadline, 0.4 * timeout)


def lookahead_of(config: AdoConfig, needed: int) -> int:
    """Blocks to keep planned ahead: `needed` of them, or what the user says. UserError where that is too few."""
    if config.lead is None:
        return needed
    if config.lead < needed:
        raise UserError(
            f"--ado-lead {config.lead} is too small: the loader's workers may hold samples of {needed} blocks; give at "
            f"least {needed}, or fewer workers or prefetched batches"
        )
    return config.lead
