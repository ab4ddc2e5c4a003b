"""The scaling law of a domain: its parameters, its value, its speed.

Source: Jiang, Zhou, Feng, Malladi, Kolter, "Adaptive Data Optimization" (arXiv 2410.11820), equations 1 and 2.

Legend: K domains, n samples seen, 3 = (log β, log ε, α).

    (1)  L(n) = ε + β n^(−α)              ε irreducible loss, β scale, α exponent
    (2)  −dL/dn = (α/n) (L(n) − ε) = α β n^(−α−1)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np


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

    def loss(self, n):
        """(1) L(n), shape of n broadcast against K."""
        with np.errstate(over="ignore"):
            return np.exp(self.log_epsilon_K) + np.exp(self.log_beta_K - self.alpha_K * np.log(n))

    def log_speed(self, n, alpha_floor=0.0):
        """log of (2), −dL/dn, with the factor α not under alpha_floor. −inf where a law does not fall."""
        with np.errstate(divide="ignore"):
            log_alpha_K = np.log(np.maximum(self.alpha_K, alpha_floor))
        return log_alpha_K + self.log_beta_K - (self.alpha_K + 1.0) * np.log(n)

    def speed(self, n, alpha_floor=0.0):
        """(2) −dL/dn, in nats per sample."""
        with np.errstate(over="ignore"):
            return np.exp(self.log_speed(n, alpha_floor))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Every field as an array, for a checkpoint or a process boundary."""
        return {spec.name: np.asarray(getattr(self, spec.name)) for spec in dataclasses.fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Laws:
        """The inverse of to_arrays."""
        values = {spec.name: np.array(arrays[spec.name]) for spec in dataclasses.fields(cls)}
        return cls(**(values | {"reason_K": [str(reason) for reason in values["reason_K"]]}))

    @classmethod
    def given(cls, laws_Kx3) -> Laws:
        """Laws from (log β, log ε, α) alone, all of them usable where finite."""
        laws_Kx3 = np.asarray(laws_Kx3, np.float64)
        num = len(laws_Kx3)
        nothing = np.full(num, np.nan)
        return cls(*laws_Kx3.T, objective_K=nothing, ok_K=np.isfinite(laws_Kx3).all(-1),
                   points_K=np.zeros(num, np.int64), rms_K=nothing, stderr_Kx3=np.full((num, 3), np.nan),
                   speed_stderr_K=nothing, reason_K=["given"] * num)

    def params(self) -> np.ndarray:
        """(log β, log ε, α) as a K x 3 array."""
        return np.stack([self.log_beta_K, self.log_epsilon_K, self.alpha_K], -1)

    def merged(self, old: Laws | None) -> Laws:
        """These laws, with the old law of each domain whose new one is not ok (NaN where there is no old one).

        Diagnostics and reasons stay those of the new fit, so that a report shows why; ok_K says that a law may be used.
        """
        if old is None:
            keep_K = np.zeros(len(self.ok_K), bool)
            old_params = np.full((len(self.ok_K), 3), np.nan)
        else:
            keep_K, old_params = old.ok_K, old.params()
        params = np.where(self.ok_K[:, None], self.params(), np.where(keep_K[:, None], old_params, np.nan))
        return dataclasses.replace(self, log_beta_K=params[:, 0], log_epsilon_K=params[:, 1], alpha_K=params[:, 2],
                                   ok_K=self.ok_K | keep_K)
