"""The policy `plan`: at every refit, the shares of all that is left of the run, which then hold until the next refit.

horizon.py has the mathematics. Here laws, counts and options become its problem, and a gate decides whether the answer
is known well enough to be acted on. Where it is not, the weights stay: at first they are the prior.

Legend: K domains; n own samples, s transfer, N samples of all domains, R samples left, E₀ = m(n) + s N.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.policy.bounds import share_bounds, total_variation, within_change
from ado_megatron.policy.context import PolicyContext, as_context
from ado_megatron.policy.horizon import Doubt, Horizon, best_shares, gain_error, worth
from ado_megatron.policy.options import PolicyOptions
from ado_megatron.policy.simplex import project_proportional
from ado_megatron.policy.state import PolicyState, state_at
from ado_megatron.scaling_law.laws import Laws

# Beyond these a law is no measurement of a loss.
_GREATEST_ALPHA = 20.0
_GREATEST_LOG_LOSS = 10.0
_GREATEST_TRANSFER = 1e6
_GREATEST_VARIANCE = 1e100
# Of the best move, tried in turn. The gain bends and its error does not, so a part may be known to pay where the whole
# is not.
_PARTS = (1.0, 0.5, 0.25)
_TO_80_PERCENT = 1.2815515655446004  # standard errors from the mean to the end of a central 80 % interval


@dataclass(frozen=True, eq=False)
class Decision:
    """What was decided at a refit. gain and error: of F, nats at the end of the run."""

    weights_K: np.ndarray
    gain: float
    error: float
    moved: bool


class PlanPolicy:
    """Weights that are best for the rest of the run, by the laws, if the laws can tell (horizon.py, gate)."""

    def __init__(self, config: PolicyOptions, context: PolicyContext | ArrayLike):
        """config: need not be resolved. context: or a prior alone; then the horizon is what was drawn so far."""
        self.config, self.context = config.resolved(), as_context(context)
        prior_K = self.context.prior_K
        delta_K, most_K = share_bounds(self.config, prior_K)
        # The bounds never move a domain off its prior: that would be a change for which no law speaks.
        self.lower_K, self.upper_K = np.minimum(delta_K, prior_K), np.where(prior_K > 0, np.maximum(most_K, prior_K), 0)
        self._options = self._digest_of_options()
        self._digested: tuple[Laws, int] | None = None  # the last laws and their digest: a cache, no state

    def initial_state(self) -> PolicyState:
        """Before the first block: the prior."""
        return state_at(self.context.prior_K, self.context.prior_K)

    def spans(self, first: int, stop: int) -> list[tuple[np.ndarray, int]]:
        """As of AdoPolicy."""
        return [(self.context.prior_K, stop - first)]

    def constant_until(self, state: PolicyState, laws: Laws | None, stop: int) -> int:
        """As of AdoPolicy: to the end, unless the next step is the first under its laws."""
        if laws is None:
            return stop
        if self._decides(state.step) and self._digest(laws) != state.solved_for:
            return min(state.step + 1, stop)
        if state.step < self.config.start_step:
            return min(self.config.start_step + 1, stop)
        return stop

    def step(self, state: PolicyState, laws: Laws | None, counts_K: ArrayLike) -> PolicyState:
        """As of AdoPolicy. Solves only where the laws, or the options, are not those that were solved for."""
        acts = self._decides(state.step)
        state = state.after(counts_K)
        if laws is None or not acts or (digest := self._digest(laws)) == state.solved_for:
            return state
        state = dataclasses.replace(state, solved_for=digest, anchor_K=state.base_K)
        left = self.context.samples_left(state.step, float(state.samples_K.sum()))
        if left <= 0:
            return state
        decision = self.decide(laws, state.samples_K, state.base_K, left)
        distance = total_variation(decision.weights_K, state.base_K)
        what = f"{distance:.1%} of the samples go to other domains" if decision.moved else "the weights stay"
        note = f"plan: {what}; predicted gain {decision.gain:.5f} ± {decision.error:.5f} nats at the end of the run"
        return dataclasses.replace(state.at_weights(decision.weights_K), note=note)

    def step_constant(self, state: PolicyState, laws: Laws | None, counts_SxK: np.ndarray) -> PolicyState:
        """`step` over several blocks before `constant_until`: the same state, bit for bit."""
        return state.after(counts_SxK.sum(axis=0), len(counts_SxK))

    def _decides(self, block: int) -> bool:
        return block >= self.config.start_step

    def decide(self, laws: Laws, samples_K: np.ndarray, anchor_K: np.ndarray, left: float) -> Decision:
        """The weights for the `left` samples to come, after samples_K at the weights anchor_K. Raises nothing."""
        config = self.config
        problem, known_K = self.problem(laws, samples_K, left)
        cap_K = self._cap_shares(samples_K, left)
        if cap_K[self.context.prior_K > 0].sum() < 1.0:  # the run cannot be fed: the caps alone decide what is drawn
            return Decision(anchor_K, 0.0, 0.0, False)
        if (anchor_K > cap_K).any():
            anchor_K = project_proportional(anchor_K, np.zeros_like(anchor_K), cap_K)
        lower_K, upper_K = self._bounds(known_K, cap_K)
        start_K = anchor_K
        if (start_K < lower_K).any() or (start_K > upper_K).any():
            start_K = np.clip(project_proportional(start_K, lower_K, upper_K), lower_K, upper_K)
        w_K = best_shares(problem, lower_K, upper_K, start_K, config.plan_max_change)
        w_K = within_change(w_K, anchor_K, config.plan_max_change)
        return self._gated(problem, self._doubt(laws, samples_K, known_K), anchor_K, w_K)

    def _gated(self, problem: Horizon, doubt: Doubt, anchor_K: np.ndarray, w_K: np.ndarray) -> Decision:
        """The greatest part of the move from anchor_K to w_K that is known to pay; else none, with what it promised."""
        tried, at_anchor = [], problem.objective(anchor_K)
        for part in _PARTS:
            part_K = w_K if part == 1.0 else anchor_K + part * (w_K - anchor_K)
            gain = at_anchor - problem.objective(part_K)
            error = gain_error(problem, doubt, anchor_K, part_K)
            if gain > self.config.plan_gate * error and gain > 0:
                return Decision(part_K, gain, error, True)
            tried.append(Decision(anchor_K, gain, error, False))
        return tried[0]

    def problem(self, laws: Laws, samples_K: np.ndarray, left: float) -> tuple[Horizon, np.ndarray]:
        """(the problem of horizon.py, known_K: which domains have an identified law)."""
        config, context = self.config, self.context
        n_K = np.maximum(samples_K, 1).astype(np.float64)
        total = n_K.sum()
        length_K = np.full(len(n_K), np.inf) if context.length_K is None else np.maximum(context.length_K, 1.0)
        known_K = _known(laws, n_K) & (samples_K > 0) & (context.prior_K > 0)
        own_K = known_K & np.isfinite(laws.transfer_K)  # its loss follows its own samples
        transfer_K = np.where(own_K, laws.transfer_K, 0.0)
        excess_K = context.known_target_K * _present_excess(laws, n_K, own_K)
        present_K = worth(n_K, length_K, config.plan_repeat)[0] + transfer_K * total
        return Horizon(
            excess_K=excess_K, alpha_K=np.where(own_K, laws.alpha_K, 0.0), samples_K=n_K,
            shared_K=transfer_K * (total + left), present_K=present_K, length_K=length_K,
            prior_K=np.where(context.prior_K > 0, context.prior_K, 1.0), left=left, kl=config.plan_kl,
            reuse=config.plan_repeat,
        ), known_K  # fmt: skip

    def _doubt(self, laws: Laws, samples_K: np.ndarray, known_K: np.ndarray) -> Doubt:
        n_K = np.maximum(samples_K, 1).astype(np.float64)
        own_K = known_K & np.isfinite(laws.transfer_K)
        transfer_K = np.where(own_K, laws.transfer_K, 0.0)
        effective_K = n_K + transfer_K * n_K.sum()
        loss_K = np.exp(np.where(own_K, laws.log_epsilon_K, 0.0)) + _present_excess(laws, n_K, own_K)
        covariance_Kx3x3 = np.where(own_K[:, None, None], np.nan_to_num(laws.covariance_Kx3x3), 0.0)
        return Doubt(
            covariance_Kx3x3=covariance_Kx3x3, log_n_K=np.log(effective_K), transfer_K=transfer_K,
            transfer_error_K=_transfer_error(laws, own_K), total=float(n_K.sum()),
            model_K=self.config.plan_model_error * self.context.known_target_K * loss_K,
        )  # fmt: skip

    def _cap_shares(self, samples_K: np.ndarray, left: float) -> np.ndarray:
        """The greatest share of what is left that no epoch cap forbids; at most 1."""
        if self.context.cap_K is None:
            return np.ones(len(samples_K))
        return np.clip((self.context.cap_K - samples_K) / left, 0.0, 1.0)

    def _bounds(self, known_K: np.ndarray, cap_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(lower_K, upper_K): floor and ceiling, the prior alone where no law is known, and never above the caps.

        Where caps leave too little under the ceilings and the fixed shares, these give way.
        """
        prior_K = self.context.prior_K
        upper_K = np.minimum(np.where(known_K, self.upper_K, prior_K), cap_K)
        if upper_K.sum() < 1.0:
            upper_K = np.where(prior_K > 0, cap_K, 0.0)
        return np.minimum(np.where(known_K, self.lower_K, prior_K), upper_K), upper_K

    def _digest_of_options(self) -> bytes:
        names = ("plan_kl", "plan_max_change", "plan_gate", "plan_model_error", "plan_repeat", "min_share",
                 "min_share_factor", "max_share")  # fmt: skip
        options = repr([(name, getattr(self.config, name)) for name in names]).encode()
        context = self.context
        arrays = (context.prior_K, context.known_target_K, context.cap_K, context.length_K)
        return options + b"".join(b"-" if a is None else np.asarray(a, np.float64).tobytes() for a in arrays)

    def _digest(self, laws: Laws) -> int:
        """What the weights are decided for: laws and options, as a positive 63-bit number."""
        if self._digested is None or self._digested[0] is not laws:
            names = ("log_beta_K", "log_epsilon_K", "alpha_K", "transfer_K", "transfer_low_K", "transfer_high_K",
                     "covariance_Kx3x3", "ok_K")  # fmt: skip
            parts = [np.ascontiguousarray(getattr(laws, name)).tobytes() for name in names]
            digest = hashlib.blake2b(b"".join([self._options, *parts]), digest_size=8).digest()
            self._digested = (laws, (int.from_bytes(digest, "little") >> 1) or 1)
        return self._digested[1]


