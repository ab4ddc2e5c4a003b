"""What an operator has set in a run, and what that makes of its options and of the policy's weights.

Legend: K domains, C datasets (one per prefix).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ado_megatron.blend.domains import Domains
from ado_megatron.blend.epoch_caps import caps_of, parse_max_epochs
from ado_megatron.config import AdoConfig
from ado_megatron.policy.simplex import project_proportional

_SLACK = 1e-12  # of a sum of shares
BY_DOMAIN = ("pins", "floor", "ceiling", "max_epochs")  # changed domain by domain


@dataclasses.dataclass(frozen=True)
class Steering:
    """What is set by hand; by domain where it is a mapping. None and {}: as the run was launched.

    pins: shares that stay as they are. floor, ceiling: least and greatest shares. max_epochs: caps (None: no cap), for
    --ado-max-epochs. target: weights, other domains 0. hold: the weights in force when it began stay.
    """

    pins: Mapping[str, float] = dataclasses.field(default_factory=dict)
    floor: Mapping[str, float] = dataclasses.field(default_factory=dict)
    ceiling: Mapping[str, float] = dataclasses.field(default_factory=dict)
    max_epochs: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    policy: str | None = None
    target: Mapping[str, float] | None = None
    hold: bool = False

    def changed(self, what: Mapping[str, Any]) -> Steering:
        """After one change. what: as an entry of the journal holds it; keys that it lacks stay as they are."""
        new: dict[str, Any] = {name: what[name] for name in ("policy", "target", "hold") if name in what}
        for name in BY_DOMAIN:
            if name in what:
                new[name] = _merged(getattr(self, name), what[name], keep_none=name == "max_epochs")
        return dataclasses.replace(self, **new)

    def before(self, what: Mapping[str, Any]) -> dict[str, Any]:
        """What `what` is about to change, as it stands now, in the same form."""
        old: dict[str, Any] = {name: getattr(self, name) for name in ("policy", "target", "hold") if name in what}
        for name in BY_DOMAIN:
            if name in what:
                old[name] = {domain: getattr(self, name).get(domain) for domain in what[name]}
        return old


def _merged(old: Mapping[str, Any], new: Mapping[str, Any], *, keep_none: bool) -> dict[str, Any]:
    """The old settings with the new ones in their place; None takes a setting away, but that of a cap says no cap."""
    merged = {**old, **new}
    return merged if keep_none else {domain: value for domain, value in merged.items() if value is not None}


def bounds(steering: Steering, names_K: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(lower_K, upper_K) that pins, floors and ceilings set. A pin is both; a floor is never above a ceiling."""
    lower_K, upper_K = np.zeros(len(names_K)), np.ones(len(names_K))
    for values, bound_K in ((steering.floor, lower_K), (steering.ceiling, upper_K)):
        for name, share in values.items():
            if name in names_K:  # a domain that has left the blend since is not bound
                bound_K[names_K.index(name)] = share
    lower_K = np.minimum(lower_K, upper_K)
    for name, share in steering.pins.items():
        if name in names_K:
            lower_K[names_K.index(name)] = upper_K[names_K.index(name)] = share
    return lower_K, upper_K


def shaped(weights_K: np.ndarray, lower_K: np.ndarray, upper_K: np.ndarray) -> np.ndarray:
    """The weights bent to the bounds: shares inside them keep their ratios, the sum is 1.

    Weights that keep the bounds are returned as they are; so are those that cannot be bent to them (`can_hold`).
    """
    if (lower_K <= weights_K).all() and (weights_K <= upper_K).all():
        return weights_K
    if not can_hold(weights_K > 0, lower_K, upper_K):
        return weights_K
    # A domain without weight stays without, unless it is asked for.
    return project_proportional(weights_K, lower_K, np.where(weights_K > 0, upper_K, lower_K))


def can_hold(drawn_K: np.ndarray, lower_K: np.ndarray, upper_K: np.ndarray) -> bool:
    """Whether some weights keep the bounds. drawn_K: the domains that have weight without them."""
    most = np.where(drawn_K, upper_K, lower_K).sum()
    return bool(lower_K.sum() <= 1 + _SLACK and most >= 1 - _SLACK)


def options(config: AdoConfig, steering: Steering) -> AdoConfig:
    """The options with the policy that is set by hand."""
    return config if steering.policy is None else dataclasses.replace(config, policy=steering.policy, stages=None)


def caps_C(config: AdoConfig, domains: Domains, steering: Steering) -> np.ndarray | None:
    """The most samples of each dataset that the run may draw; None when nothing caps it."""
    epochs_K = parse_max_epochs(config.max_epochs, domains)
    for name, epochs in steering.max_epochs.items():
        if name in domains.names_K:
            epochs_K[domains.names_K.index(name)] = np.inf if epochs is None else epochs
    return caps_of(epochs_K, domains)


def target_K(steering: Steering, names_K: Sequence[str]) -> np.ndarray | None:
    """τ that is set by hand, sum 1; None where none is, or where all its domains have left the blend."""
    if steering.target is None:
        return None
    weights_K = np.array([steering.target.get(name, 0.0) for name in names_K], dtype=np.float64)
    return weights_K / weights_K.sum() if weights_K.any() else None
