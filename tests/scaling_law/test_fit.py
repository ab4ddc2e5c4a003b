"""The law, its objective, the solver's optimality, the gate and the standard errors.

Legend: K domains, T points.
"""

import pathlib
import sys

import numpy as np
import pytest

from ado_megatron.config import AdoConfig
from ado_megatron.scaling_law.fit import fit_laws
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.scaling_law.constrained_step import constrained_step, solve_3x3
from ado_megatron.scaling_law.newton import minimise
from ado_megatron.scaling_law.objective import Problem, cost, derivatives

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import fit as bench  # noqa: E402

N_T = 256.0 * (1000 + 10 * np.arange(300))


def clean(log_beta, log_epsilon, alpha, n_T=N_T):
    return (np.exp(log_epsilon) + np.exp(log_beta) * n_T**-alpha)[:, None]


def one_problem(x_T, y_T, **bounds):
    lower = np.array([[-np.inf, bounds.get("e_low", 0.5), 0.001]])
    return Problem(x_T[None], y_T[None], np.ones((1, x_T.size)), lower, np.array([[6.5, np.inf, 0.8]]), 1e-3, 1.0)


def test_law_and_speed_by_hand():
    laws = Laws.given([[np.log(8.0), np.log(2.0), 0.5]])
    np.testing.assert_allclose(laws.loss(4.0), [2.0 + 8.0 / 2.0])
    np.testing.assert_allclose(laws.speed(4.0), [0.5 / 4.0 * 4.0])
    np.testing.assert_allclose(laws.speed(4.0), -(laws.loss(4.0 + 1e-6) - laws.loss(4.0 - 1e-6)) / 2e-6, rtol=1e-6)


@pytest.mark.parametrize("profile", ["released", "paper", "ado"])
def test_a_clean_law_is_recovered(profile):
    laws = fit_laws(N_T, clean(2.5, 0.9, 0.35), AdoConfig(profile=profile))
    np.testing.assert_allclose(laws.params(), [[2.5, 0.9, 0.35]], rtol=1e-4)
    assert laws.ok_K.all() and laws.points_K[0] == N_T.size and laws.rms_K[0] < 1e-6


def test_low_loss_is_misfit_by_the_absolute_bound_and_met_by_the_relative_one():
    loss = clean(2.5, np.log(1.2), 0.3)
    released, ado = (np.exp(fit_laws(N_T, loss, AdoConfig(profile=p)).log_epsilon_K[0]) for p in ("released", "ado"))
    assert released == pytest.approx(np.exp(0.5), rel=1e-6)
    assert ado == pytest.approx(1.2, rel=1e-3)


def test_the_objective_is_the_released_one():
    n_T, loss_TxK = bench.histories(150, 4, seed=3)
    laws = fit_laws(n_T, loss_TxK, AdoConfig(profile="released"))
    for k in range(4):
        value, _ = bench.objective(laws.params()[k], np.log(n_T), np.log(loss_TxK[:, k]))
        assert laws.objective_K[k] == pytest.approx(value, rel=1e-12, abs=1e-16)


@pytest.mark.parametrize("points, seed", [(60, 1), (12, 2)])
def test_never_above_512_lbfgs_starts(points, seed):
    n_T, loss_TxK = bench.histories(points, 2, seed=seed)
    laws = fit_laws(n_T, loss_TxK)
    for k in range(2):
        best = bench.baseline(n_T, loss_TxK[:, k])[1]
        assert laws.objective_K[k] <= best + 1e-6 * abs(best)


def test_derivatives_match_differences():
    rng = np.random.default_rng(0)
    x_T = np.log(N_T)
    problem = one_problem(x_T, 1.0 + 0.3 * rng.standard_normal(x_T.size))
    theta = np.array([[1.0, 0.7, 0.2]])
    _, g, hessian, major = derivatives(problem, theta)
    for i, step in enumerate(np.eye(3) * 1e-6):
        slope = (cost(problem, theta + step) - cost(problem, theta - step)) / 2e-6
        assert g[0, i] == pytest.approx(slope[0], rel=1e-5, abs=1e-7)
        bend = (derivatives(problem, theta + step)[1] - derivatives(problem, theta - step)[1]) / 2e-6
        np.testing.assert_allclose(hessian[0, i], bend[0], rtol=2e-2, atol=1e-3)
    assert np.linalg.eigvalsh(major)[0, 0] >= 0.0


