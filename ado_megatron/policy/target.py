"""The target τ: whose losses, with which weights, the mixture is to serve.

It is not where the mixture starts (that is the prior). Legend: K domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.errors import UserError
from ado_megatron.files import parse_json_or_yaml, read_text
from ado_megatron.policy.state import normalised

FLAG = "--ado-target"
WORDS = ("prior", "natural", "uniform")


def resolve_target(
    text: str, names_K: Sequence[str] | None, prior_K: ArrayLike, natural_K: ArrayLike | None = None
) -> np.ndarray:
    """τ of each domain, target_K: not negative, sum 1, float64.

    text: `prior` (the weights given), `natural` (natural_K, shares of the data), `uniform`, `code=.4,web=.6` (other
    domains 0), or the path of a JSON or YAML file that maps domains to weights (others 0).
    Raises UserError, one sentence, for a name that is no domain, a weight that is negative or not finite, weights that
    are all zero, a file that cannot be read, or a target of domains alone that are never drawn (prior 0).
    """
    prior_K = normalised(prior_K)
    if text == "prior":
        return prior_K
    if text == "uniform":
        return np.full(len(prior_K), 1.0 / len(prior_K))
    if text == "natural":
        if natural_K is None:
            raise UserError(f"{FLAG} natural: the sizes of the domains are not known here; give the weights by name")
        return normalised(natural_K, f"{FLAG} natural")
    values = _pairs(text) if "=" in text and not _is_file(text) else _mapping(text)
    target_K = _in_order(text, values, names_K)
    if not (target_K * prior_K > 0).any():
        raise UserError(
            f"{FLAG} {text}: the domains that it weighs have prior 0, so that none of them is ever drawn; give one of "
            "them a weight in the blend"
        )
    return target_K


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # too long for a path
        return False


def _pairs(text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.rpartition("=")
        name = name.strip()
        if not name:
            raise UserError(f"{FLAG} {text}: {part!r} is not domain=weight; write, say, code=.4,web=.6")
        if name in values:
            raise UserError(f"{FLAG} {text}: domain {name!r} stands there twice; give it one weight")
        values[name] = value
    return values


def _mapping(path: str) -> Mapping[str, Any]:
    words = f"is none of {', '.join(WORDS)}, has no domain=weight"
    text = read_text(path, f"{FLAG}: {path} {words}, and as a file it cannot be read")
    values = parse_json_or_yaml(text, f"{FLAG}: {path}")
    if not isinstance(values, dict) or not values:
        raise UserError(f"{FLAG}: {path} must map domains to weights, such as code: 0.4")
    return {str(name): value for name, value in values.items()}


def _in_order(where: str, values: Mapping[str, Any], names_K: Sequence[str] | None) -> np.ndarray:
    names = list(names_K or ())
    unknown = next((name for name in values if name not in names), None)
    if unknown is not None:
        raise UserError(f"{FLAG} {where}: there is no domain {unknown!r}; the domains are {', '.join(names)}")
    target_K = np.zeros(len(names))
    for name, value in values.items():
        try:
            weight = np.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            weight = np.nan
        if not (np.isfinite(weight) and weight >= 0):
            raise UserError(f"{FLAG} {where}: domain {name!r} has weight {value}; weights are numbers from 0 up")
        target_K[names.index(name)] = weight
    if not target_K.any():
        raise UserError(f"{FLAG} {where}: all weights are zero; give at least one domain a positive weight")
    return normalised(target_K, f"{FLAG} {where}")
