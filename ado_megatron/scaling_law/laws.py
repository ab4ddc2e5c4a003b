"""The scaling law of a domain: its parameters, its value, its speed, and what of its samples counts.

Source: Jiang, Zhou, Feng, Malladi, Kolter, "Adaptive Data Optimization" (arXiv 2410.11820), equations 1 and 2. The
transfer s is ours (ALGORITHM.md, "Transfer").

Legend: K domains, S rows of samples (steps, blocks), 3 = (log β, log ε, α).

    (1)  L(n) = ε + β n^(−α)              ε irreducible loss, β scale, α exponent
    (2)  −dL/dn = (α/n) (L(n) − ε) = α β n^(−α−1)
    (7)  n = n_k + s_k N                  n_k the domain's own samples, N those of all domains, s_k ≥ 0 its transfer

s = 0 is the law in the domain's own samples; for s = ∞ the law is one in N itself (then n = N).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_OF_THE_LAW = ("log_beta_K", "log_epsilon_K", "alpha_K", "transfer_K", "transfer_low_K", "transfer_high_K",
               "covariance_Kx3x3")  # what a law that is kept in force brings with it


@dataclass(frozen=True)
class Laws:
    """Laws of K domains with their diagnostics. A domain without a law has NaN parameters and ok False."""

    log_beta_K: np.ndarray
    log_epsilon_K: np.ndarray
    alpha_K: np.ndarray
    objective_K: np.ndarray  # value of the minimised objective
    ok_K: np.ndarray  # bool: may be used
    points_K: np.ndarray  # int64, points with weight
    rms_K: np.ndarray  # root mean square of the residuals of log loss
    stderr_Kx3: np.ndarray  # standard errors of (log β, log ε, α); 0 for a parameter at its bound
    speed_stderr_K: np.ndarray  # standard error of the speed at the last point, relative to the speed
    reason_K: list[str]  # why not ok, or what to know; "" when there is nothing to say
    transfer_K: np.ndarray  # s ≥ 0; 0 = own samples, inf = the samples of all domains
    transfer_low_K: np.ndarray  # central 80 % interval of s; equal to s where s was given and not estimated
    transfer_high_K: np.ndarray
    covariance_Kx3x3: np.ndarray  # of (log β, log ε, α) at this s; rows and columns of bound parameters are 0

    def effective_n(self, samples_K: ArrayLike, total: ArrayLike | None = None) -> np.ndarray:
        """(7) What counts as n of each law: n_k + s_k N, and N where s is infinite.

        samples_K: own samples, shape K or S x K. total: samples of all domains, a number or shape S; None: the sum of
        samples_K over the domains. Returns float64 of the shape of samples_K. For s = 0 and s = ∞ the result is n_k
        and N to the last bit.
        """
        samples_K = np.asarray(samples_K, np.float64)
        total = samples_K.sum(-1) if total is None else np.asarray(total, np.float64)
        return effective_samples(samples_K, total[..., None], self.transfer_K)

    def loss(self, n: ArrayLike) -> np.ndarray:
        """(1) L(n) in nats, shape of n broadcast against K. n: effective samples."""
        with np.errstate(over="ignore"):
            return np.exp(self.log_epsilon_K) + np.exp(self.log_beta_K - self.alpha_K * np.log(n))

    def log_speed(self, n: ArrayLike, alpha_floor: float = 0.0) -> np.ndarray:
        """log of (2), −dL/dn, with the factor α not under alpha_floor. −inf where a law does not fall.

        n: effective samples. For finite s this is also the derivative with respect to the own samples n_k while N is
        held, since dn/dn_k = 1.
        """
        with np.errstate(divide="ignore"):
            log_alpha_K = np.log(np.maximum(self.alpha_K, alpha_floor))
        return log_alpha_K + self.log_beta_K - (self.alpha_K + 1.0) * np.log(n)

    def speed(self, n: ArrayLike, alpha_floor: float = 0.0) -> np.ndarray:
        """(2) −dL/dn, in nats per sample."""
        with np.errstate(over="ignore"):
            return np.exp(self.log_speed(n, alpha_floor))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Every field as an array, for a checkpoint or a process boundary."""
        return {spec.name: np.asarray(getattr(self, spec.name)) for spec in dataclasses.fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], transfer_K: ArrayLike = 0.0) -> Laws:
        """The inverse of to_arrays.

        Arrays of laws that were saved before there was a transfer lack its fields. Then transfer_K fills them: 0 (own
        samples) unless the caller, who knows the options of that run, says otherwise (`LawOptions.given_transfer`);
        their covariance is the diagonal of the squared standard errors.
        """
        known = [spec.name for spec in dataclasses.fields(cls) if spec.name in arrays]
        values: dict[str, Any] = {name: np.array(arrays[name]) for name in known}
        given_K = np.broadcast_to(np.asarray(transfer_K, np.float64), values["alpha_K"].shape)
        for name in ("transfer_K", "transfer_low_K", "transfer_high_K"):
            values.setdefault(name, given_K.copy())
        if "covariance_Kx3x3" not in values:
            values["covariance_Kx3x3"] = values["stderr_Kx3"][:, None, :] ** 2 * np.eye(3)
        return cls(**(values | {"reason_K": [str(reason) for reason in values["reason_K"]]}))

    @classmethod
    def given(cls, laws_Kx3: ArrayLike, transfer_K: ArrayLike = 0.0) -> Laws:
        """Laws from (log β, log ε, α) and a transfer (a number, or one per domain), usable where they are finite.

        Their errors are not known (NaN). A caller whose laws are in the samples of all domains says transfer_K=inf.
        """
        laws_Kx3 = np.asarray(laws_Kx3, np.float64)
        num = len(laws_Kx3)
        nothing = np.full(num, np.nan)
        given_K = np.broadcast_to(np.asarray(transfer_K, np.float64), (num,)).copy()
        return cls(laws_Kx3[:, 0], laws_Kx3[:, 1], laws_Kx3[:, 2],
                   objective_K=nothing, ok_K=np.isfinite(laws_Kx3).all(-1),
                   points_K=np.zeros(num, np.int64), rms_K=nothing, stderr_Kx3=np.full((num, 3), np.nan),
                   speed_stderr_K=nothing, reason_K=["given"] * num, transfer_K=given_K, transfer_low_K=given_K,
                   transfer_high_K=given_K, covariance_Kx3x3=np.full((num, 3, 3), np.nan))

    def params(self) -> np.ndarray:
        """(log β, log ε, α) as a K x 3 array."""
        return np.stack([self.log_beta_K, self.log_epsilon_K, self.alpha_K], -1)

    def merged(self, old: Laws | None) -> Laws:
        """These laws, with the old law of each domain whose new one is not ok (NaN where there is no old one).

        A law's transfer and covariance go with it. Other diagnostics and the reasons stay those of the new fit, so
        that a report shows why; ok_K says that a law may be used.
        """
        keep_K = np.zeros(len(self.ok_K), bool) if old is None else old.ok_K
        values = {}
        for name in _OF_THE_LAW:
            new = getattr(self, name)
            nothing = np.full_like(new, np.nan)
            if name == "transfer_K":
                nothing = new  # of no law, but a number: n stays defined
            kept = nothing if old is None else np.where(_like(keep_K, new), getattr(old, name), nothing)
            values[name] = np.where(_like(self.ok_K, new), new, kept)
        return dataclasses.replace(self, **values, ok_K=self.ok_K | keep_K)


def effective_samples(samples: np.ndarray, total: np.ndarray, transfer: np.ndarray) -> np.ndarray:
    """(7) n + s N with the limit N for s = ∞; the three broadcast against one another."""
    shared = np.isinf(transfer)
    return np.where(shared, total, samples + np.where(shared, 0.0, transfer) * total)


def _like(mask_K: np.ndarray, array: np.ndarray) -> np.ndarray:
    """mask_K with as many dimensions as `array`, whose first is K."""
    return mask_K.reshape(-1, *[1] * (array.ndim - 1))