def test_the_constrained_step_is_the_minimum_over_the_hinges():
    rng = np.random.default_rng(1)
    empty = np.zeros((1, 0))
    for slope in (1.0, np.inf):
        for _ in range(50):
            root = rng.standard_normal((3, 3))
            a, g = (root @ root.T + 0.1 * np.eye(3))[None], 3 * rng.standard_normal((1, 3))
            lower, upper = np.full((1, 3), -0.5), np.full((1, 3), 0.5)
            problem = Problem(empty, empty, empty, lower, upper, 1e-3, slope)
            theta = rng.choice([-0.5, 0.0, 0.5], (1, 3))
            if slope == 1.0:
                theta = theta + rng.choice([0.0, 1.0], (1, 3))
            step, decrease = constrained_step(problem, theta, g, a)
            trial = step + rng.standard_normal((3000, 3)) * rng.choice([1e-3, 0.1, 1.0], (3000, 1))
            many = Problem(*(np.zeros((3000, 0)),) * 3, lower.repeat(3000, 0), upper.repeat(3000, 0), 1e-3, slope)
            trial = many.inside(theta + trial) - theta
            values = trial @ g[0] + 0.5 * np.einsum("ni,ij,nj->n", trial, a[0], trial) + many.hinges(theta + trial)
            assert (values - problem.hinges(theta)).min() >= -decrease[0] - 1e-9


def test_a_minimum_on_a_hinge_is_found_exactly():
    x_T = np.log(N_T)
    theta, _ = minimise(one_problem(x_T, np.log(clean(2.0, 0.0, 0.3)[:, 0])), np.array([[1.0, 0.7, 0.2]]))
    assert theta[0, 1] == 0.5


def test_solve_3x3_and_a_singular_matrix():
    rng = np.random.default_rng(2)
    root = rng.standard_normal((5, 3, 3))
    a, b = root @ root.transpose(0, 2, 1), rng.standard_normal((5, 3, 1))
    np.testing.assert_allclose(solve_3x3(a, b), np.linalg.solve(a, b), rtol=1e-6)
    assert np.isfinite(solve_3x3(np.ones((1, 3, 3)), np.ones((1, 3, 1)))).all()


def test_one_bad_domain_costs_the_others_nothing_under_ado():
    loss = np.concatenate([clean(2.5, 0.9, 0.35), np.full((N_T.size, 1), np.nan)], 1)
    alone, both = fit_laws(N_T, loss[:, :1], AdoConfig()), fit_laws(N_T, loss, AdoConfig())
    assert both.ok_K.tolist() == [True, False] and both.reason_K == ["", "no points"]
    np.testing.assert_array_equal(both.params()[0], alone.params()[0])
    assert np.isnan(both.params()[1]).all()


def test_one_bad_domain_drops_the_refit_under_released():
    loss = np.concatenate([clean(2.5, 0.9, 0.35), np.full((N_T.size, 1), np.nan)], 1)
    laws = fit_laws(N_T, loss, AdoConfig(profile="released"))
    assert laws.ok_K.tolist() == [False, False] and "another domain" in laws.reason_K[0]


def test_the_gate_refuses_few_points_and_unidentified_speeds():
    few = fit_laws(N_T[:6], clean(2.5, 0.9, 0.35, N_T[:6]), AdoConfig())
    assert not few.ok_K[0] and "fewer than" in few.reason_K[0]
    noise = np.exp(0.3 * np.random.default_rng(0).standard_normal((40, 1)))
    vague = fit_laws(N_T[:40], 2.0 * noise, AdoConfig())
    assert not vague.ok_K[0] and "not identified" in vague.reason_K[0]


def test_standard_errors_cover_the_spread_of_repeated_fits():
    rng = np.random.default_rng(0)
    truth, num = np.array([5.0, 0.8, 0.4]), 200
    loss = clean(*truth) * np.exp(0.002 * rng.standard_normal((N_T.size, num)))
    laws = fit_laws(N_T, loss, AdoConfig(gate_speed_error=100.0))
    spread = laws.params().std(0)
    ratio = np.median(laws.stderr_Kx3, 0) / spread
    assert (ratio > 0.6).all() and (ratio < 1.7).all()
    speed = laws.log_speed(N_T[-1])
    assert 0.6 < np.median(laws.speed_stderr_K) / speed.std() < 1.7


def test_weights_count_like_repeated_points():
    rng = np.random.default_rng(4)
    loss = clean(2.5, 0.9, 0.35) * np.exp(0.02 * rng.standard_normal((N_T.size, 1)))
    times = rng.integers(1, 4, N_T.size)
    weighted = fit_laws(N_T, loss, AdoConfig(), weight_TxK=times[:, None])
    repeated = fit_laws(np.repeat(N_T, times), np.repeat(loss, times, 0), AdoConfig())
    np.testing.assert_allclose(weighted.params(), repeated.params(), rtol=1e-5)


def test_arrays_round_trip_and_merge():
    laws = fit_laws(N_T, np.concatenate([clean(2.5, 0.9, 0.35), np.full((N_T.size, 1), np.nan)], 1), AdoConfig())
    back = Laws.from_arrays(laws.to_arrays())
    assert back.reason_K == laws.reason_K
    np.testing.assert_array_equal(back.params(), laws.params())
    old = Laws.given([[1.0, 0.1, 0.2], [1.5, 0.2, 0.3]])
    merged = laws.merged(old)
    assert merged.ok_K.all() and merged.reason_K == laws.reason_K
    np.testing.assert_array_equal(merged.params(), [laws.params()[0], [1.5, 0.2, 0.3]])
    assert laws.merged(None).ok_K.tolist() == [True, False]


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="two dimensions"):
        fit_laws(N_T, np.ones(N_T.size))
