"""AdoConfig: every option of ADO, documented, validated, with its command-line flags generated from the fields.

Algorithm options default to None, which means "what the profile sets" (profiles.py, ALGORITHM.md); `resolved()` fills
them in. Everything else has a plain default.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import pathlib
from dataclasses import dataclass, field

from ado_megatron import profiles
from ado_megatron.errors import UserError

# Fields that change neither the stream nor the laws: two runs that differ in these alone are the same run.
_COSMETIC = frozenset({"audit", "validation", "log_interval", "wait_deadline", "export_static", "accept_changes"})


def _option(default, help, *, kind=None, choices=None, low=None, high=None, above=None):
    """A dataclass field with its documentation and its range: low ≤ value ≤ high, value > above."""
    kind = type(default) if kind is None else kind
    metadata = {"help": help, "kind": kind, "choices": choices, "low": low, "high": high, "above": above}
    return field(default=default, metadata=metadata)


def _algorithm(kind, help, **limits):
    """A field that its profile sets unless the user does."""
    return _option(None, help, kind=kind, **limits)


@dataclass(frozen=True)
class AdoConfig:
    """Options of the mixer. Raises UserError for a value outside its documented range."""

    # fmt: off
    profile: str = _option("ado", "algorithm profile; sets every algorithm option not given", choices=profiles.NAMES)
    policy: str = _option("ado", "what sets the weights: scaling laws, fixed weights, or declared stages",
                          choices=("ado", "static", "stages"))
    prior: str = _option("given", "prior μ, also the weights of policy static: the user's, token shares (natural), "
                         "equal, or natural^(1/temperature)", choices=("given", "natural", "uniform", "temperature"))
    temperature: float = _option(1.0, "temperature τ of prior=temperature: μ ∝ natural^(1/τ)", above=0.0)
    stages: str | None = _option(None, "JSON file of declared stages for policy=stages", kind=str)
    refit_interval: int = _option(1000, "steps between two refits of the laws", low=1)
    fit_lag: int | None = _option(None, "blocks between the cut of the history and the first block laid out with its "
                                  "laws; 0 is synchronous; default: the lead plus a small reserve", kind=int, low=0)
    seed: int = _option(1234, "seed of the sample order", low=0)
    max_epochs: str | None = _option(None, "cap on epochs, for all (4) or by domain (4,wiki=2)", kind=str)
    groups: str | None = _option(None, "YAML or JSON file: domain → its prefixes or globs", kind=str)
    shadow: bool = _option(False, "measure and fit, but keep the prior's weights")
    off: bool = _option(False, "leave the host's own blending in place")
    audit: bool = _option(False, "record every sample drawn, for `ado-megatron audit`")
    validation: bool = _option(False, "under a host, report its validation and test losses by domain (`ado-megatron "
                               "pretrain` always does)")
    log_interval: int = _option(10, "steps between two lines of metrics.jsonl", low=1)
    wait_deadline: float = _option(600.0, "seconds a reader waits for a row not yet planned", above=0.0)
    lead: int | None = _option(None, "blocks planned ahead of the readers; default: from workers and prefetch",
                               kind=int, low=1)
    accept_changes: bool = _option(False, "on resume, go on although data or algorithm options differ from the saved "
                                   "ones; domains that are the same keep their positions")
    export_static: str | None = _option(None, "file for the samples drawn of each prefix, as --data-path takes weights",
                                        kind=str)

    # n and the learning speed
    own_n: bool | None = _algorithm(bool, "n counts the domain's own samples (else those of all domains)")
    speed_unit: str | None = _algorithm(str, "speed per sample, −dL/dn, or per log n, −dL/dlog n",
                                        choices=("sample", "log"))
    speed_exponent: float | None = _algorithm(float, "exponent of the speed in the preference", low=0.0)
    alpha_floor: float | None = _algorithm(float, "least α used in the speed", low=0.0)
    # credit
    credit_source: str | None = _algorithm(str, "what feeds the credit h: realised shares or the policy",
                                           choices=("counts", "policy"))
    credit_rate: float | None = _algorithm(float, "γ1, weight of the newest shares in h", low=0.0, high=1.0)
    credit_exponent: float | None = _algorithm(float, "s of λ = h^s; 0 switches the credit off", low=0.0)
    # weights
    preference_rate: float | None = _algorithm(float, "γ2, weight of ρ against its time average; 1: no average",
                                               low=0.0, high=1.0)
    clip: str | None = _algorithm(str, "how the least share is kept: released rescaling, a projection, or not at all",
                                  choices=("rescale", "euclidean", "proportional", "none"))
    clip_target: str | None = _algorithm(str, "what is clipped: ρ, π or both",
                                         choices=("preference", "policy", "both"))
    clip_prior: bool | None = _algorithm(bool, "the prior in force before the first laws is clipped too")
    min_share: float | None = _algorithm(float, "δ, least share of a domain", low=0.0, high=1.0)
    min_share_factor: float | None = _algorithm(float, "c of δ_K = min(δ, c/K); 0: δ_K = δ", low=0.0, high=1.0)
    max_share: float | None = _algorithm(float, "greatest share of a domain", above=0.0, high=1.0)
    # when
    start_step: int | None = _algorithm(int, "first step with a refit and with weights other than the prior", low=0)
    ignore_steps: int | None = _algorithm(int, "steps left out of every fit, from the start of the run", low=0)
    early_refits: bool | None = _algorithm(bool, "refit at start_step and at its doublings until refit_interval")
    # history
    smoothing: str | None = _algorithm(str, "Savitzky-Golay over the whole history, token-weighted bins, or none",
                                       choices=("savgol", "bins", "none"))
    smoothing_window: int | None = _algorithm(int, "steps in the Savitzky-Golay window (odd)", low=3)
    smoothing_order: int | None = _algorithm(int, "order of its polynomial", low=0)
    stride: int | None = _algorithm(int, "every stride-th smoothed step is a point; the first width of bins", low=1)
    max_bins: int | None = _algorithm(int, "bins kept at most; their width doubles when they are used up", low=8)
    absent: str | None = _algorithm(str, "a step without samples repeats the last loss, or weighs its tokens (none)",
                                    choices=("repeat", "weight"))
    # fit
    huber_delta: float | None = _algorithm(float, "δ of the Huber loss on log residuals", above=0.0)
    fit_reduce: str | None = _algorithm(str, "sum or mean of the Huber loss", choices=("sum", "mean"))
    fit_bounds: str | None = _algorithm(str, "bounds as hinge penalties or as a box", choices=("penalty", "box"))
    fit_penalty: float | None = _algorithm(float, "slope of the hinge penalties", low=0.0)
    alpha_min: float | None = _algorithm(float, "least α of a law", low=0.0)
    alpha_max: float | None = _algorithm(float, "greatest α of a law", above=0.0)
    log_beta_max: float | None = _algorithm(float, "greatest log β of a law")
    epsilon_bounds: str | None = _algorithm(str, "ε bounded by log_epsilon_min, or by shares of the lowest loss seen",
                                            choices=("absolute", "relative"))
    log_epsilon_min: float | None = _algorithm(float, "least log ε of epsilon_bounds=absolute")
    epsilon_min_share: float | None = _algorithm(float, "least ε as a share of the lowest smoothed loss", above=0.0,
                                                 high=1.0)
    epsilon_max_share: float | None = _algorithm(float, "greatest ε as a share of the lowest smoothed loss", above=0.0,
                                                 high=1.0)
    # gate
    gate: str | None = _algorithm(str, "a law that is not finite drops the whole refit (all); or each domain is "
                                  "judged alone, also by points and error (each)", choices=("all", "each"))
    gate_points: int | None = _algorithm(int, "least points of a law under gate=each", low=1)
    gate_speed_error: float | None = _algorithm(float, "greatest standard error of the speed, relative to it, under "
                                                "gate=each", above=0.0)
    # fmt: on

    def __post_init__(self):
        for spec in dataclasses.fields(self):
            _check(spec, getattr(self, spec.name))
        if self.policy == "stages" and self.stages is None:
            raise UserError("policy=stages needs --ado-stages FILE with the declared stages")
        if self.policy != "stages" and self.stages is not None:
            raise UserError(f"--ado-stages is given but the policy is {self.policy}; add --ado-policy stages")
        self._check_together()

    def _check_together(self):
        """Relations between options, judged with the profile filled in."""
        get = self._get
        if get("smoothing_window") % 2 == 0 or get("smoothing_window") <= get("smoothing_order"):
            raise UserError("smoothing_window must be odd and greater than smoothing_order")
        if get("alpha_min") >= get("alpha_max"):
            raise UserError(f"alpha_min {get('alpha_min')} must be below alpha_max {get('alpha_max')}")
        if get("epsilon_min_share") >= get("epsilon_max_share"):
            raise UserError("epsilon_min_share must be below epsilon_max_share")
        if get("min_share") > get("max_share"):
            raise UserError(f"min_share {get('min_share')} is above max_share {get('max_share')}")

    def _get(self, name: str):
        value = getattr(self, name)
        return profiles.profile(self.profile)[name] if value is None and name in profiles.OPTIONS else value

    def resolved(self) -> "AdoConfig":
        """The same config with every algorithm option filled in from its profile."""
        return dataclasses.replace(self, **{name: self._get(name) for name in profiles.OPTIONS})

    def refit_at(self, step: int) -> bool:
        """True if the laws are fitted on the history up to and including `step` (0-based)."""
        start = self._get("start_step")
        if step < start or self.policy != "ado":
            return False
        if step % self.refit_interval == 0:
            return True
        # start, 2·start, 4·start, … while they come before the first regular refit
        return bool(self._get("early_refits") and step < self.refit_interval and start > 0
                    and step % start == 0 and (step // start).bit_count() == 1)

    def to_dict(self) -> dict:
        """Plain values by field name (JSON-able); algorithm options not given stay None."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "AdoConfig":
        """The inverse of to_dict. Raises UserError for a name that is no option."""
        unknown = sorted(set(values) - {spec.name for spec in dataclasses.fields(cls)})
        if unknown:
            raise UserError(f"unknown option {', '.join(unknown)}")
        return cls(**values)

    def fingerprint(self) -> str:
        """Hex digest of all that decides the stream and the laws; equal for runs that may continue one another."""
        values = {name: value for name, value in self.resolved().to_dict().items() if name not in _COSMETIC}
        for name in ("stages", "groups"):  # a file counts by what it says, not by where it lies
            if values[name] is not None and pathlib.Path(values[name]).is_file():
                values[name] = pathlib.Path(values[name]).read_text()
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds --ado-NAME for every field (booleans also --no-ado-NAME)."""
        group = parser.add_argument_group("ado", "adaptive data mixture")
        for spec in dataclasses.fields(cls):
            meta = spec.metadata
            help = meta["help"].replace("%", "%%")
            if spec.name in profiles.OPTIONS:
                values = "/".join(str(profiles.profile(name)[spec.name]) for name in profiles.NAMES)
                help += f" [{'/'.join(profiles.NAMES)}: {values}]"
            elif spec.default is not None:
                help += f" [{spec.default}]"
            flag, keywords = "--ado-" + spec.name.replace("_", "-"), {"default": spec.default, "help": help}
            if meta["kind"] is bool:
                group.add_argument(flag, action=argparse.BooleanOptionalAction, **keywords)
            else:
                group.add_argument(flag, type=meta["kind"], choices=meta["choices"], **keywords)

    @classmethod
    def from_args(cls, namespace: argparse.Namespace) -> "AdoConfig":
        """The config of parsed arguments; a flag that the namespace lacks keeps its default."""
        return cls(**{spec.name: getattr(namespace, f"ado_{spec.name}", spec.default)
                      for spec in dataclasses.fields(cls)})


def _check(spec: dataclasses.Field, value) -> None:
    """Type, choices and range of one field."""
    meta, flag = spec.metadata, "--ado-" + spec.name.replace("_", "-")
    if value is None and spec.default is None:
        return
    kind = meta["kind"]
    right = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
    if not right or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{flag} must be of type {kind.__name__}, not {value!r}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{flag} must be finite, not {value!r}")
    if meta["choices"] is not None and value not in meta["choices"]:
        raise UserError(f"{flag} must be one of {', '.join(meta['choices'])}, not {value!r}")
    if meta["low"] is not None and value < meta["low"]:
        raise UserError(f"{flag} must be at least {meta['low']}, not {value!r}")
    if meta["above"] is not None and value <= meta["above"]:
        raise UserError(f"{flag} must be above {meta['above']}, not {value!r}")
    if meta["high"] is not None and value > meta["high"]:
        raise UserError(f"{flag} must be at most {meta['high']}, not {value!r}")
