"""The words and numbers of a report: the table of the domains and what two runs can be said to differ in.

Legend: K domains.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ado_megatron.blend.epoch_caps import forecast
from ado_megatron.errors import UserError
from ado_megatron.option_fields import names
from ado_megatron.report.data import Run
from ado_megatron.tables import printable


def law_text(run: Run, k: int) -> str:
    """The law of a domain with the standard error of its exponent, or a dash."""
    log_beta, log_epsilon, alpha = run.laws().law_Kx3[k]
    if not np.isfinite(alpha):
        return "–"
    error = run.laws().stderr_Kx3[k, 2]
    spread = "" if not np.isfinite(error) else "(bound)" if error == 0 else f"±{error:.2f}"
    return f"{np.exp(log_epsilon):.2f} + {np.exp(log_beta):.3g}·n^−{alpha:.2f}{spread}"


def law_note(run: Run, k: int) -> str:
    """Whether the last fit was accepted, and why not."""
    laws = run.laws()
    if not run.fits:
        return "not fitted"
    if laws.ok_K[k]:
        error = laws.speed_stderr_K[k]
        return "ok" if not np.isfinite(error) else f"ok, speed ±{error:.0%}"
    kept = f"law of step {laws.step_K[k]} kept" if laws.step_K[k] else "no law yet"
    return f"{kept}: {laws.reason_K[k]}" if laws.reason_K[k] else kept


def forecast_K(run: Run) -> np.ndarray:
    """What the law in force says the loss will be when n is twice what it is; nan without a law."""
    return run.laws().loss(2.0 * run.law_n_SxK[-1])


def supply_columns(run: Run) -> list[tuple[str, list[str]]]:
    """Epochs so far; how many there will be at the end and, under caps, after which step a domain is at its cap, if the
    weights stay (a dash: not within the run)."""
    supply = run.supply
    epochs_K = supply.drawn_K / np.maximum(supply.length_K, 1)
    table = [("epochs", [f"{epochs:.2f}" for epochs in epochs_K])]
    result = forecast(run.weights_SxK[-1], supply.length_K, supply.drawn_K, supply.samples_left, supply.cap_K)
    if supply.samples_left:
        table.append(("at end", [f"{epochs:.2f}" for epochs in result.epochs_C]))
    if supply.cap_K is not None:
        after_K = run.step_S[-1] + np.ceil(result.runs_out_C / supply.block_size)
        words = [
            "–" if out > supply.samples_left else f"{int(after):,}" if out > 0 else "at its cap"
            for after, out in zip(after_K, result.runs_out_C, strict=True)
        ]
        table.append(("runs out", words))
    return table


def numbers(values: Iterable[float], form: str) -> list[str]:
    """A cell for each value, a dash where it is not finite."""
    return [format(value, form) if np.isfinite(value) else "–" for value in values]


def columns(run: Run) -> list[tuple[str, list[str]]]:
    """The table: (heading, one cell a domain) for each column."""
    first_K, last_K, later_K = run.first_loss_K(), run.last_loss_K(), forecast_K(run)

    table = [
        ("domain", run.names_K),
        ("tokens", numbers(run.tokens_SxK.sum(0), ",.0f")),
        *supply_columns(run),
        ("prior", numbers(run.prior_K, ".2%")),
        ("weight now", numbers(run.weights_SxK[-1], ".2%")),
        ("loss first", numbers(first_K, ".3f")),
        ("last", numbers(last_K, ".3f")),
    ]
    if run.fits:
        table += [
            ("law ε + β·n^−α", [law_text(run, k) for k in range(len(run.names_K))]),
            ("at 2n", numbers(later_K, ".3f")),
            ("last fit", [law_note(run, k) for k in range(len(run.names_K))]),
        ]
    return table


CAUTION = (
    "Both averages lean one way: equal weights for all domains favour whatever gives small domains more, weights of "
    "the prior favour keeping the prior. This is one pair of runs. In small runs of this kind, differences under about "
    "0.02 nats do not outlive a change of seed, and an adaptive mixture did not reliably beat its own prior. What is "
    "certain is where the samples went and what each domain's loss did; whether that is better depends on what the "
    "model is for."
)
LEFT = {"domain", "law ε + β·n^−α", "last fit"}


def gap_lines(run: Run) -> list[str]:
    """What the run's file lacks, a line a gap; the sums of the table do not hold it."""
    return [
        f"{gap.records:,} record{'s' * (gap.records != 1)} of steps {gap.from_step:,} to {gap.step:,} could not be "
        "written or read; tokens, n and losses leave them out"
        for gap in run.gaps
    ]


def event_lines(run: Run) -> list[str]:
    """Alarms and changes by hand, a line each."""
    return [printable(f"{event.kind}, step {event.step:,}: {event.text}") for event in run.events]


def comparable(run: Run, other: Run) -> None:
    """Raise UserError when two runs cannot be plotted side by side."""
    if run.names_K != other.names_K:
        odd = sorted(set(run.names_K) ^ set(other.names_K)) or run.names_K
        what = f"{other.path} and {run.path} do not have the same domains ({', '.join(odd)})"
        raise UserError(f"{what}; compare runs on the same data")


def differences(run: Run, other: Run) -> list[str]:
    """What sets two runs apart apart from their mixture, in words; empty when nothing does."""
    found = []
    ours, theirs = run.config.to_dict(), other.config.to_dict()
    for name in sorted(names(run.config, compare=True)):
        if ours[name] != theirs[name]:
            found.append(f"{name} is {ours[name]} here and {theirs[name]} there")
    if run.counts_SxK.sum() != other.counts_SxK.sum():
        found.append(f"{run.counts_SxK.sum():,} samples were measured here and {other.counts_SxK.sum():,} there")
    if not np.allclose(run.prior_K, other.prior_K):
        found.append("the priors differ")
    return found


def final_losses(*runs: Run) -> tuple[Any, ...]:
    """(what runs are compared on, loss_K of each): the last validation that all made, else the training loss at the
    end."""
    common = set.intersection(*(set(run.validation_step_V.tolist()) for run in runs))
    if common and all(np.isfinite(run.validation_VxK).any() for run in runs):
        last = max(common)
        rows = [run.validation_VxK[np.flatnonzero(run.validation_step_V == last)[-1]] for run in runs]
        return f"validation loss after {last:,} steps", *rows
    return "training loss at the end", *(run.last_loss_K() for run in runs)


def comparison_text(run: Run, other: Run) -> list[str]:
    """What the two arms can be said to differ in. No promise: one pair of runs is one draw."""
    what, ours_K, theirs_K = final_losses(run, other)
    gap_K = ours_K - theirs_K
    seen_K = np.isfinite(gap_K)
    if not seen_K.any():
        return [f"No domain has a {what} in both runs, so nothing is compared."]
    weighted = np.average(gap_K[seen_K], weights=run.prior_K[seen_K]) if run.prior_K[seen_K].sum() > 0 else np.nan
    lower = [name for name, gap, seen in zip(run.names_K, gap_K, seen_K, strict=True) if seen and gap < 0]
    lines = [
        f"Difference in {what}, {run.name} minus {other.name}: {gap_K[seen_K].mean():+.4f} nats averaged over the "
        f"domains, {weighted:+.4f} weighted by the prior; lower in {len(lower)} of {seen_K.sum()} domains"
        + (f" ({', '.join(lower)})." if lower else "."),
        CAUTION,
    ]
    apart = differences(run, other)
    if apart:
        lines.append("The two runs differ in more than the mixture: " + "; ".join(apart) + ".")
    return lines
