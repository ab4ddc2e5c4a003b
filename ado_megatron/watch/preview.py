"""What the next refit would do if it were made now: laws fitted on what was measured so far, and the policy's answer.

The fit runs as that of a training does, in a process of its own (scaling_law/fit_process.py), so a page is drawn
meanwhile. A refit of the run has the losses of each step, this one those of logging intervals.

Legend: K domains, S logging intervals.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ado_megatron.errors import UserError
from ado_megatron.policy import PolicyContext, PolicyState, make_policy
from ado_megatron.policy.registry import WITHOUT_LAWS
from ado_megatron.report.data import Run
from ado_megatron.scaling_law.fit_process import Fit
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.scaling_law.transfer_option import ESTIMATE
from ado_megatron.steer import steering as steer
from ado_megatron.steer.steering import Steering

DEADLINE = 30.0  # seconds that a page waits for it that is printed once


class Preview:
    """Fits under way for one run; `look` starts and ends them, `weights_K` is the newest answer or None."""

    def __init__(self) -> None:
        self.weights_K: np.ndarray | None = None
        self._fit: tuple[Fit, Run] | None = None
        self._fitted = -1  # the step of the last run that was fitted

    def look(self, run: Run, steering: Steering, wait: float = 0.0) -> None:
        """Start a fit where there is something new, and take the result of one that has ended. steering: what is set
        by hand. wait: seconds to wait for it."""
        if (steering.policy or run.config.policy) in WITHOUT_LAWS or steering.hold:
            return
        if int(run.step_S[-1]) < self._fitted:  # the run went back
            self.cancel()
        if self._fit is None and int(run.step_S[-1]) != self._fitted:
            self._fitted = int(run.step_S[-1])
            self._fit = Fit(history(run), _options(run), _given(run)), run
        if self._fit is not None and (wait > 0 or self._fit[0].done()):
            fit, fitted = self._fit
            self._fit = None
            outcome = fit.result(max(wait, 1.0))
            if outcome.laws is not None:
                self.weights_K = next_weights(fitted, outcome.laws.merged(in_force(fitted)), steering)

    def cancel(self) -> None:
        """End what is under way and forget it."""
        if self._fit is not None:
            self._fit[0].cancel()
        self.weights_K, self._fit, self._fitted = None, None, -1


def history(run: Run) -> dict[str, np.ndarray]:
    """The intervals as rows of a fit: n and N in their middle, since their losses are means."""
    own_SxK = np.cumsum(run.counts_SxK, 0) - 0.5 * run.counts_SxK
    kept_S = np.concatenate([[0], run.step_S[:-1]]) >= run.config.value("ignore_steps")
    rows = {"step_T": run.step_S, "total_T": own_SxK.sum(1), "n_TxK": own_SxK, "loss_TxK": run.loss_SxK}
    rows["tokens_TxK"] = np.where(np.isfinite(run.loss_SxK), run.tokens_SxK, 0.0)
    return {name: value[kept_S] for name, value in rows.items()}


def in_force(run: Run) -> Laws | None:
    """The laws in force, None before the first."""
    laws = run.laws()
    return Laws.given(laws.law_Kx3, laws.transfer_K) if laws.step_K.any() else None


def next_weights(run: Run, laws: Laws, steering: Steering) -> np.ndarray | None:
    """The policy's weights under `laws`, bent to what is set by hand; None where it cannot be made here."""
    supply = run.supply
    natural_K = supply.length_K / max(supply.length_K.sum(), 1.0)
    block, num_blocks = int(run.step_S[-1]), supply.samples_left // supply.block_size + int(run.step_S[-1])
    target_K = steer.target_K(steering, run.names_K)
    target_K = run.target_K if target_K is None else target_K
    context = PolicyContext(
        run.prior_K, natural_K=natural_K, target_K=target_K, names_K=tuple(run.names_K),
        block_size=supply.block_size, num_blocks=num_blocks, cap_K=supply.cap_K, length_K=supply.length_K,
        seed=run.config.seed,
    )  # fmt: skip
    now_K = run.weights_SxK[-1] / run.weights_SxK[-1].sum()
    credits = [fit.credit_K for fit in run.fits if np.isfinite(fit.credit_K).all()]
    state = PolicyState(
        block, now_K, now_K, credits[-1] if credits else now_K, np.rint(supply.drawn_K).astype(np.int64)
    )
    try:
        config = steer.options(run.config, steering)
        policy = make_policy(dataclasses.replace(config, shadow=False, probe=0.0), context)
    except UserError:  # a target, stages or a package of another machine
        return None
    weights_K = policy.step(state, laws, np.zeros(len(now_K), np.int64)).base_K
    return steer.shaped(weights_K, *steer.bounds(steering, run.names_K))


def _options(run: Run):
    """Those of the run; its intervals are rows already, so nothing is smoothed or thinned."""
    return dataclasses.replace(run.config, smoothing="bins")


def _given(run: Run) -> np.ndarray | None:
    """The transfer of the laws in force, unless it is estimated with them."""
    return None if run.config.transfer_text == ESTIMATE else run.laws().transfer_K
