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


import numpy as np

from ado_megatron.scaling_law.initial_guesses import distinct, lowest, starts, valley
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.scaling_law.newton import Problem, cost, minimise
from ado_megatron.scaling_law.options import LawOptions
from ado_megatron.scaling_law.standard_errors import standard_errors

_CHUNK = 100_000  # points of the problems that are solved together, so that work arrays stay in the cache
_FAR = 1.0  # a start whose objective is more than this share above the best one is left
_WORK = 1_000_000  # points times starts of a group: small problems can afford more starts


def fit_laws(n_T, loss_TxK, config: LawOptions | None = None, *, weight_TxK=None) -> Laws:
    """Fits one law per domain.

    n_T: samples seen at each point, shape T (shared) or T x K (each domain's own); positive.
    loss_TxK: loss in nats, taken as it is (history.py smooths); NaN or not positive = absent.
    config: which objective, bounds and gate; None is the released objective.
    weight_TxK: weights of the points (their mean is scaled to 1 per domain); None = equal.
    Returns Laws; a domain that cannot be fitted is a value (ok False and a reason), never an exception.
    Raises ValueError when the shapes do not fit together.
    """
    config = (LawOptions(profile="released") if config is None else config).resolved()
    problem, present_KxT = _problem(n_T, loss_TxK, weight_TxK, config)
    num = len(present_KxT)
    theta_Kx3, f_K = np.full((num, 3), np.nan), np.full(num, np.nan)
    some = np.flatnonzero(present_KxT.any(-1))
    group = max(_CHUNK // max(present_KxT.shape[1], 1), 1)
    for first in range(0, some.size, group):
        index = some[first : first + group]
        theta_Kx3[index], f_K[index] = solve(problem.rows(index))
    transfer_K = np.full(num, config.given_transfer)
    return _laws(config, problem, present_KxT, theta_Kx3, f_K, transfer_K)


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


def _laws(config, problem, present_KxT, theta_Kx3, f_K, transfer_K):
    """Laws with diagnostics and the verdict of the gate."""
    points_K = present_KxT.sum(-1)
    finite_K = np.isfinite(theta_Kx3).all(-1) & np.isfinite(f_K)
    safe = np.where(finite_K[:, None], theta_Kx3, 0.0)
    covariance_Kx3x3, speed_K, rms_K = standard_errors(problem, safe)
    errors_Kx3 = np.sqrt(np.maximum(np.einsum("kii->ki", covariance_Kx3x3), 0.0))
    reasons = [_reason(config, *entry) for entry in zip(points_K, finite_K, speed_K, strict=True)]
    ok_K = np.array([reason == "" for reason in reasons], bool)
    if config.gate == "all" and not ok_K.all():
        reasons = [reason or "the refit was dropped: another domain's law is not finite" for reason in reasons]
        ok_K[:] = False
    objective_K = f_K
    if config.fit_bounds == "penalty":  # the released hinge at the lower end of α is −min(α, α_min)
        objective_K = f_K - config.fit_penalty * config.alpha_min
    hidden = ~finite_K
    for array in (errors_Kx3, speed_K, rms_K, covariance_Kx3x3):
        array[hidden] = np.nan
    return Laws(*theta_Kx3.T, objective_K=objective_K, ok_K=ok_K, points_K=points_K, rms_K=rms_K,
                stderr_Kx3=errors_Kx3, speed_stderr_K=speed_K, reason_K=reasons, transfer_K=transfer_K,
                transfer_low_K=transfer_K, transfer_high_K=transfer_K, covariance_Kx3x3=covariance_Kx3x3)


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
