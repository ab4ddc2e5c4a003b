"""The named profiles: one column per profile, one row per algorithm option.

ALGORITHM.md prints this table with the source of each entry; a test holds the two together. An option that a user
sets overrides its profile, so every heuristic can be ablated on its own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

from ado_megatron.errors import UserError
from ado_megatron.option_fields import check_fields, option

PREFIX = "--ado-"

# option: (released, paper, ado)
_TABLE = {
    # what sets the weights
    "policy": ("ado", "ado", "measure"),
    # what n is, and how fast a domain is still learning
    "own_n": (False, True, True),
    "speed_unit": ("sample", "sample", "sample"),
    "speed_exponent": (1.0, 1.0, 1.0),
    "alpha_floor": (0.05, 0.0, 0.0),
    # credit h
    "credit_source": ("counts", "policy", "policy"),
    "credit_rate": (0.1, 0.1, 0.1),
    "credit_exponent": (0.5, 0.5, 0.0),
    # time average and bounds of the weights
    "preference_rate": (0.1, 0.1, 1.0),
    "clip": ("rescale", "euclidean", "proportional"),
    "clip_target": ("preference", "policy", "policy"),
    "min_share": (0.01, 0.01, 0.01),
    "min_share_factor": (0.0, 0.0, 0.25),
    "clip_prior": (False, False, True),
    "max_share": (1.0, 1.0, 1.0),
    "max_change": (1.0, 1.0, 0.2),
    # when
    "start_step": (1000, 1000, 200),
    "ignore_steps": (1000, 1000, 50),
    "early_refits": (False, False, True),
    # history
    "smoothing": ("savgol", "savgol", "bins"),
    "smoothing_window": (101, 101, 101),
    "smoothing_order": (3, 3, 3),
    "stride": (10, 10, 10),
    "max_bins": (1024, 1024, 1024),
    "absent": ("repeat", "repeat", "weight"),
    # fit
    "huber_delta": (1e-3, 1e-3, 1e-2),
    "fit_reduce": ("sum", "sum", "mean"),
    "fit_bounds": ("penalty", "penalty", "box"),
    "fit_penalty": (1.0, 1.0, 1.0),
    "alpha_min": (0.001, 0.001, 0.001),
    "alpha_max": (0.8, 0.8, 1.5),
    "log_beta_max": (6.5, 6.5, 20.0),
    "epsilon_bounds": ("absolute", "absolute", "relative"),
    "log_epsilon_min": (0.5, 0.5, 0.5),
    "epsilon_min_share": (0.1, 0.1, 0.1),
    "epsilon_max_share": (0.999, 0.999, 0.999),
    # gate
    "gate": ("all", "all", "each"),
    "gate_points": (1, 1, 10),
    "gate_speed_error": (1.0, 1.0, 1.0),
}

NAMES = ("released", "paper", "ado")
OPTIONS = tuple(_TABLE)


def profile(name: str) -> dict:
    """Every algorithm option of the profile `name` (a KeyError for an unknown name)."""
    column = {known: i for i, known in enumerate(NAMES)}[name]
    return {option: values[column] for option, values in _TABLE.items()}


Self = TypeVar("Self", bound="ProfileOptions")


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """What all options of ADO have in common: a field that is None has the value that the profile gives it.

    Such fields are annotated with the type that they have once resolved, since every reader asks resolved options.

    A wing of the package declares the options that it reads as a subclass; `AdoConfig` is all of them together, so it
    can be handed to every wing. Raises UserError for a value outside its documented range.
    """

    profile: str = option(
        "ado", "algorithm profile; sets every algorithm option not given", choices=NAMES, resume="silent"
    )

    def __post_init__(self) -> None:
        check_fields(self, PREFIX)

    def value(self, name: str) -> Any:
        """The value of an option, from the profile where the user set none."""
        value = getattr(self, name)
        return profile(self.profile)[name] if value is None and name in OPTIONS else value

    def resolved(self: Self) -> Self:
        """The same options with every algorithm option filled in from the profile."""
        mine = {spec.name for spec in dataclasses.fields(self)} & set(OPTIONS)
        return dataclasses.replace(self, **{name: self.value(name) for name in mine})

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name (JSON-able); algorithm options not given stay None."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[Self], values: dict[str, Any]) -> Self:
        """The inverse of to_dict. Raises UserError for a name that is no option."""
        unknown = sorted(set(values) - {spec.name for spec in dataclasses.fields(cls)})
        if unknown:
            raise UserError(f"unknown option {', '.join(unknown)}")
        return cls(**values)

    @classmethod
    def of(cls: type[Self], config: ProfileOptions) -> Self:
        """The options of this class out of those of a larger one."""
        return cls(**{spec.name: getattr(config, spec.name) for spec in dataclasses.fields(cls)})
