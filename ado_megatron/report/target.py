"""What a run serves, in numbers: the target loss Σ τ L, its law, and the domains that paid for it.

Legend: K domains; n samples as the laws count them, N samples of all domains.
"""

from __future__ import annotations

import numpy as np

from ado_megatron.report.data import Run
from ado_megatron.scaling_law.laws import Laws

TWICE = 2.0  # standard errors that count as more than the uncertainty


def target_loss(run: Run) -> tuple[str, float]:
    """(what it is of, Σ τ L in nats): the last validation of all weighed domains, else what the laws say now; nan where
    neither is known."""
    target_K = target_of(run)
    weighed_K = target_K > 0
    if len(run.validation_VxK) and np.isfinite(run.validation_VxK[-1][weighed_K]).all():
        loss = float(target_K[weighed_K] @ run.validation_VxK[-1][weighed_K])
        return f"validation after {run.validation_step_V[-1]:,} steps", loss
    return "by the laws", float(target_K[weighed_K] @ law_loss_K(run, 1.0)[weighed_K])


def target_of(run: Run) -> np.ndarray:
    """τ, of a run that did not record it the prior."""
    target_K = run.prior_K if run.target_K is None else run.target_K
    return target_K / target_K.sum()


def law_loss_K(run: Run, factor: float, weights_K: np.ndarray | None = None) -> np.ndarray:
    """The losses by the laws in force at `factor` times the samples so far, drawn as they were or at fixed weights."""
    laws, own_K = run.laws(), run.counts_SxK.sum(0)
    if weights_K is not None:
        own_K = own_K.sum() * weights_K / weights_K.sum()
    n_K = Laws.given(laws.law_Kx3, laws.transfer_K).effective_n(factor * own_K)
    return laws.loss(np.maximum(n_K, 1.0))


def against_the_prior(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """(worse_K, error_K) in nats: the last losses less what the laws forecast for as many samples at the prior, and the
    standard error of that.

    The error has two parts: the law between the two n, known as well as its speed is, and the scatter of the losses
    about it. nan for a domain without a law.
    """
    now_K, prior_K = law_loss_K(run, 1.0), law_loss_K(run, 1.0, run.prior_K)
    rms_K = run.fits[-1].rms_K if run.fits else np.full(len(now_K), np.nan)
    last_K = run.last_loss_K()
    law_error_K = np.abs(now_K - prior_K) * np.nan_to_num(run.laws().speed_stderr_K, nan=1.0)
    return last_K - prior_K, np.hypot(law_error_K, np.nan_to_num(rms_K) * last_K)


def target_lines(run: Run, most: int | None = None) -> list[str]:
    """The target loss with its law, and the domains that are worse than the prior's forecast, a sentence each.

    The worst comes first. most: so many are named and the rest is counted; None: all.
    """
    what, loss = target_loss(run)
    target_K = target_of(run)
    weighed_K = target_K > 0
    if not np.isfinite(loss):
        return ["Target loss Σ τ·L: not known yet, there is no validation and a weighed domain has no law."]
    lines = [f"Target loss Σ τ·L ({run.config.target}): {loss:.4f} nats, {what}."]
    now, later, forecast = (float(target_K[weighed_K] @ loss_K[weighed_K]) for loss_K in (
        law_loss_K(run, 1.0), law_loss_K(run, 2.0), law_loss_K(run, 1.0, run.prior_K)))  # fmt: skip
    if not np.isfinite(now):
        return [*lines, "Its law is not known: a weighed domain has none."]
    floor = float(target_K[weighed_K] @ np.exp(run.laws().law_Kx3[weighed_K, 1]))
    lines.append(
        f"Its law: {now:.4f} now, {later:.4f} at twice the samples, {floor:.4f} in the limit; the prior, held fixed, "
        f"would be at {forecast:.4f}."
    )
    worse_K, error_K = against_the_prior(run)
    with np.errstate(invalid="ignore"):
        named = np.flatnonzero(worse_K > TWICE * error_K)
    if len(named):
        named = named[np.argsort(-worse_K[named], kind="stable")]
        words = ", ".join(f"{run.names_K[k]} {worse_K[k]:+.3f} ± {TWICE * error_K[k]:.3f}" for k in named[:most])
        more = len(named) - len(named[:most])
        rest = f"; {more:,} more, in the text that ado-megatron report prints" if more else ""
        lines.append(f"Worse than the prior's forecast by more than its uncertainty: {words} nats{rest}.")
    else:
        lines.append("No domain is worse than the prior's forecast by more than its uncertainty (two standard errors).")
    return lines