def _known(laws: Laws, n_K: np.ndarray) -> np.ndarray:
    """Which laws may be acted on: usable, of a size that a loss can have, and of known error unless they were given.

    What is kept out so also keeps the arithmetic of horizon.py within the range of a double.
    """
    plausible_K = (laws.alpha_K > 0) & (laws.alpha_K < _GREATEST_ALPHA)
    plausible_K &= np.isfinite(laws.log_epsilon_K) & (laws.log_epsilon_K < _GREATEST_LOG_LOSS)
    plausible_K &= np.isinf(laws.transfer_K) | ((laws.transfer_K >= 0) & (laws.transfer_K < _GREATEST_TRANSFER))
    log_excess_K = np.where(plausible_K, laws.log_beta_K, np.nan)
    log_excess_K = log_excess_K - np.where(plausible_K, laws.alpha_K, 0.0) * np.log(_effective(laws, n_K))
    plausible_K &= np.isfinite(log_excess_K) & (log_excess_K < _GREATEST_LOG_LOSS)
    with np.errstate(invalid="ignore"):
        measured_K = (np.abs(laws.covariance_Kx3x3) < _GREATEST_VARIANCE).all((1, 2))
    return laws.ok_K & plausible_K & (measured_K | (laws.points_K == 0))


def _effective(laws: Laws, n_K: np.ndarray) -> np.ndarray:
    """n + s N; n itself where s is not finite or absurd."""
    usable_K = (laws.transfer_K >= 0) & (laws.transfer_K < _GREATEST_TRANSFER)
    return n_K + np.where(usable_K, laws.transfer_K, 0.0) * n_K.sum()


def _present_excess(laws: Laws, n_K: np.ndarray, own_K: np.ndarray) -> np.ndarray:
    """P = L now − ε, nats; 0 where the loss does not follow own samples."""
    log_beta_K, alpha_K = (np.where(own_K, value_K, 0.0) for value_K in (laws.log_beta_K, laws.alpha_K))
    return np.where(own_K, np.exp(log_beta_K - alpha_K * np.log(_effective(laws, n_K))), 0.0)


def _transfer_error(laws: Laws, own_K: np.ndarray) -> np.ndarray:
    """Standard error of log s from its central 80 % interval; 0 where s was given."""
    open_K = own_K & (laws.transfer_low_K > 0) & (laws.transfer_high_K > laws.transfer_low_K)
    open_K &= np.isfinite(laws.transfer_high_K)
    low_K, high_K = (np.where(open_K, s_K, 1.0) for s_K in (laws.transfer_low_K, laws.transfer_high_K))
    return np.log(high_K / low_K) / (2 * _TO_80_PERCENT)
