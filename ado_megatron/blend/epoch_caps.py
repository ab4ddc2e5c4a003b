"""How often data may be repeated, and when it runs out.

Caps are samples: epochs × length. Inside a domain the other prefixes take over from one at its cap; a domain at its
cap drops out, and the others take over in proportion. So under weights that stay as they are all domains are exhausted
in the order of remaining / weight, and domain k reaches its cap after Σ_c min(remaining_c, w_c · remaining_k / w_k)
samples of the run. (`forecast` takes what it is given: it holds for whatever hands over in proportion.)

Legend: K domains, C datasets (one per prefix).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ado_megatron.blend.domains import Domains
from ado_megatron.blend.options import BlendOptions
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


def caps_from_config(config: BlendOptions, domains: Domains) -> np.ndarray | None:
    """caps_C: the most samples of each dataset that the run may draw; None when the user sets no cap."""
    return caps_of(parse_max_epochs(config.max_epochs, domains), domains)


def caps_of(epochs_K: np.ndarray, domains: Domains) -> np.ndarray | None:
    """caps_C from the most epochs of each domain (inf: no cap); None when no domain has a cap."""
    if not np.isfinite(epochs_K).any():
        return None
    epochs_C = epochs_K[domains.domain_of_C]
    # The tiny excess makes 0.1 × 30 three samples, not two.
    caps_C = np.minimum(np.where(np.isfinite(epochs_C), epochs_C, 1.0) * domains.lengths_C * (1 + 1e-12), UNLIMITED)
    return np.where(np.isfinite(epochs_C), np.floor(caps_C).astype(np.int64), UNLIMITED)


def check_supply(
    domains: Domains, caps_C: np.ndarray | None, spans: Sequence[tuple[np.ndarray, int]],
    drawn_C: np.ndarray | None = None,
) -> None:  # fmt: skip
    """UserError with supply, need and the caps that would do, when the rest of the run cannot be fed under its caps.

    spans: [(weights_K, samples), …], what is known of the weights to come. drawn_C: samples of each dataset before.
    Datasets without weight do not count: nothing is drawn from them.
    """
    if caps_C is None:
        return
    length_K = with_share(domains.domain_of_C, domains.share_C, domains.lengths_C)
    cap_K = _by_domain(domains, caps_C)
    drawn_K = np.zeros(len(length_K)) if drawn_C is None else _by_domain(domains, drawn_C)
    for weights_K, samples in spans:
        result = forecast(weights_K, length_K, drawn_K, samples, cap_K)
        if result.short:
            raise UserError(_shortage(domains, np.asarray(weights_K), length_K, cap_K, drawn_K, samples))
        drawn_K = result.drawn_C


def _shortage(
    domains: Domains, weights_K: np.ndarray, length_K: np.ndarray, cap_K: np.ndarray, drawn_K: np.ndarray, need: int
) -> str:
    feeds_K = weights_K > 0
    prefixes = int((feeds_K[domains.domain_of_C] & (domains.share_C > 0)).sum())
    supply = int(np.maximum(cap_K - drawn_K, 0)[feeds_K].sum())
    if drawn_K.any():
        return (
            f"the run needs {need:,} more samples with the weights that it then has, but their {prefixes} prefixes "
            f"have {supply:,} left under --ado-max-epochs; raise it, or end the run {need - supply:,} samples earlier"
        )
    epoch = int(length_K[feeds_K].sum())
    enough = np.ceil(need / epoch * 100) / 100
    return (
        f"the run needs {need:,} samples but its {prefixes} prefixes supply {supply:,} under "
        f"--ado-max-epochs (one epoch of all is {epoch:,}); {enough:g} epochs for all would do, or the present caps "
        f"times {need / max(supply, 1):.3g}, or a run of at most {supply:,} samples"
    )


def with_share(domain_of_C: np.ndarray, share_C: np.ndarray, value_C: np.ndarray) -> np.ndarray:
    """value_C summed over the prefixes of each domain that have a share of it: value_K, float64."""
    return np.bincount(domain_of_C, np.where(np.asarray(share_C) > 0, value_C, 0))


def _by_domain(domains: Domains, value_C: np.ndarray) -> np.ndarray:
    return with_share(domains.domain_of_C, domains.share_C, value_C)


@dataclass(frozen=True, eq=False)
class Forecast:
    """runs_out_C: samples of the whole run from now until one of them reaches its cap (inf: not under these weights).
    drawn_C: samples that each will have given when the run ends. epochs_C: the same in epochs. short: samples
    that cannot be drawn at all (0 when the run can be fed).
    """

    runs_out_C: np.ndarray
    drawn_C: np.ndarray
    epochs_C: np.ndarray
    short: float


def forecast(
    weights_C: np.ndarray, lengths_C: np.ndarray, drawn_C: np.ndarray, samples_left: float,
    caps_C: np.ndarray | None = None,
) -> Forecast:  # fmt: skip
    """When each dataset runs out if the weights stay as they are, `samples_left` samples before the end of the run.

    weights_C: of any positive sum. lengths_C: samples of an epoch. drawn_C: samples that each has given so far. caps_C:
    the most samples of each.
    """
    weights_C, drawn_C = np.asarray(weights_C, dtype=np.float64), np.asarray(drawn_C, dtype=np.float64)
    weights_C = weights_C / weights_C.sum()
    remaining_C = np.full(len(weights_C), np.inf)
    if caps_C is not None:
        caps_C = np.asarray(caps_C)
        remaining_C = np.where(caps_C >= UNLIMITED, np.inf, np.maximum(caps_C - drawn_C, 0.0))
    # In units of "samples of the run if nothing ran out", v, dataset c has given min(remaining_c, w_c v).
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
    epochs_C = after_C / np.maximum(np.asarray(lengths_C), 1)
    return Forecast(runs_out_C, after_C, epochs_C, short if short > 0.5 else 0.0)


def _virtual_end(
    sorted_end: np.ndarray, given: np.ndarray, sorted_weight: np.ndarray, out_at: np.ndarray, samples_left: float
) -> float:
    """The v at which all have given `samples_left` samples in all; inf when they cannot."""
    done = int(np.searchsorted(out_at, samples_left, side="right"))
    left = samples_left - (given[done - 1] if done else 0.0)
    weight = sorted_weight[done:].sum()
    return left / weight if weight > 1e-15 else np.inf


def forecast_lines(
    domains: Domains, weights_K: np.ndarray, drawn_C: np.ndarray, samples_left: float, caps_C: np.ndarray | None = None
) -> list[str]:
    """One line a domain: its epochs at the end of the run and, under a cap, when it runs out. For logs."""
    length_K, drawn_K = _by_domain(domains, domains.lengths_C), _by_domain(domains, drawn_C)
    cap_K = None if caps_C is None else _by_domain(domains, caps_C)
    result = forecast(weights_K, length_K, drawn_K, samples_left, cap_K)
    lines = []
    for name, epochs, last in zip(domains.names_K, result.epochs_C, result.runs_out_C, strict=True):
        when = "is at its cap" if last <= 0 else "does not run out"
        if 0 < last <= samples_left:
            when = f"runs out after {int(last):,} more samples of the run"
        lines.append(f"{name}: {epochs:.2f} epochs at the end of the run; {when}")
    return lines
