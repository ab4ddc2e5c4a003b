"""The minimiser: kinks are reached exactly, and the objective never rises.

Legend: K domains, T points.
"""

import numpy as np

from ado_megatron.scaling_law.newton import minimise
from ado_megatron.scaling_law.objective import cost
from tests.kit.laws import N_T, clean, one_problem


def test_a_minimum_on_a_hinge_is_found_exactly():
    x_T = np.log(N_T)
    theta, _ = minimise(one_problem(x_T, np.log(clean(2.0, 0.0, 0.3)[:, 0])), np.array([[1.0, 0.7, 0.2]]))
    assert theta[0, 1] == 0.5


def test_the_objective_falls_with_every_iteration_to_a_point_without_slope():
    x_T = np.log(N_T)
    noise = np.exp(1e-3 * np.random.default_rng(0).standard_normal(N_T.size))
    problem = one_problem(x_T, np.log(clean(2.5, 0.9, 0.35)[:, 0] * noise))
    start = np.array([[1.0, 0.7, 0.2]])
    values = [cost(problem, start)[0]] + [minimise(problem, start, iterations=n)[1][0] for n in (1, 2, 4, 8, 60)]
    assert (np.diff(values) <= 0).all() and values[-1] < 1e-2 * values[0]
    theta, value = minimise(problem, start)
    for move in np.eye(3) * 1e-4:
        assert min(cost(problem, theta + move)[0], cost(problem, theta - move)[0]) >= value[0]


def test_a_row_that_is_not_finite_comes_back_and_costs_the_others_nothing():
    x_T = np.log(N_T)
    one = one_problem(x_T, np.log(clean(2.5, 0.9, 0.35)[:, 0]))
    two = one.rows(np.zeros(2, int))
    theta, value = minimise(two, np.array([[1.0, 0.7, 0.2], [np.nan, 0.7, 0.2]]))
    np.testing.assert_array_equal(theta[0], minimise(one, np.array([[1.0, 0.7, 0.2]]))[0][0])
    assert np.isnan(value[1])
