"""How often data may be repeated, and when it runs out.

Caps are samples: epochs × length. Under weights that stay as they are and caps that bind, columns at their cap drop out
and the others take over in proportion, so all columns are exhausted in the order of remaining / weight, and column k
reaches its cap after Σ_c min(remaining_c, w_c · remaining_k / w_k) samples of the run.

Legend: K domains, C columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ado_megatron.config import AdoConfig
from ado_megatron.domains import Domains
from ado_megatron.errors import UserError

UNLIMITED = 1 << 62  # a cap that no run reaches


def parse_max_epochs(text: str | None, domains: Domains) -> np.ndarray:
    """epochs_K from "4", "wiki=2" or "4,wiki=2"; infinite where nothing is said. UserError for anything else."""
    epochs_K = np.full(len(domains.names_K), np.inf)
    for part in (text or "").split(","):
        name, _, value = part.strip().rpartition("=")
        if not value and not name:
            if text is None or not text.strip():
                continue
            raise UserError(
                f"--ado-max-epochs {text}: write epochs for all (4), by domain (wiki=2), or both (4,wiki=2)"
            )
        try:
            epochs = float(value)
        except ValueError:
            epochs = -1.0
        if not (np.isfinite(epochs) and epochs > 0):
            raise UserError(f"--ado-max-epochs {text}: {part.strip()!r} is no positive number of epochs")
        if not name:
            given = np.array([f"{n}=" in (text or "").replace(" ", "") for n in domains.names_K])
            epochs_K = np.where(given & np.isfinite(epochs_K), epochs_K, epochs)
        else:
            epochs_K[domains.domain_of_name(name.strip())] = epochs
    return epochs_K


def caps_from_config(config: AdoConfig, domains: Domains) -> np.ndarray | None:
    """caps_C: the most samples of each column that the run may draw; None when the user sets no cap."""
    epochs_K = parse_max_epochs(config.max_epochs, domains)
    if not np.isfinite(epochs_K).any():
        return None
    epochs_C = epochs_K[domains.domain_of_C]
    # The tiny excess makes 0.1 × 30 three samples, not two.
    caps_C = np.minimum(np.where(np.isfinite(epochs_C), epochs_C, 1.0) * domains.lengths_C * (1 + 1e-12), UNLIMITED)
    return np.where(np.isfinite(epochs_C), np.floor(caps_C).astype(np.int64), UNLIMITED)


def check_supply(domains: Domains, caps_C: np.ndarray | None, total_samples: int) -> None:
    """UserError with supply, need and the caps that would do, when the run cannot be fed under its caps.

    Columns without weight in the prior do not count: nothing is drawn from them.
    """
    if caps_C is None:
        return
    drawn_C = domains.weights_C(domains.prior_K) > 0
    supply = sum(int(cap) for cap in caps_C[drawn_C])
    if supply >= total_samples:
        return
    epoch = int(domains.lengths_C[drawn_C].sum())
    enough = np.ceil(total_samples / epoch * 100) / 100
    raise UserError(
        f"the run needs {total_samples:,} samples but its {int(drawn_C.sum())} prefixes supply {supply:,} under "
        f"--ado-max-epochs (one epoch of all is {epoch:,}); {enough:g} epochs for all would do, or the present caps "
        f"times {total_samples / max(supply, 1):.3g}, or a run of at most {supply:,} samples"
    )


@dataclass(frozen=True, eq=False)
class Forecast:
    """runs_out_C: samples of the whole run from now until a column reaches its cap (inf: not under these weights).
    drawn_C: samples that each column will have given when the run ends. epochs_C: the same in epochs. short: samples
    that cannot be drawn at all (0 when the run can be fed).
    """

    runs_out_C: np.ndarray
    drawn_C: np.ndarray
    epochs_C: np.ndarray
    short: float


def forecast(weights_C, lengths_C, drawn_C, samples_left: float, caps_C=None) -> Forecast:
    """When each column runs out if the weights stay as they are, `samples_left` samples before the end of the run.

    drawn_C: samples that each column has given so far.
    """
    weights_C, drawn_C = np.asarray(weights_C, dtype=np.float64), np.asarray(drawn_C, dtype=np.float64)
    weights_C = weights_C / weights_C.sum()
    remaining_C = np.full(len(weights_C), np.inf)
    if caps_C is not None:
        caps_C = np.asarray(caps_C)
        remaining_C = np.where(caps_C >= UNLIMITED, np.inf, np.maximum(caps_C - drawn_C, 0.0))
    # In units of "samples of the run if nothing ran out", v, column c has given min(remaining_c, w_c v).
    end_C = np.full(len(weights_C), np.inf)
    np.divide(remaining_C, weights_C, out=end_C, where=weights_C > 0)
    order = np.argsort(end_C, kind="stable")
    sorted_end, sorted_weight = end_C[order], weights_C[order]
    finite = np.isfinite(sorted_end)
    given = np.cumsum(np.where(finite, sorted_end, 0.0) * sorted_weight)
    still = 1.0 - np.cumsum(sorted_weight)
    out_at = np.where(finite, given + np.where(finite, sorted_end, 0.0) * np.maximum(still, 0.0), np.inf)
    runs_out_C = np.empty_like(out_at)
    runs_out_C[order] = out_at
    v = _virtual_end(sorted_end, given, sorted_weight, out_at, samples_left)
    more_C = np.minimum(remaining_C, weights_C * v) if np.isfinite(v) else np.where(weights_C > 0, remaining_C, 0.0)
    after_C = drawn_C + more_C
    short = samples_left - float(more_C.sum())
    return Forecast(runs_out_C, after_C, after_C / np.asarray(lengths_C), short if short > 1e-6 * samples_left else 0.0)


def _virtual_end(sorted_end, given, sorted_weight, out_at, samples_left: float) -> float:
    """The v at which the columns have given `samples_left` samples in all; inf when they cannot."""
    done = int(np.searchsorted(out_at, samples_left, side="right"))
    left = samples_left - (given[done - 1] if done else 0.0)
    weight = sorted_weight[done:].sum()
    return left / weight if weight > 1e-15 else np.inf


def forecast_lines(domains: Domains, weights_K, drawn_C, samples_left: float, caps_C=None) -> list[str]:
    """One line a domain: its epochs at the end of the run and, under a cap, when it runs out. For logs and the
    report."""
    of = domains.by_domain  # a domain runs out when the last of its prefixes does
    caps_K = None if caps_C is None else np.bincount(domains.domain_of_C, caps_C.astype(np.float64))
    result = forecast(weights_K, of(domains.lengths_C), of(drawn_C), samples_left, caps_K)
    lines = []
    for name, epochs, last in zip(domains.names_K, result.epochs_C, result.runs_out_C, strict=True):
        when = f"runs out after {int(last):,} more samples of the run" if last <= samples_left else "does not run out"
        lines.append(f"{name}: {epochs:.2f} epochs at the end of the run; {when}")
    return lines
