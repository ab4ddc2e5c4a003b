"""Policies by name: ours in one table, the user's by entry point.

A package of the user's own makes a policy known with

    [project.entry-points."ado_megatron.policies"]
    mine = "my_package.my_module:MyPolicy"

and a run takes it with `--ado-policy mine`. Ours are named in the same way, so none is imported before it is asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import metadata
from typing import Any

from ado_megatron.errors import UserError

GROUP = "ado_megatron.policies"
BUILT_IN = {
    "ado": "ado_megatron.policy.ado:AdoPolicy",
    "plan": "ado_megatron.policy.plan:PlanPolicy",
    "measure": "ado_megatron.policy.fixed:StaticPolicy",
    "static": "ado_megatron.policy.fixed:StaticPolicy",
    "stages": "ado_megatron.policy.fixed:StagesPolicy",
}
WITHOUT_LAWS = frozenset({"static", "stages"})  # no refit is made for these
NOT_BY_LAWS = WITHOUT_LAWS | {"measure"}  # weights that no law moves

Factory = Callable[..., Any]


def policy_names() -> tuple[str, ...]:
    """Every name that `--ado-policy` takes: ours, then those of installed packages in alphabetical order."""
    return (*BUILT_IN, *sorted({point.name for point in metadata.entry_points(group=GROUP)} - set(BUILT_IN)))


def check_policy_name(name: str) -> None:
    """UserError, with the names that there are, for a name that is none of them."""
    if name in BUILT_IN:
        return
    names = policy_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        guess = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(
            f"--ado-policy {name}: there is no policy of this name{guess}; there are {', '.join(names)}, and "
            f"an installed package may add its own by the entry point group {GROUP}"
        )


def policy_factory(name: str) -> Factory:
    """What makes the policy: called with (config, context). Raises UserError for a name or an import that fails."""
    check_policy_name(name)
    if name in BUILT_IN:
        return metadata.EntryPoint(name, BUILT_IN[name], GROUP).load()
    point = next(point for point in metadata.entry_points(group=GROUP) if point.name == name)
    try:
        factory = point.load()
    except Exception as error:  # whatever the user's module does when it is imported
        raise UserError(
            f"--ado-policy {name}: its entry point {point.value} cannot be loaded ({type(error).__name__}: {error}); "
            "mend or remove that package"
        ) from error
    if not callable(factory):
        raise UserError(f"--ado-policy {name}: its entry point {point.value} is no class; it must make a policy")
    return factory
