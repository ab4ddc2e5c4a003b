"""When an alarm is raised.

Legend: K domains, W ranks, N = 1 + K, or 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ado_megatron.alarms.losses import Reference, Window
from ado_megatron.alarms.memory import KINDS, Memory
from ado_megatron.alarms.ranks import uneven_domains, uneven_ranks
from ado_megatron.alarms.supply import Supply, runs_out_at, tokens_astray
from ado_megatron.scaling_law.laws import Laws

IN_A_ROW = 2  # refits for which a loss must be wrong
CERTAIN = 4.0  # standard errors
ABOVE = 0.02  # of the loss: what a law may be wrong by without any harm
WORSE = 0.01  # of the loss
FAILED, REJECTED = 2, 4  # fits in a row: of a whole refit, of one domain
_RANKS = 4  # that a sentence names


@dataclass(frozen=True)
class Alarm:
    """One alarm. kind: above_law, worse, runs_out, draws or fits. domain: None where it is about all of them."""

    kind: str
    domain: str | None
    evidence: str
    look_at: str

    @property
    def text(self) -> str:
        """One line: who, what was seen, what to look at."""
        return f"{self.domain or 'all domains'}: {self.evidence}. Look at {self.look_at}."

    def to_record(self) -> dict[str, str | None]:
        """The values of its record in metrics.jsonl."""
        return {
            "alarm": self.kind, "domain": self.domain, "text": self.text, "evidence": self.evidence,
            "look_at": self.look_at,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Refit:
    """What rank zero knows when the laws of a refit come."""

    step: int  # up to which losses were measured
    rows: Mapping[str, np.ndarray]  # the history (LossHistory.snapshot)
    laws: Laws | None  # fitted now; None: none were, or the fit failed
    failure: str | None  # why the fit failed
    supply: Supply
    samples_K: np.ndarray  # measured so far by this process, int64
    tokens_K: np.ndarray  # of these samples
    ranks_WxN: np.ndarray | None = None  # of each rank, what it measured of them (ranks.py); None: not known


class Alarms:
    """Looks at each refit of a run. An alarm is raised once, and again when it was over in between. A resumed run goes
    on with `memory`, which a sidecar keeps."""

    def __init__(self, names_K: Sequence[str], memory: Memory | None = None):
        self._names_K = tuple(names_K)
        num = len(self._names_K)
        self.memory = Memory.new(num) if memory is None else memory
        # of this process, whose ranks may be others than those before
        self._measured = np.zeros(num, np.int64), np.zeros(num)  # samples and tokens at the last refit
        self._ranks_WxN: np.ndarray | None = None  # at the last refit
        self._uneven: set = set()  # what was uneven then

    def at_refit(self, refit: Refit) -> list[Alarm]:
        """The alarms that this refit raises."""
        window = Window.of(refit.rows, self.memory.since)
        found = self._above_law(window, refit) + self._worse(window, refit) + self._fits(refit)
        found += self._runs_out(refit) + self._draws(refit)
        self.memory.since = refit.step
        return found

    def _raised(self, kind: str, bad: Mapping[int | None, tuple[str, str]]) -> list[Alarm]:
        """Alarms of those that are bad now and were not at the last refit. bad: number → (evidence, look at)."""
        standing_K1 = self.memory.standing_AxK1[KINDS.index(kind)]
        new = [k for k in bad if not standing_K1[-1 if k is None else k]]
        standing_K1[:] = False
        standing_K1[[-1 if k is None else k for k in bad]] = True
        return [Alarm(kind, None if k is None else self._names_K[k], *bad[k]) for k in new]

    def _above_law(self, window: Window, refit: Refit) -> list[Alarm]:
        """A loss above what the law foretold before it began to be so. The laws of domains that are not above are
        those of the last refit; a bad shard would otherwise bend the law that is to find it."""
        memory = self.memory
        bad: dict[int | None, tuple[str, str]] = {}
        if memory.reference is not None:
            foretold_K, error_K = memory.reference.foretold(window)
            excess_K, error_K = window.y_K - foretold_K, np.hypot(error_K, window.error_K)
            with np.errstate(invalid="ignore"):
                above_K = excess_K > np.maximum(ABOVE, CERTAIN * error_K)
            memory.above_K = np.where(above_K, memory.above_K + 1, np.where(np.isnan(excess_K), memory.above_K, 0))
            for k in np.flatnonzero(memory.above_K >= IN_A_ROW):
                evidence = (
                    f"loss {np.exp(window.y_K[k]):.4f} since step {window.first_step_K[k]:,}, {excess_K[k]:.1%} ± "
                    f"{error_K[k]:.1%} above its law, {memory.above_K[k]} refits in a row"
                )
                bad[int(k)] = evidence, "its data from there on: a bad shard, a broken file, another language"
        self._take_laws(window, refit)
        return self._raised("above_law", bad)

    def _take_laws(self, window: Window, refit: Refit) -> None:
        """The laws of this refit are the reference of the next, but for domains that are above theirs."""
        memory = self.memory
        if refit.laws is None or not len(refit.rows["step_T"]):
            return
        n_K = np.where(np.isfinite(window.n_K), window.n_K, 1.0)
        total_K = np.where(np.isfinite(window.total_K), window.total_K, 1.0)
        old = memory.reference
        if old is None:
            memory.reference = Reference(refit.laws, n_K, total_K)
            return
        take_K = (memory.above_K == 0) & refit.laws.ok_K & np.isfinite(window.n_K)
        only = dataclasses.replace(refit.laws, ok_K=take_K)
        memory.reference = Reference(
            only.merged(old.laws), np.where(take_K, n_K, old.n_K), np.where(take_K, total_K, old.total_K)
        )

    def _worse(self, window: Window, refit: Refit) -> list[Alarm]:
        """A loss above the lowest that it has been, while the domain is trained on."""
        memory = self.memory
        rise_K = window.y_K - memory.best_K
        error_K = np.hypot(window.error_K, memory.best_error_K)
        with np.errstate(invalid="ignore"):
            worse_K = (rise_K > np.maximum(WORSE, CERTAIN * error_K)) & (refit.supply.weights_K > 0)
            better_K = window.y_K < memory.best_K
        memory.worse_K = np.where(worse_K, memory.worse_K + 1, np.where(np.isnan(rise_K), memory.worse_K, 0))
        bad: dict[int | None, tuple[str, str]] = {}
        for k in np.flatnonzero(memory.worse_K >= IN_A_ROW):
            bad[int(k)] = (
                f"loss {np.exp(window.y_K[k]):.4f} since step {window.first_step_K[k]:,}, {rise_K[k]:.1%} ± "
                f"{error_K[k]:.1%} more than {np.exp(memory.best_K[k]):.4f} at step {memory.best_step_K[k]:,}, "
                f"although {refit.supply.weights_K[k]:.1%} of the samples are its own",
                "what changed at that step: other domains that displace it, the learning rate, its own data",
            )
        memory.best_error_K = np.where(better_K, window.error_K, memory.best_error_K)
        memory.best_step_K = np.where(better_K, refit.step, memory.best_step_K)
        memory.best_K = np.where(better_K, window.y_K, memory.best_K)
        return self._raised("worse", bad)

    def _fits(self, refit: Refit) -> list[Alarm]:
        """Fits that fail, of all domains or of one that had a law."""
        memory = self.memory
        bad: dict[int | None, tuple[str, str]] = {}
        memory.failed = memory.failed + 1 if refit.failure is not None else 0
        if memory.failed >= FAILED:
            bad[None] = (
                f"{memory.failed} fits in a row have failed, the last because {refit.failure}; the old laws stay",
                "memory, disk and RUN/ado/fits of the machine of rank zero",
            )
        if refit.laws is not None:
            had_K = self._had_law()
            memory.rejected_K = np.where(refit.laws.ok_K | ~had_K, 0, memory.rejected_K + 1)
        if refit.failure is None:
            for k in np.flatnonzero(memory.rejected_K >= REJECTED):
                reason = "" if refit.laws is None else refit.laws.reason_K[k]
                bad[int(k)] = (
                    f"its law was refused {memory.rejected_K[k]} refits in a row: {reason}; an older one is in force",
                    "its losses in `ado-megatron report`: do they still follow a law?",
                )
        return self._raised("fits", bad)

    def _had_law(self) -> np.ndarray:
        if self.memory.reference is None:
            return np.zeros(len(self._names_K), bool)
        return self.memory.reference.laws.ok_K

    def _runs_out(self, refit: Refit) -> list[Alarm]:
        """Domains that reach their cap before the run ends, if the weights stay."""
        bad: dict[int | None, tuple[str, str]] = {}
        for k, (blocks, epochs, cap) in runs_out_at(refit.supply).items():
            when = "is at" if blocks <= 0 else f"will be, after {blocks:,} more steps, at"
            bad[k] = (
                f"{epochs:.2f} epochs are drawn, and at {refit.supply.weights_K[k]:.1%} of the samples it {when} its "
                f"cap of {cap:.2f}; the others then take over its share",
                "--ado-max-epochs, more data for it, or a smaller share",
            )
        return self._raised("runs_out", bad)

    def _draws(self, refit: Refit) -> list[Alarm]:
        """Samples that bring another number of tokens than they did, or ranks that do not train on their part: some
        rank draws, or counts, another way."""
        samples_K, tokens_K = refit.samples_K - self._measured[0], refit.tokens_K - self._measured[1]
        self._measured = refit.samples_K.copy(), refit.tokens_K.copy()
        memory = self.memory
        bad: dict[int | None, tuple[str, str]] = self._uneven_ranks(refit)
        for k, (now, before) in tokens_astray(samples_K, tokens_K, memory.per_sample_K).items():
            bad[k] = (
                f"{now:.1f} tokens a sample were measured since step {memory.since:,}, {before:.1f} before",
                "whether every data rank draws and trains: run with --ado-audit, then `ado-megatron audit RUN`",
            )
        fresh_K = np.isnan(memory.per_sample_K) & (samples_K > 0)
        memory.per_sample_K = np.where(fresh_K, tokens_K / np.maximum(samples_K, 1), memory.per_sample_K)
        return self._raised("draws", bad)

    def _uneven_ranks(self, refit: Refit) -> dict[int | None, tuple[str, str]]:
        """Ranks that had too much or too little since the last refit and since the one before."""
        memory = self.memory
        if refit.ranks_WxN is None:
            return {}
        before = 0.0 if self._ranks_WxN is None else self._ranks_WxN
        self._ranks_WxN = refit.ranks_WxN.copy()
        new_WxN = refit.ranks_WxN - before
        ranks = uneven_ranks(new_WxN)
        domains = uneven_domains(new_WxN, memory.per_sample_K)
        last, self._uneven = self._uneven, {*ranks, *domains}
        look_at = "the loaders and data of these ranks: run with --ado-audit, then `ado-megatron audit RUN`"
        since = f"since step {memory.since:,}, {IN_A_ROW} refits in a row"
        bad: dict[int | None, tuple[str, str]] = {}
        for (k, w), (has, part) in sorted(domains.items(), key=lambda item: abs(item[1][0] - item[1][1])):
            if (k, w) in last:  # of several ranks the one that is farthest off
                bad[k] = f"rank {w} has trained on {has:,.0f} of its samples, its part is {part:,.0f}, {since}", look_at
        told = {w: more for w, more in ranks.items() if w in last}
        if told:
            words = [f"rank {w} has {abs(more):.1%} {'more' if more > 0 else 'fewer'}" for w, more in told.items()]
            more = f", and {len(words) - _RANKS} ranks more," if len(words) > _RANKS else ""
            bad[None] = f"{', '.join(words[:_RANKS])}{more} tokens than others have trained on, {since}", look_at
        return bad
