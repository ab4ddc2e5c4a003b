"""How little and how much of the mixture a domain may be, and how far the mixture may move.

Legend: K domains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ado_megatron.policy.options import PolicyOptions


def share_bounds(config: PolicyOptions, prior_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest share of each domain: δ_K = min(δ, c/K), never above 1/K; 0 where the prior is 0.

    config: resolved. Σ lower ≤ 1 ≤ Σ upper.
    """
    num_domains = len(prior_K)
    delta = min(config.min_share, 1.0 / num_domains)
    if config.min_share_factor > 0:
        delta = min(delta, config.min_share_factor / num_domains)
    lower_K = np.where(np.asarray(prior_K) > 0, delta, 0.0)
    return lower_K, np.full(num_domains, max(config.max_share, 1.0 / num_domains))


def total_variation(p_K: np.ndarray, q_K: np.ndarray) -> float:
    """½ Σ |p − q|: the part of the samples that goes to another domain."""
    return 0.5 * float(np.add.reduce(np.abs(p_K - q_K)))


def within_change(p_K: np.ndarray, anchor_K: np.ndarray, change: float) -> np.ndarray:
    """p if its total variation from the anchor is at most `change`, else the point that far on the line towards p.

    A point of the line keeps every bound that p and the anchor both keep.
    """
    distance = total_variation(p_K, anchor_K)
    if distance <= change:
        return p_K
    return anchor_K + (p_K - anchor_K) * (change / distance)
