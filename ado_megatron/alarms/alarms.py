"""When an alarm is raised: what is remembered between refits.

Legend: K domains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ado_megatron.alarms.losses import Reference, Window
from ado_megatron.alarms.supply import Supply, runs_out_at, tokens_astray
from ado_megatron.scaling_law.laws import Laws

IN_A_ROW = 2  # refits for which a loss must be wrong
CERTAIN = 4.0  # standard errors
ABOVE = 0.02  # of the loss: what a law may be wrong by without any harm
WORSE = 0.01  # of the loss
FAILED, REJECTED = 2, 4  # fits in a row: of a whole refit, of one domain


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


class Alarms:
    """Looks at each refit of one process of a run. An alarm is raised once, and again when it was over in between; a
    resumed run begins to count anew."""

    def __init__(self, names_K: Sequence[str]):
        self._names_K = tuple(names_K)
        num = len(self._names_K)
        self._since = 0  # step of the last refit
        self._reference: Reference | None = None
        self._best_K, self._best_error_K = np.full(num, np.inf), np.zeros(num)  # lowest window so far, log loss
        self._best_step_K = np.zeros(num, np.int64)
        self._above_K, self._worse_K, self._rejected_K = (np.zeros(num, np.int64) for _ in range(3))
        self._failed = 0
        self._standing: set[tuple[str, int | None]] = set()
        self._measured = np.zeros(num, np.int64), np.zeros(num)  # samples and tokens at the last refit
        self._per_sample_K = np.full(num, np.nan)  # tokens of a sample, as they were

    def at_refit(self, refit: Refit) -> list[Alarm]:
        """The alarms that this refit raises."""
        window = Window.of(refit.rows, self._since)
        found = self._above_law(window, refit) + self._worse(window, refit) + self._fits(refit)
        found += self._runs_out(refit) + self._draws(refit)
        self._since = refit.step
        return found

    def _raised(self, kind: str, bad: Mapping[int | None, tuple[str, str]]) -> list[Alarm]:
        """Alarms of those that are bad now and were not at the last refit. bad: number → (evidence, look at)."""
        new = [k for k in bad if (kind, k) not in self._standing]
        self._standing = {entry for entry in self._standing if entry[0] != kind} | {(kind, k) for k in bad}
        return [Alarm(kind, None if k is None else self._names_K[k], *bad[k]) for k in new]

    def _above_law(self, window: Window, refit: Refit) -> list[Alarm]:
        """A loss above what the law foretold before it began to be so. The laws of domains that are not above are
        those of the last refit; a bad shard would otherwise bend the law that is to find it."""
        bad: dict[int | None, tuple[str, str]] = {}
        if self._reference is not None:
            foretold_K, error_K = self._reference.foretold(window)
            excess_K, error_K = window.y_K - foretold_K, np.hypot(error_K, window.error_K)
            with np.errstate(invalid="ignore"):
                above_K = excess_K > np.maximum(ABOVE, CERTAIN * error_K)
            self._above_K = np.where(above_K, self._above_K + 1, np.where(np.isnan(excess_K), self._above_K, 0))
            for k in np.flatnonzero(self._above_K >= IN_A_ROW):
                evidence = (
                    f"loss {np.exp(window.y_K[k]):.4f} since step {window.first_step_K[k]:,}, {excess_K[k]:.1%} ± "
                    f"{error_K[k]:.1%} above its law, {self._above_K[k]} refits in a row"
                )
                bad[int(k)] = evidence, "its data from there on: a bad shard, a broken file, another language"
        self._take_laws(window, refit)
        return self._raised("above_law", bad)

    def _take_laws(self, window: Window, refit: Refit) -> None:
        """The laws of this refit are the reference of the next, but for domains that are above theirs."""
        if refit.laws is None or not len(refit.rows["step_T"]):
            return
        n_K = np.where(np.isfinite(window.n_K), window.n_K, 1.0)
        total_K = np.where(np.isfinite(window.total_K), window.total_K, 1.0)
        old = self._reference
        if old is None:
            self._reference = Reference(refit.laws, n_K, total_K)
            return
        take_K = (self._above_K == 0) & refit.laws.ok_K & np.isfinite(window.n_K)
        only = dataclasses.replace(refit.laws, ok_K=take_K)
        self._reference = Reference(
            only.merged(old.laws), np.where(take_K, n_K, old.n_K), np.where(take_K, total_K, old.total_K)
        )

    def _worse(self, window: Window, refit: Refit) -> list[Alarm]:
        """A loss above the lowest that it has been, while the domain is trained on."""
        rise_K = window.y_K - self._best_K
        error_K = np.hypot(window.error_K, self._best_error_K)
        with np.errstate(invalid="ignore"):
            worse_K = (rise_K > np.maximum(WORSE, CERTAIN * error_K)) & (refit.supply.weights_K > 0)
            better_K = window.y_K < self._best_K
        self._worse_K = np.where(worse_K, self._worse_K + 1, np.where(np.isnan(rise_K), self._worse_K, 0))
        bad: dict[int | None, tuple[str, str]] = {}
        for k in np.flatnonzero(self._worse_K >= IN_A_ROW):
            bad[int(k)] = (
                f"loss {np.exp(window.y_K[k]):.4f} since step {window.first_step_K[k]:,}, {rise_K[k]:.1%} ± "
                f"{error_K[k]:.1%} more than {np.exp(self._best_K[k]):.4f} at step {self._best_step_K[k]:,}, although "
                f"{refit.supply.weights_K[k]:.1%} of the samples are its own",
                "what changed at that step: other domains that displace it, the learning rate, its own data",
            )
        self._best_error_K = np.where(better_K, window.error_K, self._best_error_K)
        self._best_step_K = np.where(better_K, refit.step, self._best_step_K)
        self._best_K = np.where(better_K, window.y_K, self._best_K)
        return self._raised("worse", bad)

    def _fits(self, refit: Refit) -> list[Alarm]:
        """Fits that fail, of all domains or of one that had a law."""
        bad: dict[int | None, tuple[str, str]] = {}
        self._failed = self._failed + 1 if refit.failure is not None else 0
        if self._failed >= FAILED:
            bad[None] = (
                f"{self._failed} fits in a row have failed, the last because {refit.failure}; the old laws stay",
                "memory, disk and RUN/ado/fits of the machine of rank zero",
            )
        if refit.laws is not None:
            had_K = self._had_law()
            self._rejected_K = np.where(refit.laws.ok_K | ~had_K, 0, self._rejected_K + 1)
        if refit.failure is None:
            for k in np.flatnonzero(self._rejected_K >= REJECTED):
                reason = "" if refit.laws is None else refit.laws.reason_K[k]
                bad[int(k)] = (
                    f"its law was refused {self._rejected_K[k]} refits in a row: {reason}; an older one is in force",
                    "its losses in `ado-megatron report`: do they still follow a law?",
                )
        return self._raised("fits", bad)

    def _had_law(self) -> np.ndarray:
        if self._reference is None:
            return np.zeros(len(self._names_K), bool)
        return self._reference.laws.ok_K

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
        """Samples that bring another number of tokens than they did: some rank draws, or counts, another way."""
        samples_K, tokens_K = refit.samples_K - self._measured[0], refit.tokens_K - self._measured[1]
        self._measured = refit.samples_K.copy(), refit.tokens_K.copy()
        astray = tokens_astray(samples_K, tokens_K, self._per_sample_K)
        bad: dict[int | None, tuple[str, str]] = {}
        for k, (now, before) in astray.items():
            bad[k] = (
                f"{now:.1f} tokens a sample were measured since step {self._since:,}, {before:.1f} before",
                "whether every data rank draws and trains: run with --ado-audit, then `ado-megatron audit RUN`",
            )
        fresh_K = np.isnan(self._per_sample_K) & (samples_K > 0)
        self._per_sample_K = np.where(fresh_K, tokens_K / np.maximum(samples_K, 1), self._per_sample_K)
        return self._raised("draws", bad)
