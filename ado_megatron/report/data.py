"""What a run has written about itself, as arrays. (read.py makes them of a metrics.jsonl.)

Legend: K domains, S logging intervals, R refits, V validations, P progress lines. A step is a count of steps
done. n counts samples: those of the domain itself and, by the law's transfer, those of all domains.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ado_megatron.config import AdoConfig
from ado_megatron.scaling_law.laws import Laws


@dataclass(frozen=True)
class Fit:
    """One refit: laws of K domains and what is known about them. `failed`: why there are no laws, or None.

    3 = (log β, log ε, α)
    """

    step: int
    law_Kx3: np.ndarray
    transfer_K: np.ndarray  # s of the n of each law: n_k + s N; inf: N
    transfer_low_K: np.ndarray  # central 80 % interval of s; nan where the record has none
    transfer_high_K: np.ndarray
    ok_K: np.ndarray
    reason_K: list[str]
    rms_K: np.ndarray
    stderr_Kx3: np.ndarray
    speed_stderr_K: np.ndarray
    credit_K: np.ndarray
    seconds: float
    wait_seconds: float
    failed: str | None


@dataclass(frozen=True)
class Gap:
    """Records that could not be written or read, of the steps from_step to step."""

    from_step: int
    step: int
    records: int


@dataclass(frozen=True)
class Event:
    """Something that happened to the run after `step` steps: an alarm, or a change by a person."""

    step: int
    kind: str
    text: str


@dataclass(frozen=True)
class LawsInForce:
    """The laws in force: of each domain the last that was accepted, from the fit after `step_K` steps (0: none).

    `ok_K` and `reason_K` are the judgement of the last fit.
    """

    law_Kx3: np.ndarray
    transfer_K: np.ndarray
    stderr_Kx3: np.ndarray
    speed_stderr_K: np.ndarray
    step_K: np.ndarray
    ok_K: np.ndarray
    reason_K: list[str]

    def loss(self, n: np.ndarray) -> np.ndarray:
        """L(n) in nats, n broadcast against K; nan without a law."""
        return Laws.given(self.law_Kx3, self.transfer_K).loss(n)


@dataclass(frozen=True)
class Supply:
    """What each domain has: samples of one epoch, drawn so far, the most that may be drawn (None: no caps at all).

    Prefixes without a share do not count. samples_left: of the whole run. block_size: samples of a step, under a batch
    ramp of the last ones.
    """

    length_K: np.ndarray
    drawn_K: np.ndarray
    cap_K: np.ndarray | None
    samples_left: int
    block_size: int


@dataclass(frozen=True)
class Run:
    """A run's metrics. Losses are means over an interval's tokens, nan where a domain had none. target_K: None where it
    was not recorded. time_S: seconds since the epoch when the interval was written, nan where not recorded."""

    path: Path
    names_K: list[str]
    prior_K: np.ndarray
    target_K: np.ndarray | None
    config: AdoConfig
    step_S: np.ndarray
    counts_SxK: np.ndarray
    tokens_SxK: np.ndarray
    loss_SxK: np.ndarray
    weights_SxK: np.ndarray
    drawn_SxK: np.ndarray  # samples since the start of the run, of prefixes with a share
    time_S: np.ndarray
    supply: Supply
    fits: list[Fit]
    validation_step_V: np.ndarray
    validation_VxK: np.ndarray
    progress: dict[str, np.ndarray]  # step, loss, lr, grad_norm, samples_per_second; each of length P
    gaps: list[Gap]
    events: list[Event]

    @property
    def name(self) -> str:
        """What the run is called in a report: its directory."""
        return self.path.name

    def n_SxK(self, law_Kx3: np.ndarray, transfer_K: np.ndarray) -> np.ndarray:
        """The n of the given laws at the end of each interval; at least 1, so that its logarithm exists."""
        own_SxK = np.cumsum(self.counts_SxK, axis=0)
        return np.maximum(Laws.given(law_Kx3, transfer_K).effective_n(own_SxK), 1)

    @property
    def law_n_SxK(self) -> np.ndarray:
        """The n of the laws in force at the end of each interval, effective samples."""
        laws = self.laws()
        return self.n_SxK(laws.law_Kx3, laws.transfer_K)

    def laws(self) -> LawsInForce:
        """The law of each domain that was accepted last; nan and step 0 where none was yet."""
        return self._laws

    @functools.cached_property
    def _laws(self) -> LawsInForce:
        made = [fit for fit in self.fits if fit.failed is None]
        num = len(self.names_K)
        law_Kx3, stderr_Kx3 = np.full((num, 3), np.nan), np.full((num, 3), np.nan)
        transfer_K = np.full(num, self.config.given_transfer)
        speed_stderr_K, step_K = np.full(num, np.nan), np.zeros(num, dtype=int)
        for fit in made:
            ok_K = fit.ok_K
            law_Kx3[ok_K], stderr_Kx3[ok_K] = fit.law_Kx3[ok_K], fit.stderr_Kx3[ok_K]
            transfer_K[ok_K] = fit.transfer_K[ok_K]
            speed_stderr_K[ok_K], step_K[ok_K] = fit.speed_stderr_K[ok_K], fit.step
        reason_K = made[-1].reason_K if made else [""] * num
        ok_K = made[-1].ok_K if made else np.zeros(num, dtype=bool)
        return LawsInForce(law_Kx3, transfer_K, stderr_Kx3, speed_stderr_K, step_K, ok_K, reason_K)

    def first_loss_K(self) -> np.ndarray:
        """The loss of the first interval that saw the domain."""
        seen_SxK = np.isfinite(self.loss_SxK)
        first_K = seen_SxK.argmax(0)
        return np.where(seen_SxK.any(0), self.loss_SxK[first_K, np.arange(len(self.names_K))], np.nan)

    def last_loss_K(self) -> np.ndarray:
        """The mean over the tokens of the last twentieth of the intervals, or the last loss that was seen before it."""
        tail = max(1, len(self.step_S) // 20)
        mean_K = token_mean(self.loss_SxK[-tail:], self.tokens_SxK[-tail:])
        seen_SxK = np.isfinite(self.loss_SxK)
        last_K = len(self.step_S) - 1 - seen_SxK[::-1].argmax(0)
        newest_K = np.where(seen_SxK.any(0), self.loss_SxK[last_K, np.arange(len(self.names_K))], np.nan)
        return np.where(np.isfinite(mean_K), mean_K, newest_K)

    def tail(self, intervals: int) -> Run:
        """The same run as if only its last intervals, at least one, had been measured."""
        first = len(self.step_S) - max(intervals, 1)
        names = ("step_S", "counts_SxK", "tokens_SxK", "loss_SxK", "weights_SxK", "drawn_SxK", "time_S")
        return dataclasses.replace(self, **{name: getattr(self, name)[first:] for name in names})

    def thinned(self, most: int) -> Run:
        """The same run in at most `most` intervals."""
        if len(self.step_S) <= most:
            return self
        return self.merged(self.step_S[thin(len(self.step_S), most)])

    def merged(self, step_E: np.ndarray) -> Run:
        """The same run in intervals that end after the steps step_E (ascending): sums summed, losses averaged over
        tokens, weights those at the end. An interval without a record has no loss."""
        intervals = len(self.step_S)
        ends_E = np.searchsorted(self.step_S, step_E, side="right")
        starts_E = np.concatenate([[0], ends_E[:-1]])

        def summed(values_SxK: np.ndarray) -> np.ndarray:
            sum_ExK = np.add.reduceat(values_SxK[: ends_E[-1]], np.minimum(starts_E, ends_E[-1] - 1))
            return np.where((starts_E == ends_E)[:, None], 0, sum_ExK)

        last_E = np.clip(ends_E - 1, 0, intervals - 1)
        tokens_ExK = summed(self.tokens_SxK)
        loss_sum_ExK = summed(np.where(np.isfinite(self.loss_SxK), self.loss_SxK, 0.0) * self.tokens_SxK)
        with np.errstate(invalid="ignore", divide="ignore"):
            loss_ExK = loss_sum_ExK / tokens_ExK
        one_E = (ends_E - starts_E == 1)[:, None]  # nothing merged: the loss as it was measured, to the last bit
        return dataclasses.replace(
            self, step_S=np.asarray(step_E), counts_SxK=summed(self.counts_SxK), tokens_SxK=tokens_ExK,
            loss_SxK=np.where(one_E, self.loss_SxK[last_E], loss_ExK), weights_SxK=self.weights_SxK[last_E],
            drawn_SxK=self.drawn_SxK[last_E], time_S=self.time_S[last_E],
        )  # fmt: skip


def thin(length: int, most: int) -> np.ndarray:
    """At most `most` of the places 0 … length − 1, evenly spread, the last among them."""
    if length <= most:
        return np.arange(length)
    return np.unique(np.linspace(0, length, most + 1).astype(int)[1:]) - 1


def token_mean(loss_SxK: np.ndarray, tokens_SxK: np.ndarray) -> np.ndarray:
    """Mean over intervals with the token counts as weights: loss_K, nan where there were none."""
    seen_SxK = np.isfinite(loss_SxK) & (tokens_SxK > 0)
    tokens_K = np.where(seen_SxK, tokens_SxK, 0.0).sum(0)
    sum_K = np.where(seen_SxK, loss_SxK * tokens_SxK, 0.0).sum(0)
    return np.divide(sum_K, tokens_K, out=np.full(len(tokens_K), np.nan), where=tokens_K > 0)
