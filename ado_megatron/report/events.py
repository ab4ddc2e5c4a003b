"""What happened to a run, in order of the steps: for the page and for `ado-megatron watch`."""

from __future__ import annotations

import numpy as np

from ado_megatron.report.data import Event, Fit, Run

MOST_NAMED = 5  # domains in one sentence


def events(run: Run) -> list[Event]:
    """Alarms, changes, fits (also "partial fit": not all laws were accepted, and "failed fit"), gaps, validations."""
    found = [*run.events, *(_fit(run.names_K, fit) for fit in run.fits)]
    for gap in run.gaps:
        found.append(Event(gap.step, "gap", f"{gap.records} records of steps {gap.from_step} to {gap.step} are lost"))
    for step, loss_K in zip(run.validation_step_V, run.validation_VxK, strict=True):
        if np.isfinite(loss_K).any():
            found.append(Event(int(step), "validation", f"mean loss {np.nanmean(loss_K):.4f} nats over the domains"))
    return sorted(found, key=lambda event: event.step)


def _fit(names_K: list[str], fit: Fit) -> Event:
    if fit.failed is not None:
        return Event(fit.step, "failed fit", f"the old laws stay: {fit.failed}")
    text = f"laws of {fit.ok_K.sum()} of {len(fit.ok_K)} domains fitted in {fit.seconds:.1f} s"
    kept = np.flatnonzero(~fit.ok_K)
    if not len(kept):
        return Event(fit.step, "fit", text)
    named = ", ".join(names_K[k] + (f" ({fit.reason_K[k]})" if fit.reason_K[k] else "") for k in kept[:MOST_NAMED])
    return Event(fit.step, "partial fit", f"{text}; not of {named}" + (", …" if len(kept) > MOST_NAMED else ""))
