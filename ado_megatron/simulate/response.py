"""How losses respond to what was drawn, and the best fixed mixture under such a response.

Legend: K domains, M losses (M = K where a run is simulated), n samples of each domain.

    L_m = ε_m + β_m (Σ_k γ_mk n_k)^(−α_m)

is the form of EpiSelect (arXiv 2608.11746); `PowerResponse` holds it, and a file of `ado-megatron simulate` names its
arrays log_beta_M, log_epsilon_M, alpha_M, gamma_MxK, natural_K, names_K and steps, with n in steps × share.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize

from ado_megatron.errors import UserError

_LEAST = 1e-6  # share of a domain in the best fixed mixture: at 0 a loss may have no slope
_ARRAYS = {"log_beta_M": 1, "log_epsilon_M": 1, "alpha_M": 1, "gamma_MxK": 2, "natural_K": 1, "names_K": 1, "steps": 0}


@dataclasses.dataclass(frozen=True, eq=False)
class PowerResponse:
    """The form above. unit: samples that count as one n (the samples of a step, where the laws count steps)."""

    log_beta_M: np.ndarray
    log_epsilon_M: np.ndarray
    alpha_M: np.ndarray
    gamma_MxK: np.ndarray
    unit: float = 1.0

    def __call__(self, n_K: ArrayLike) -> np.ndarray:
        """loss_M in nats after n_K samples of each domain; inf where nothing was drawn that counts."""
        with np.errstate(divide="ignore"):
            log_n_M = np.log(self.gamma_MxK @ (np.asarray(n_K, np.float64) / self.unit))
        return np.exp(self.log_epsilon_M) + np.exp(self.log_beta_M - self.alpha_M * log_n_M)


@dataclasses.dataclass(frozen=True, eq=False)
class ResponseFile:
    """A response and the run that it was fitted to."""

    path: Path
    response: PowerResponse  # in steps × share
    natural_K: np.ndarray  # sums to 1
    names_K: tuple[str, ...]
    steps: int

    def of_samples(self, block_size: int) -> PowerResponse:
        """The response to samples, `block_size` of them a step."""
        return dataclasses.replace(self.response, unit=float(block_size))


def read_response(path: str | Path) -> ResponseFile:
    """Read a response file. UserError, one sentence, where it is not what the module's docstring says."""
    try:
        with np.load(path, allow_pickle=False) as npz:
            arrays = {name: npz[name] for name in npz.files}
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as an .npz of a response: {_words(error)}") from error
    missing = [name for name in _ARRAYS if name not in arrays]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; a response has {', '.join(_ARRAYS)}")
    num = len(np.atleast_1d(arrays["natural_K"]))
    for name, dimensions in _ARRAYS.items():
        if arrays[name].shape != (num,) * dimensions:
            raise UserError(
                f"{path}: {name} has shape {arrays[name].shape}, but natural_K says {num} domains, so it must be "
                f"{(num,) * dimensions}: each domain has one loss"
            )
    _check_values(path, arrays)
    response = PowerResponse(*(arrays[n].astype(np.float64) for n in list(_ARRAYS)[:4]))
    natural_K = arrays["natural_K"].astype(np.float64)
    names_K = tuple(str(name) for name in arrays["names_K"])
    return ResponseFile(Path(path), response, natural_K / natural_K.sum(), names_K, int(arrays["steps"]))


def _check_values(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """UserError for the first array with an impossible value."""
    for name in _ARRAYS:
        array = arrays[name]
        if name == "names_K":
            if len(set(array.tolist())) != array.size:
                raise UserError(f"{path}: two domains of names_K have the same name; give each its own")
        elif array.dtype.kind not in "iuf":
            raise UserError(f"{path}: {name} must hold numbers, not {array.dtype}")
        elif not np.isfinite(array).all():
            raise UserError(f"{path}: {name} holds {array[~np.isfinite(array)][0]}; every value must be finite")
    for name in ("alpha_M", "gamma_MxK", "natural_K"):
        if (arrays[name] < 0).any():
            raise UserError(f"{path}: {name} holds {arrays[name].min():g}; it must not be negative")
    if not (arrays["gamma_MxK"] > 0).any(1).all() or not arrays["natural_K"].any() or arrays["steps"] < 1:
        raise UserError(f"{path}: steps, natural_K and each row of gamma_MxK must have something above 0")


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def best_static(
    response: Callable[[np.ndarray], ArrayLike], target_K: np.ndarray, samples: float, prior_K: np.ndarray
) -> tuple[np.ndarray, float]:
    """The fixed mixture with the least Σ τ L after `samples` samples, and that loss: (weights_K, nats).

    Domains of prior 0 keep 0. The loss is convex in the shares for the forms used here (a falling convex function of a
    linear one), so the minimum that SLSQP finds from the prior is the one there is.
    """
    open_K = prior_K > 0
    weighed_K = target_K > 0

    def spread(w: np.ndarray) -> np.ndarray:
        weights_K = np.zeros(len(prior_K))
        weights_K[open_K] = w
        return weights_K

    def loss(w: np.ndarray) -> float:
        return float(target_K[weighed_K] @ np.asarray(response(spread(w) * samples), np.float64)[weighed_K])

    start = np.maximum(prior_K[open_K], _LEAST)
    with warnings.catch_warnings():
        # the SLSQP of the scipy for Python 3.10 may step over a bound by a rounding, clips that, and says so
        warnings.filterwarnings("ignore", "Values in x were outside bounds", RuntimeWarning)
        best = minimize(
            lambda w: 1e3 * loss(w), start / start.sum(), method="SLSQP", jac="3-point",
            bounds=[(_LEAST, 1.0)] * len(start), constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0},
            options={"ftol": 1e-10, "maxiter": 500},
        )  # fmt: skip
    weights_K = spread(np.clip(best.x, 0.0, 1.0) / np.clip(best.x, 0.0, 1.0).sum())
    return weights_K, loss(weights_K[open_K])
