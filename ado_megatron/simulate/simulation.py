"""One simulated run: the history, the fits, the schedule of refits, the policy and the planner of a run.

Only two things are not those of a run: the losses, which come from a response, and the fits, which are made in this
process. What a `Mixer` decides on the same losses is the same to the sample (a test holds the two together).

Legend: K domains, S blocks (steps of training; one block is one step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.alarms import Alarm, Alarms, Refit
from ado_megatron.alarms.supply import Supply
from ado_megatron.blend.domains import Domains
from ado_megatron.blend.epoch_caps import caps_from_config, check_supply
from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.mixer.loader import LoaderSettings
from ado_megatron.mixer.planner import Planner
from ado_megatron.mixer.refit_schedule import PendingRefit, RefitSchedule, fit_lag_of, lookahead_of
from ado_megatron.policy import PolicyContext, resolve_target
from ado_megatron.scaling_law import Laws, LossHistory
from ado_megatron.scaling_law import transfer_option as transfer
from ado_megatron.scaling_law.smoothing import fit_history

Response = Callable[[np.ndarray], ArrayLike]  # n_K, samples so far of each domain → true loss_K, nats

UNREPEATED = 10**15  # samples of an epoch that no simulated run reaches


@dataclass(frozen=True, eq=False)
class Simulation:
    """What a simulated run came to."""

    weights_SxK: np.ndarray  # in force in each block
    counts_K: np.ndarray  # int64, samples drawn of each domain
    final_loss_K: np.ndarray  # nats, the response to counts_K
    target_loss: float  # nats, Σ τ_k final_loss_k
    laws: Laws | None  # in force at the end; None: none was fitted
    transfer_K: np.ndarray  # s of these laws; NaN where it was to be estimated and no law was fitted
    target_K: np.ndarray  # τ
    notes: tuple[str, ...] = ()  # what the policy had to say, in order
    alarms: tuple[Alarm, ...] = ()  # that a run would have raised, in order


def simulate(
    response: Response, prior_K: ArrayLike, *, target_K: ArrayLike | None = None, config: AdoConfig, steps: int,
    block_size: int, noise: float = 0.04, seed: int = 0, names_K: Sequence[str] | None = None,
    length_K: ArrayLike | None = None,
) -> Simulation:  # fmt: skip
    """Run `steps` blocks of `block_size` samples under `config`, with losses from `response`.

    response: samples so far of each domain (float64) → true losses in nats. What is observed of domain k in a step is
    response(n after the step)_k · exp(noise · z / √(K · share_k)), z standard normal by seed, step and domain, the same
    for every config; a domain without samples in a step is absent from it.
    prior_K: the user's weights. target_K: τ (None: what config.target says). names_K: of the domains, for options that
    name them (None: d0, d1, …). length_K: samples of an epoch of each (None: no data is repeated).
    Raises UserError for a prior, target, option or response that cannot be used.
    """
    if steps < 1 or block_size < 1 or not 0 <= noise < np.inf:
        raise UserError(
            f"a simulation needs at least one step, one sample a block and a noise from 0 up, not steps {steps}, block "
            f"size {block_size}, noise {noise}"
        )
    run = SimulatedRun(response, prior_K, target_K=target_K, config=config, steps=steps, block_size=block_size,
                       noise=noise, seed=seed, names_K=names_K, length_K=length_K)  # fmt: skip
    weights_SxK = np.concatenate(list(run.advance(steps)))
    final_loss_K = run.losses.true_K(run.drawn_K.astype(np.float64))
    weighed = run.target_K > 0
    return Simulation(
        weights_SxK, run.drawn_K, final_loss_K, float(run.target_K[weighed] @ final_loss_K[weighed]), run.planner.laws,
        run.transfer_K(), run.target_K, tuple(run.planner.take_notes()), tuple(run.alarms),
    )  # fmt: skip


class SimulatedRun:
    """Rank zero of a run, without its files: plans rows, keeps the history, fits, puts laws in force when they are due.

    Arguments as of `simulate`. done: blocks trained on; drawn_K: samples of each domain in them.
    """

    def __init__(
        self, response: Response, prior_K: ArrayLike, *, target_K: ArrayLike | None = None, config: AdoConfig,
        steps: int, block_size: int, noise: float = 0.04, seed: int = 0, names_K: Sequence[str] | None = None,
        length_K: ArrayLike | None = None,
    ):  # fmt: skip
        config, domains = config.resolved(), _domains(prior_K, names_K, length_K)
        self.losses = _Losses(response, domains.names_K, noise, seed)
        self.config, self.domains, self._steps = config, domains, steps
        names_K, prior_K = domains.names_K, domains.prior_K
        if target_K is None:
            target_K = resolve_target(config.target, names_K, prior_K)
        self.target_K = PolicyContext(prior_K, target_K=np.asarray(target_K, np.float64)).known_target_K
        lookahead = lookahead_of(config, LoaderSettings().lookahead(block_size))
        self.refits = RefitSchedule(config, fit_lag_of(config, lookahead), lookahead)
        caps_K = caps_from_config(config, domains)
        self.planner = Planner(config, domains, block_size, caps_K, steps, self.target_K)
        spans = [(weights_K, blocks * block_size) for weights_K, blocks in self.planner.policy.spans(0, steps)]
        check_supply(domains, caps_K, spans)
        self._given_K = transfer.parse_transfer(config.transfer_text, names_K)
        self.history = LossHistory(len(names_K), config)
        self._fits: dict[int, Laws] = {}  # block of the snapshot → laws that are not yet in force
        self.alarms: list[Alarm] = []
        self._watch, self._block_size = Alarms(names_K), block_size
        self.done = self._planned = 0  # blocks
        self.drawn_K = np.zeros(len(names_K), np.int64)

    def advance(self, until: int) -> Iterator[np.ndarray]:
        """Train on at least `until` blocks, a stretch of planned rows at a time; yields the weights_SxK of each."""
        while self.done < until:
            first, rows_SxK = self.done, self._lay_out()
            weights_SxK = np.array([self.planner.weights_K(block) for block in range(first, first + len(rows_SxK))])
            n_SxK = self.drawn_K + np.cumsum(rows_SxK, 0, dtype=np.int64)
            self._train(n_SxK, rows_SxK, self.losses.observed(n_SxK, rows_SxK / self._block_size, first))
            yield weights_SxK

    def _lay_out(self) -> np.ndarray:
        """The next rows, as far as their laws are known: counts_SxK, at least one."""
        until = min(self.refits.planned_until, self._steps)
        rows_SxK = self.planner.plan(until - self._planned)
        self._planned = until
        return rows_SxK

    def _train(self, n_SxK: np.ndarray, rows_SxK: np.ndarray, loss_SxK: np.ndarray) -> None:
        """Train on rows that were laid out. n_SxK: samples drawn up to the end of each; loss_SxK: as observed."""
        for n_K, counts_K, loss_K in zip(n_SxK, rows_SxK, loss_SxK, strict=True):
            self.history.append(self.done, n_K, counts_K, loss_K * counts_K, counts_K)
            self.done += 1
            while self.refits.next_snapshot < self.done:
                refit = self.refits.take(self.done)
                rows, laws = self.history.snapshot(self.done), None
                if self.config.refit_at(refit.block):
                    self._fits[refit.block] = laws = fit_history(rows, self.config, self._given_K)
                self.alarms += self._watch.at_refit(self._as_refit(refit, n_K, rows, laws))
            while (due := self.refits.pop_due(self.done)) is not None:
                laws = self._fits.pop(due.block, None)
                if laws is not None:
                    self.planner.laws = laws.merged(self.planner.laws)
        self.drawn_K = n_SxK[-1]
        self.planner.forget_before(self.done - 1)

    def _as_refit(
        self, refit: PendingRefit, n_K: np.ndarray, rows: dict[str, np.ndarray], laws: Laws | None
    ) -> Refit:
        """What the alarms look at; every sample is measured, with one token."""
        left = (self._steps - self.done) * self._block_size
        weights_K = self.planner.weights_K(refit.block)
        supply = Supply(weights_K, self.domains.lengths_C, n_K, self.planner.caps_C, left, self._block_size)
        return Refit(refit.step, rows, laws, None, supply, n_K, n_K.astype(np.float64))

    def transfer_K(self) -> np.ndarray:
        """s of the laws in force."""
        if self.planner.laws is not None:
            return self.planner.laws.transfer_K
        return np.full(len(self.drawn_K), np.nan) if self._given_K is None else self._given_K


class _Losses:
    """What is observed of a response."""

    def __init__(self, response: Response, names_K: Sequence[str], noise: float, seed: int):
        self._response, self._names_K, self._noise = response, names_K, noise
        self._rng = np.random.default_rng(seed)

    def true_K(self, n_K: np.ndarray) -> np.ndarray:
        """The response to n_K, float64. Raises UserError for another shape."""
        loss_K = np.asarray(self._response(n_K), np.float64)
        if loss_K.shape != n_K.shape:
            raise UserError(f"the response gives shape {loss_K.shape} for {len(n_K)} domains; it must give a loss each")
        return loss_K

    def observed(self, n_SxK: np.ndarray, share_SxK: np.ndarray, first: int) -> np.ndarray:
        """Losses of consecutive steps from `first` on, to be called once for each; 0 for absent domains.

        Raises UserError for a loss of a present domain that is not finite and positive.
        """
        true_SxK = np.array([self.true_K(n_K) for n_K in n_SxK.astype(np.float64)])
        present_SxK = share_SxK > 0
        with np.errstate(invalid="ignore"):
            bad_SxK = present_SxK & ~((true_SxK > 0) & (true_SxK < np.inf))
        if bad_SxK.any():
            s, k = np.argwhere(bad_SxK)[0]
            raise UserError(
                f"the response gives domain {self._names_K[k]} loss {true_SxK[s, k]} in step {first + s}; a loss must "
                "be finite and positive"
            )
        z_SxK = self._rng.standard_normal(share_SxK.shape)
        spread_SxK = self._noise / np.sqrt(share_SxK.shape[1] * np.where(present_SxK, share_SxK, 1.0))
        return np.where(present_SxK, true_SxK, 0.0) * np.exp(spread_SxK * z_SxK)


def _domains(prior_K: ArrayLike, names_K: Sequence[str] | None, length_K: ArrayLike | None) -> Domains:
    prior_K = PolicyContext(np.asarray(prior_K, np.float64)).prior_K
    num = len(prior_K)
    names = tuple(f"d{k}" for k in range(num)) if names_K is None else tuple(map(str, names_K))
    lengths_K = np.full(num, UNREPEATED) if length_K is None else np.asarray(length_K, np.int64)
    if len(names) != num or len(set(names)) != num or lengths_K.shape != (num,):
        raise UserError(f"{num} weights need as many distinct names and lengths, not {len(names)} and {lengths_K.size}")
    return Domains(names, names, np.arange(num), np.ones(num), lengths_K, prior_K, np.arange(num))
