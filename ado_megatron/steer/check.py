"""What a run grants: a request in words becomes what an entry of the journal holds, or one sentence says why not.

Legend: K domains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ado_megatron.blend.domains import Domains
from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.policy.registry import check_policy_name
from ado_megatron.policy.target import WORDS, resolve_target
from ado_megatron.steer.steering import Steering, bounds, can_hold
from ado_megatron.steer.words import EVERY, expanded

KEYS = ("pins", "unpin", "floor", "ceiling", "max_epochs", "policy", "target", "hold")


def what_of(
    asked: Mapping[str, Any], *, domains: Domains, config: AdoConfig, steering: Steering, weights_K: np.ndarray
) -> dict[str, Any]:  # fmt: skip
    """What changes, in the form of a journal's entry. Raises UserError, one sentence, for what cannot be.

    asked: the values of words.py under the names of KEYS. steering: what holds now. weights_K: in force now, to which a
    relative share refers.
    """
    unknown = sorted(set(asked) - set(KEYS))
    if unknown or not asked:
        raise UserError(f"a change is one of {', '.join(KEYS)}, not {', '.join(unknown) or 'nothing'}")
    what: dict[str, Any] = {}
    if "pins" in asked or "unpin" in asked:
        what["pins"] = _pins(asked, domains, steering, weights_K)
    for name in ("floor", "ceiling", "max_epochs"):
        if name in asked:
            what[name] = _numbers(asked[name], name, domains)
    if "policy" in asked:
        what["policy"] = _policy(asked["policy"], config)
    if "target" in asked:
        what["target"] = _target(asked["target"], domains)
    if "hold" in asked:
        what["hold"] = _hold(asked["hold"], steering)
    check_bounds(steering.changed(what), domains)
    return what


def _pins(
    asked: Mapping[str, Any], domains: Domains, steering: Steering, weights_K: np.ndarray
) -> dict[str, float | None]:  # fmt: skip
    pins: dict[str, float | None] = {}
    for name in asked.get("unpin", ()):
        names = list(steering.pins) if name == EVERY else [name]
        for one in names:
            domains.domain_of_name(one)
            if one not in steering.pins:
                raise UserError(f"domain {one!r} is not pinned; pinned are {', '.join(steering.pins) or 'none'}")
            pins[one] = None
        if not names:
            raise UserError("no domain is pinned")
    for name, share in dict(asked.get("pins", {})).items():
        k = domains.domain_of_name(name)
        if isinstance(share, str):  # relative
            pins[name] = float(weights_K[k]) * (1.0 + float(share))
            if not pins[name]:
                raise UserError(f"domain {name!r} has no share now, so it cannot grow by a part of it; give {name}=.05")
        else:
            pins[name] = _in_range(name, share, "pins")
    return pins


def _numbers(values: Any, what: str, domains: Domains) -> dict[str, float | None]:
    drawn = [name for name, prior in zip(domains.names_K, domains.prior_K, strict=True) if prior > 0]
    values = expanded(dict(values), domains.names_K if what == "max_epochs" else drawn)
    for name, value in values.items():
        domains.domain_of_name(name)
        if value is not None:
            values[name] = _in_range(name, value, what)
    return values


def _in_range(name: str, value: Any, what: str) -> float:
    value = float(value)
    if what == "max_epochs":
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"domain {name!r}: a cap is a positive number of epochs, not {value:g}")
    elif not 0 <= value <= 1:
        raise UserError(f"domain {name!r}: a share is from 0 to 1, not {value:g}")
    return value


def _policy(name: Any, config: AdoConfig) -> str:
    check_policy_name(str(name))
    if name == "stages":
        raise UserError("the policy cannot become stages by hand: its stages are in a file that the run was not given")
    if config.shadow:
        raise UserError("this run only measures (--ado-shadow), so no policy decides its weights; pin them instead")
    return str(name)


def _target(target: Any, domains: Domains) -> dict[str, float]:
    if isinstance(target, str) and target not in WORDS:
        raise UserError(f"the target is one of {', '.join(WORDS)}, or weights by domain, not {target!r}")
    size_K = np.bincount(domains.domain_of_C, domains.lengths_C.astype(np.float64), minlength=len(domains.names_K))
    text = target if isinstance(target, str) else ",".join(f"{name}={value}" for name, value in dict(target).items())
    target_K = resolve_target(text, domains.names_K, domains.prior_K, size_K / size_K.sum())
    return {name: float(w) for name, w in zip(domains.names_K, target_K, strict=True) if w > 0}


def _hold(hold: Any, steering: Steering) -> bool:
    if bool(hold) == steering.hold:
        raise UserError("the weights are held already" if hold else "the weights are not held; nothing is released")
    return bool(hold)


def check_bounds(steering: Steering, domains: Domains) -> None:
    """UserError where pins, floors and ceilings leave no weights."""
    for name, share in steering.pins.items():
        low, high = steering.floor.get(name, 0.0), steering.ceiling.get(name, 1.0)
        if not low <= share <= high:
            bound = f"floor {low:g}" if share < low else f"ceiling {high:g}"
            raise UserError(f"domain {name!r} cannot be pinned at {share:.4g}: it has a {bound}; change that as well")
    for name, low in steering.floor.items():
        if low > steering.ceiling.get(name, 1.0):
            raise UserError(f"domain {name!r} has floor {low:g} above its ceiling {steering.ceiling[name]:g}")
    lower_K, upper_K = bounds(steering, domains.names_K)
    if can_hold(domains.prior_K > 0, lower_K, upper_K):
        return
    if lower_K.sum() > 1:
        raise UserError(f"pins and floors sum to {lower_K.sum():.4g}; shares sum to 1, so lower some or unpin a domain")
    most = np.where(domains.prior_K > 0, upper_K, lower_K).sum()
    raise UserError(
        f"pins and ceilings leave at most {most:.4g} of the samples; leave a domain free, or let them sum to 1"
    )
