"""`fit_laws`: from points to laws (ALGORITHM.md, "The objective", "The solver", "Transfer").

Source: Jiang, Zhou, Feng, Malladi, Kolter, "Adaptive Data Optimization" (arXiv 2410.11820), equations 1 and 2, and the
objective of its released code.

Legend: K domains, T points, M starts of a domain, 3 = (log β, log ε, α).

The fit minimises over a = log β, e = log ε and α

    Σ_t w_t Huber_δ( log(e^(a − α log n_t) + e^e) − log L_t ) + bounds

with the bounds as hinges (α ≤ 0.8, α ≥ 0.001, a ≤ 6.5, e ≥ 0.5 in the released code) or as a box.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.scaling_law.initial_guesses import distinct, lowest, starts, valley
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.scaling_law.newton import minimise
from ado_megatron.scaling_law.objective import Problem, cost
from ado_megatron.scaling_law.options import LawOptions
from ado_megatron.scaling_law.points import Points
from ado_megatron.scaling_law.standard_errors import standard_errors
from ado_megatron.scaling_law.transfer import TransferEstimate, estimate_transfer
from ado_megatron.scaling_law.transfer_option import ESTIMATE, number

_CHUNK = 100_000  # points of the problems that are solved together, so that work arrays stay in the cache
_FAR = 1.0  # a start whose objective is more than this share above the best one is left
_WORK = 1_000_000  # points times starts of a group: small problems can afford more starts


def fit_laws(
    n_T: ArrayLike, loss_TxK: ArrayLike, options: LawOptions | None = None, *, weight_TxK: ArrayLike | None = None,
    total_T: ArrayLike | None = None, transfer_K: ArrayLike | None = None,
) -> Laws:  # fmt: skip
    """Fits one law per domain.

    n_T: samples seen at each point, shape T (shared) or T x K (each domain's own); positive.
    loss_TxK: loss in nats, taken as it is (history.py smooths); NaN or not positive = absent.
    options: which objective, bounds, transfer and gate; None is the released objective.
    weight_TxK: weights of the points (their mean is scaled to 1 per domain); None = equal.
    total_T: samples of all domains at each point. The law's n is then n + s·total. None: n_T is the law's n already,
        whatever the transfer, and nothing can be estimated.
    transfer_K: s of each domain (or one number); None: what `options.transfer` says, which then must not be a file.
    Returns Laws; a domain that cannot be fitted is a value (ok False and a reason), never an exception.
    Raises ValueError when the shapes do not fit together, or the transfer cannot be known from what is given.
    """
    options = (LawOptions(profile="released") if options is None else options).resolved()
    num = np.shape(loss_TxK)[-1] if np.ndim(loss_TxK) else 0
    estimated = transfer_K is None and options.transfer == ESTIMATE
    transfer_K = np.zeros(num) if estimated else _given(transfer_K, num, options)
    if estimated and total_T is None:
        raise ValueError("to estimate the transfer, fit_laws needs total_T, the samples of all domains")
    points = Points.build(n_T, loss_TxK, weight_TxK, total_T, transfer_K, options)
    estimate = estimate_transfer(points, solve_all) if estimated else TransferEstimate.given(transfer_K)
    problem = points.problem(estimate.transfer_K)
    theta_Kx3, f_K = solve_all(problem)
    return _laws(options, problem, points.present_KxT, theta_Kx3, f_K, estimate)


def _given(transfer_K: ArrayLike | None, num: int, options: LawOptions) -> np.ndarray:
    """The transfer of each of `num` domains that the caller or the options name."""
    value = number(options.transfer_text) if transfer_K is None else transfer_K
    if value is None:
        raise ValueError(f"the transfers that stand in {options.transfer} must be given as transfer_K")
    value_K = np.broadcast_to(np.asarray(value, np.float64), (num,)).copy()
    if not (value_K >= 0).all():
        raise ValueError(f"a transfer is a number from 0 to inf, not {value_K}")
    return value_K


def solve_all(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """theta_Kx3 and F_K of every problem, in groups that fit the cache; NaN for a problem without points."""
    theta_Kx3, f_K = np.full((len(problem.w_NxT), 3), np.nan), np.full(len(problem.w_NxT), np.nan)
    for index in groups(problem):
        theta_Kx3[index], f_K[index] = solve(problem.rows(index))
    return theta_Kx3, f_K


def groups(problem: Problem) -> Iterator[np.ndarray]:
    """Indices of the problems that have points, a group at a time."""
    some = np.flatnonzero((problem.w_NxT > 0).any(-1))
    size = max(_CHUNK // max(problem.w_NxT.shape[1], 1), 1)
    for first in range(0, some.size, size):
        yield some[first : first + size]


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


def _descend(problem: Problem, theta_KxMx3: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """`minimise` from M starts of every problem; a start far above the best one (by _FAR of it) stays where it is."""
    num, size = theta_KxMx3.shape[:2]
    rows = problem.rows(np.repeat(np.arange(num), size))
    theta_Nx3 = rows.inside(theta_KxMx3.reshape(-1, 3))
    f_N = cost(rows, theta_Nx3)
    f_N = np.where(np.isfinite(f_N), f_N, np.inf)
    near_N = np.flatnonzero(f_N <= np.repeat(f_N.reshape(num, size).min(-1) * (1 + _FAR), size))
    theta_Nx3[near_N], f_N[near_N] = minimise(rows.rows(near_N), theta_Nx3[near_N], iterations)
    return theta_Nx3.reshape(num, size, 3), np.where(np.isfinite(f_N), f_N, np.inf).reshape(num, size)


def _laws(
    options: LawOptions, problem: Problem, present_KxT: np.ndarray, theta_Kx3: np.ndarray, f_K: np.ndarray,
    estimate: TransferEstimate,
) -> Laws:  # fmt: skip
    """Laws with diagnostics and the verdict of the gate."""
    points_K = present_KxT.sum(-1)
    finite_K = np.isfinite(theta_Kx3).all(-1) & np.isfinite(f_K)
    errors = standard_errors(problem, np.where(finite_K[:, None], theta_Kx3, 0.0))
    covariance_Kx3x3, speed_K, rms_K = errors.covariance_Kx3x3, errors.speed_K, errors.rms_K
    reasons = [_reason(options, *entry) for entry in zip(points_K, finite_K, speed_K, strict=True)]
    ok_K = np.array([reason == "" for reason in reasons], bool)
    if options.gate == "all" and not ok_K.all():
        reasons = [reason or "the refit was dropped: another domain's law is not finite" for reason in reasons]
        ok_K[:] = False
    objective_K = f_K
    if options.fit_bounds == "penalty":  # the released hinge at the lower end of α is −min(α, α_min)
        objective_K = f_K - options.fit_penalty * options.alpha_min
    for array in (covariance_Kx3x3, speed_K, rms_K):
        array[~finite_K] = np.nan
    stderr_Kx3 = np.sqrt(np.maximum(np.einsum("kii->ki", covariance_Kx3x3), 0.0))
    reasons = [reason or note for reason, note in zip(reasons, estimate.note_K, strict=True)]
    return Laws(theta_Kx3[:, 0], theta_Kx3[:, 1], theta_Kx3[:, 2],
                objective_K=objective_K, ok_K=ok_K, points_K=points_K, rms_K=rms_K,
                stderr_Kx3=stderr_Kx3, speed_stderr_K=speed_K, reason_K=reasons, transfer_K=estimate.transfer_K,
                transfer_low_K=estimate.low_K, transfer_high_K=estimate.high_K, covariance_Kx3x3=covariance_Kx3x3)


def _reason(options: LawOptions, points: int, finite: bool, speed_error: float) -> str:
    """Why a law may not be used; empty when it may."""
    if points == 0:
        return "no points"
    if not finite:
        return "the fit is not finite"
    if options.gate == "all":
        return ""
    if points < options.gate_points:
        return f"{points} points, fewer than {options.gate_points}"
    if not speed_error <= options.gate_speed_error:
        return f"the speed is not identified: its standard error is {speed_error:.2g} of it"
    return ""
