"""Options of the policies."""

from __future__ import annotations

from dataclasses import dataclass

from ado_megatron.errors import UserError
from ado_megatron.option_fields import option
from ado_megatron.scaling_law.options import LawOptions


@dataclass(frozen=True, kw_only=True)
class PolicyOptions(LawOptions):
    """How laws become weights. A policy reads laws, so what n a law counts is an option of it, too."""

    policy: str = option(
        "ado", "what sets the weights: scaling laws, fixed weights, or declared stages",
        choices=("ado", "static", "stages"), resume="free", compare=False,
    )
    stages: str | None = option(
        None, "JSON file of declared stages for policy=stages",
        kind=str, resume="free", ranks="content",
    )
    shadow: bool = option(False, "measure and fit, but keep the prior's weights", resume="free", compare=False)
    speed_unit: str | None = option(
        None, "speed per sample, −dL/dn, or per log n, −dL/dlog n",
        choices=("sample", "log"), kind=str,
    )
    speed_exponent: float | None = option(None, "exponent of the speed in the preference", low=0.0, kind=float)
    alpha_floor: float | None = option(None, "least α used in the speed", low=0.0, kind=float)
    credit_source: str | None = option(
        None, "what feeds the credit h: realised shares or the policy",
        choices=("counts", "policy"), kind=str,
    )
    credit_rate: float | None = option(None, "γ1, weight of the newest shares in h", low=0.0, high=1.0, kind=float)
    credit_exponent: float | None = option(None, "s of λ = h^s; 0 switches the credit off", low=0.0, kind=float)
    preference_rate: float | None = option(
        None, "γ2, weight of ρ against its time average; 1: no average",
        low=0.0, high=1.0, kind=float,
    )
    clip: str | None = option(
        None, "how the least share is kept: released rescaling, a projection, or not at all",
        choices=("rescale", "euclidean", "proportional", "none"), kind=str,
    )
    clip_target: str | None = option(
        None, "what is clipped: ρ, π or both",
        choices=("preference", "policy", "both"), kind=str,
    )
    clip_prior: bool | None = option(None, "the prior in force before the first laws is clipped too", kind=bool)
    min_share: float | None = option(None, "δ, least share of a domain", low=0.0, high=1.0, kind=float)
    min_share_factor: float | None = option(None, "c of δ_K = min(δ, c/K); 0: δ_K = δ", low=0.0, high=1.0, kind=float)
    max_share: float | None = option(None, "greatest share of a domain", above=0.0, high=1.0, kind=float)
    start_step: int | None = option(
        None, "first step with a refit and with weights other than the prior",
        low=0, kind=int, resume="free",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy == "stages" and self.stages is None:
            raise UserError("policy=stages needs --ado-stages FILE with the declared stages")
        if self.policy != "stages" and self.stages is not None:
            raise UserError(f"--ado-stages is given but the policy is {self.policy}; add --ado-policy stages")
        if self.value("min_share") > self.value("max_share"):
            raise UserError(f"min_share {self.value('min_share')} is above max_share {self.value('max_share')}")
