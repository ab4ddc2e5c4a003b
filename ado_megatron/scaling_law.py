"""The scaling law of a domain, its objective, and `fit_laws`.

Source: Jiang, Zhou, Feng, Malladi, Kolter, "Adaptive Data Optimization" (arXiv 2410.11820), equations 1 and 2, and the
objective of its released code; the numerics are in ALGORITHM.md.

Legend: K domains, T points, n samples seen, 3 = (log β, log ε, α).

    (1)  L(n) = ε + β n^(−α)              ε irreducible loss, β scale, α exponent
    (2)  −dL/dn = (α/n) (L(n) − ε) = α β n^(−α−1)

The fit minimises over a = log β, e = log ε and α

    Σ_t w_t Huber_δ( log(e^(a − α log n_t) + e^e) − log L_t ) + bounds

with the bounds as hinges (α ≤ 0.8, α ≥ 0.001, a ≤ 6.5, e ≥ 0.5 in the released code) or as a box.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from ado_megatron.config import AdoConfig
from ado_megatron.law_error import standard_errors
from ado_megatron.law_solver import Problem, cost, minimise
from ado_megatron.law_starts import distinct, lowest, starts, valley

_CHUNK = 100_000  # points of the problems that are solved together, so that work arrays stay in the cache
_FAR = 1.0  # a start whose objective is more than this share above the best one is left
_WORK = 1_000_000  # points times starts of a group: small problems can afford more starts


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
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "Laws":
        """The inverse of to_arrays."""
        values = {spec.name: np.array(arrays[spec.name]) for spec in dataclasses.fields(cls)}
        return cls(**(values | {"reason_K": [str(reason) for reason in values["reason_K"]]}))

    @classmethod
    def given(cls, laws_Kx3) -> "Laws":
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

    def merged(self, old: "Laws | None") -> "Laws":
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


def fit_laws(n_T, loss_TxK, config: AdoConfig | None = None, *, weight_TxK=None) -> Laws:
    """Fits one law per domain.

    n_T: samples seen at each point, shape T (shared) or T x K (each domain's own); positive.
    loss_TxK: loss in nats, taken as it is (history.py smooths); NaN or not positive = absent.
    config: which objective, bounds and gate; None is the released objective.
    weight_TxK: weights of the points (their mean is scaled to 1 per domain); None = equal.
    Returns Laws; a domain that cannot be fitted is a value (ok False and a reason), never an exception.
    Raises ValueError when the shapes do not fit together.
    """
    config = (AdoConfig(profile="released") if config is None else config).resolved()
    problem, present_KxT = _problem(n_T, loss_TxK, weight_TxK, config)
    num = len(present_KxT)
    theta_Kx3, f_K = np.full((num, 3), np.nan), np.full(num, np.nan)
    some = np.flatnonzero(present_KxT.any(-1))
    group = max(_CHUNK // max(present_KxT.shape[1], 1), 1)
    for first in range(0, some.size, group):
        index = some[first : first + group]
        theta_Kx3[index], f_K[index] = solve(problem.rows(index))
    return _laws(config, problem, present_KxT, theta_Kx3, f_K)


def solve(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The minimiser and the minimum of every problem: theta_Kx3, F_K.

    Many starts on a thinned history; those that lead take a few steps on all points; the best go on to convergence,
    and so do points along the valley of the best one, where a small δ leaves minima close to one another.
    """
    num, points = problem.y_NxT.shape
    room = _WORK // (num * points)
    theta_KxMx3 = starts(problem, int(np.clip(room, 10, 64)))
    theta_KxMx3, f_KxM = _descend(problem, theta_KxMx3, iterations=6)
    theta_KxMx3 = distinct(theta_KxMx3, f_KxM, int(np.clip(room // 2, 6, 32)))
    theta_KxMx3, f_KxM = _descend(problem, theta_KxMx3, iterations=80)
    near_KxMx3, near_KxM = _descend(problem, valley(problem, lowest(theta_KxMx3, f_KxM)), iterations=40)
    theta_KxMx3, f_KxM = np.concatenate([theta_KxMx3, near_KxMx3], 1), np.concatenate([f_KxM, near_KxM], 1)
    return lowest(theta_KxMx3, f_KxM), f_KxM.min(-1)


def _descend(problem, theta_KxMx3, iterations):
    """`minimise` from M starts of every problem; a start far above the best one (by _FAR of it) stays where it is."""
    num, size = theta_KxMx3.shape[:2]
    rows = problem.rows(np.repeat(np.arange(num), size))
    theta_Nx3 = rows.inside(theta_KxMx3.reshape(-1, 3))
    f_N = cost(rows, theta_Nx3)
    f_N = np.where(np.isfinite(f_N), f_N, np.inf)
    near_N = np.flatnonzero(f_N <= np.repeat(f_N.reshape(num, size).min(-1) * (1 + _FAR), size))
    theta_Nx3[near_N], f_N[near_N] = minimise(rows.rows(near_N), theta_Nx3[near_N], iterations)
    return theta_Nx3.reshape(num, size, 3), np.where(np.isfinite(f_N), f_N, np.inf).reshape(num, size)


def _problem(n_T, loss_TxK, weight_TxK, config):
    """The batch of objectives, without constants, and which points are present."""
    loss_TxK = np.asarray(loss_TxK, np.float64)
    if loss_TxK.ndim != 2:
        raise ValueError(f"loss_TxK must have two dimensions, not shape {loss_TxK.shape}")
    if len(loss_TxK) == 0:  # no rows: one absent point
        loss_TxK, n_T, weight_TxK = np.full((1, loss_TxK.shape[1]), np.nan), np.ones(1), None
    n = np.asarray(n_T, np.float64)
    n_TxK = np.broadcast_to(n[:, None] if n.ndim == 1 else n, loss_TxK.shape)
    weight_TxK = np.ones(loss_TxK.shape) if weight_TxK is None else np.asarray(weight_TxK, np.float64)
    weight_TxK = np.broadcast_to(weight_TxK, loss_TxK.shape)
    with np.errstate(invalid="ignore"):
        present = (loss_TxK > 0) & np.isfinite(loss_TxK) & (n_TxK > 0) & np.isfinite(n_TxK)
        present &= (weight_TxK > 0) & np.isfinite(weight_TxK)
    w_KxT = np.where(present, weight_TxK, 0.0).T
    count_K, total_K = present.sum(0), w_KxT.sum(-1)
    per_point = 1.0 / np.maximum(total_K, 1e-300)
    if config.fit_reduce == "sum":
        per_point = count_K * per_point
    w_KxT = w_KxT * per_point[:, None]
    y_KxT = np.log(np.where(present, loss_TxK, 1.0)).T
    lower_Kx3, upper_Kx3 = _bounds(config, np.where(present.T, y_KxT, np.inf).min(-1, initial=np.inf))
    slope = np.inf if config.fit_bounds == "box" else config.fit_penalty
    x_KxT = np.log(np.where(present, n_TxK, 1.0)).T
    problem = Problem(np.ascontiguousarray(x_KxT), np.ascontiguousarray(y_KxT), np.ascontiguousarray(w_KxT),
                      lower_Kx3, upper_Kx3, config.huber_delta, slope)
    return problem, present.T


def _bounds(config, lowest_K):
    """Bounds of (log β, log ε, α). Relative bounds of ε are shares of the lowest loss of the domain."""
    lowest_K = np.where(np.isfinite(lowest_K), lowest_K, 0.0)
    lower, upper = np.full((len(lowest_K), 3), -np.inf), np.full((len(lowest_K), 3), np.inf)
    upper[:, 0] = config.log_beta_max
    lower[:, 2], upper[:, 2] = config.alpha_min, config.alpha_max
    if config.epsilon_bounds == "absolute":
        lower[:, 1] = config.log_epsilon_min
    else:
        lower[:, 1] = lowest_K + np.log(config.epsilon_min_share)
        upper[:, 1] = lowest_K + np.log(config.epsilon_max_share)
    return lower, upper


def _laws(config, problem, present_KxT, theta_Kx3, f_K):
    """Laws with diagnostics and the verdict of the gate."""
    points_K = present_KxT.sum(-1)
    finite_K = np.isfinite(theta_Kx3).all(-1) & np.isfinite(f_K)
    safe = np.where(finite_K[:, None], theta_Kx3, 0.0)
    errors_Kx3, speed_K, rms_K = standard_errors(problem, safe)
    reasons = [_reason(config, *entry) for entry in zip(points_K, finite_K, speed_K, strict=True)]
    ok_K = np.array([reason == "" for reason in reasons], bool)
    if config.gate == "all" and not ok_K.all():
        reasons = [reason or "the refit was dropped: another domain's law is not finite" for reason in reasons]
        ok_K[:] = False
    objective_K = f_K
    if config.fit_bounds == "penalty":  # the released hinge at the lower end of α is −min(α, α_min)
        objective_K = f_K - config.fit_penalty * config.alpha_min
    hidden = ~finite_K
    for array in (errors_Kx3, speed_K, rms_K):
        array[hidden] = np.nan
    return Laws(*theta_Kx3.T, objective_K=objective_K, ok_K=ok_K, points_K=points_K, rms_K=rms_K,
                stderr_Kx3=errors_Kx3, speed_stderr_K=speed_K, reason_K=reasons)


def _reason(config, points, finite, speed_error) -> str:
    """Why a law may not be used; empty when it may."""
    if points == 0:
        return "no points"
    if not finite:
        return "the fit is not finite"
    if config.gate == "all":
        return ""
    if points < config.gate_points:
        return f"{points} points, fewer than {config.gate_points}"
    if not speed_error <= config.gate_speed_error:
        return f"the speed is not identified: its standard error is {speed_error:.2g} of it"
    return ""
