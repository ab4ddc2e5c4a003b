"""Options of the history, its smoothing, the fit and its gate."""

from __future__ import annotations

from dataclasses import dataclass

from ado_megatron.errors import UserError
from ado_megatron.option_fields import option
from ado_megatron.profiles import ProfileOptions
from ado_megatron.scaling_law import transfer_option


@dataclass(frozen=True, kw_only=True)
class LawOptions(ProfileOptions):
    """How losses become laws."""

    own_n: bool = option(None, "n counts the domain's own samples (else those of all domains)", kind=bool)
    transfer: str | None = option(
        None,
        "how much of the samples of all domains counts for each domain: own (0), shared (inf), a number, a file"
        " (domain: value, or the sidecar of an earlier run), or estimate; default: what own_n says",
        kind=str, ranks="content",
    )
    ignore_steps: int = option(None, "steps left out of every fit, from the start of the run", low=0, kind=int)
    smoothing: str = option(
        None, "Savitzky-Golay over the whole history, token-weighted bins, or none",
        choices=("savgol", "bins", "none"), kind=str,
    )
    smoothing_window: int = option(None, "steps in the Savitzky-Golay window (odd)", low=3, kind=int)
    smoothing_order: int = option(None, "order of its polynomial", low=0, kind=int)
    stride: int = option(
        None, "every stride-th smoothed step is a point; the first width of bins",
        low=1, kind=int,
    )
    max_bins: int = option(None, "bins kept at most; their width doubles when they are used up", low=8, kind=int)
    absent: str = option(
        None, "a step without samples repeats the last loss, or weighs its tokens (none)",
        choices=("repeat", "weight"), kind=str,
    )
    huber_delta: float = option(None, "δ of the Huber loss on log residuals", above=0.0, kind=float)
    fit_reduce: str = option(None, "sum or mean of the Huber loss", choices=("sum", "mean"), kind=str)
    fit_bounds: str = option(None, "bounds as hinge penalties or as a box", choices=("penalty", "box"), kind=str)
    fit_penalty: float = option(None, "slope of the hinge penalties", low=0.0, kind=float)
    alpha_min: float = option(None, "least α of a law", low=0.0, kind=float)
    alpha_max: float = option(None, "greatest α of a law", above=0.0, kind=float)
    log_beta_max: float = option(None, "greatest log β of a law", kind=float)
    epsilon_bounds: str = option(
        None, "ε bounded by log_epsilon_min, or by shares of the lowest loss seen",
        choices=("absolute", "relative"), kind=str,
    )
    log_epsilon_min: float = option(None, "least log ε of epsilon_bounds=absolute", kind=float)
    epsilon_min_share: float = option(
        None, "least ε as a share of the lowest smoothed loss",
        above=0.0, high=1.0, kind=float,
    )
    epsilon_max_share: float = option(
        None, "greatest ε as a share of the lowest smoothed loss",
        above=0.0, high=1.0, kind=float,
    )
    gate: str = option(
        None,
        "a law that is not finite drops the whole refit (all); or each domain is judged alone, also by points and"
        " error (each)",
        choices=("all", "each"), kind=str,
    )
    gate_points: int = option(None, "least points of a law under gate=each", low=1, kind=int)
    gate_speed_error: float = option(
        None, "greatest standard error of the speed, relative to it, under gate=each",
        above=0.0, kind=float,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transfer is not None:
            transfer_option.number(self.transfer)
        value = self.value
        if value("smoothing_window") % 2 == 0 or value("smoothing_window") <= value("smoothing_order"):
            raise UserError("smoothing_window must be odd and greater than smoothing_order")
        if value("alpha_min") >= value("alpha_max"):
            raise UserError(f"alpha_min {value('alpha_min')} must be below alpha_max {value('alpha_max')}")
        if value("epsilon_min_share") >= value("epsilon_max_share"):
            raise UserError("epsilon_min_share must be below epsilon_max_share")

    @property
    def transfer_text(self) -> str:
        """`transfer`, or what own_n says in its place: own or shared."""
        if self.transfer is not None:
            return self.transfer
        return "own" if self.value("own_n") else "shared"

    @property
    def given_transfer(self) -> float:
        """The one transfer that these options give every domain; for a file or `estimate`, whose values stand
        elsewhere, the end that own_n says. It is what laws have that were saved without their transfer."""
        value = transfer_option.number(self.transfer_text)
        return transfer_option.ENDS["own" if self.value("own_n") else "shared"] if value is None else value
