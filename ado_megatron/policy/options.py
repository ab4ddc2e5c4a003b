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
        None,
        "what sets the weights: the recursion of ADO (ado), a plan to the end of the run (plan), the prior with laws "
        "fitted beside it (measure) or without (static), declared stages (stages), or a class of your own by its name "
        "in the entry point group ado_megatron.policies",
        kind=str, resume="free", compare=False,
    )
    target: str = option(
        "prior",
        "target τ, whose weighted loss the mixture serves: the weights given (prior), token shares (natural), uniform, "
        "code=.4,web=.6 (others 0), or a JSON or YAML file of domain: weight",
        resume="free", ranks="content",
    )
    stages: str | None = option(
        None, "JSON file of declared stages for policy=stages",
        kind=str, resume="free", ranks="content",
    )
    shadow: bool = option(False, "measure and fit, but keep the prior's weights", resume="free", compare=False)
    speed_unit: str = option(
        None, "speed per sample, −dL/dn, or per log n, −dL/dlog n",
        choices=("sample", "log"), kind=str,
    )
    speed_exponent: float = option(None, "exponent of the speed in the preference", low=0.0, kind=float)
    alpha_floor: float = option(None, "least α used in the speed", low=0.0, kind=float)
    credit_source: str = option(
        None, "what feeds the credit h: realised shares or the policy",
        choices=("counts", "policy"), kind=str,
    )
    credit_rate: float = option(None, "γ1, weight of the newest shares in h", low=0.0, high=1.0, kind=float)
    credit_exponent: float = option(None, "s of λ = h^s; 0 switches the credit off", low=0.0, kind=float)
    preference_rate: float = option(
        None, "γ2, weight of ρ against its time average; 1: no average",
        low=0.0, high=1.0, kind=float,
    )
    clip: str = option(
        None, "how the least share is kept: released rescaling, a projection, or not at all",
        choices=("rescale", "euclidean", "proportional", "none"), kind=str,
    )
    clip_target: str = option(
        None, "what is clipped: ρ, π or both",
        choices=("preference", "policy", "both"), kind=str,
    )
    clip_prior: bool = option(None, "the prior in force before the first laws is clipped too", kind=bool)
    max_change: float = option(
        None, "greatest total variation of the weights of policy=ado from those at the last refit; 1: no bound",
        above=0.0, high=1.0, kind=float, resume="free", before=1.0,
    )
    min_share: float = option(None, "δ, least share of a domain", low=0.0, high=1.0, kind=float)
    min_share_factor: float = option(None, "c of δ_K = min(δ, c/K); 0: δ_K = δ", low=0.0, high=1.0, kind=float)
    max_share: float = option(None, "greatest share of a domain", above=0.0, high=1.0, kind=float)
    start_step: int = option(
        None, "first step with a refit and with weights other than the prior",
        low=0, kind=int, resume="free",
    )

    plan_kl: float = option(
        0.05, "policy=plan: κ, nats of target loss that a unit of KL(shares to come ‖ prior) must gain; 0: no pull",
        low=0.0, resume="free",
    )
    plan_max_change: float = option(
        0.1, "policy=plan: greatest total variation of the weights from one refit to the next; 1: no bound",
        above=0.0, high=1.0, resume="free",
    )
    plan_gate: float = option(
        2.0, "policy=plan: the weights move if the predicted gain exceeds this many standard errors; 0: any gain",
        low=0.0, resume="free",
    )
    plan_model_error: float = option(
        0.01, "policy=plan: standard error of a law that its fit does not show, for the gate: part of the loss for "
        "each factor e of samples; 0: none",
        low=0.0, high=1.0, resume="free",
    )
    plan_repeat: float = option(
        15.0, "policy=plan: R*, epochs after which repeated data are worth little; 0: repeats count like new data",
        low=0.0, resume="free",
    )
    probe: float = option(
        0.0, "zero-sum probing: weights go up and down by this many per cent in pairs of stretches; 0: off",
        low=0.0, high=50.0, resume="free",
    )
    probe_length: int = option(
        1000, "blocks of one half of a pair of probing, of the order of the refit interval", low=1, resume="free",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        policy = self.value("policy")
        if policy == "stages" and self.stages is None:
            raise UserError("policy=stages needs --ado-stages FILE with the declared stages")
        if policy != "stages" and self.stages is not None:
            raise UserError(f"--ado-stages is given but the policy is {policy}; add --ado-policy stages")
        if self.value("min_share") > self.value("max_share"):
            raise UserError(f"min_share {self.value('min_share')} is above max_share {self.value('max_share')}")
