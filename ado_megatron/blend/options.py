"""Options of what is mixed."""

from __future__ import annotations

from dataclasses import dataclass

from ado_megatron.option_fields import option
from ado_megatron.profiles import ProfileOptions


@dataclass(frozen=True, kw_only=True)
class BlendOptions(ProfileOptions):
    """Which prefixes make a domain, where the mixture starts, how often data may be repeated."""

    prior: str = option(
        "given",
        "prior μ, also the weights of policy static: the user's, token shares (natural), equal, or "
        "natural^(1/temperature)",
        choices=("given", "natural", "uniform", "temperature"), resume="free",
    )
    temperature: float = option(1.0, "temperature τ of prior=temperature: μ ∝ natural^(1/τ)", above=0.0, resume="free")
    groups: str | None = option(
        None, "YAML or JSON file: domain → its prefixes or globs",
        kind=str, resume="silent", ranks="content",
    )
    max_epochs: str | None = option(None, "cap on epochs, for all (4) or by domain (4,wiki=2)", kind=str, resume="free")
    export_static: str | None = option(
        None, "file for the samples drawn of each prefix, as --data-path takes weights",
        kind=str, resume="silent", ranks="free", compare=False,
    )
