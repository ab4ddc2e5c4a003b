"""Where the solver starts: thinning keeps weights, candidates in one place count once, the valley keeps the level.

Legend: K domains, T points.
"""

import numpy as np

from ado_megatron.scaling_law.initial_guesses import distinct, starts, thin, valley
from ado_megatron.scaling_law.newton import centre
from ado_megatron.scaling_law.objective import Problem, predict
from tests.kit.laws import N_T, clean, one_problem


def problem():
    return one_problem(np.log(N_T), np.log(clean(2.5, 0.9, 0.35)[:, 0]))


def test_thinning_takes_present_points_and_keeps_the_sum_of_the_weights():
    whole = problem()
    w = np.where(np.arange(300) % 3 == 0, 2.0, 0.0)[None]
    small = thin(Problem(whole.x_NxT, whole.y_NxT, w, whole.lower_Nx3, whole.upper_Nx3, 1e-3, 1.0), 10)
    assert small.x_NxT.shape == (1, 10) and small.w_NxT.sum() == w.sum()
    assert set(small.x_NxT[0]) <= set(whole.x_NxT[0, ::3]) and (np.diff(small.x_NxT[0]) > 0).all()


def test_candidates_in_one_place_count_once_and_the_lowest_come_first():
    theta = np.array([[[1.0, 0.5, 0.3], [1.0, 0.501, 0.3], [2.0, 0.1, 0.6], [3.0, 0.9, 0.1]]])
    kept = distinct(theta, np.array([[2.0, 1.0, np.nan, 3.0]]), 2)
    np.testing.assert_array_equal(kept[0], [theta[0, 1], theta[0, 3]])


def test_the_valley_keeps_level_and_slope_at_the_centre():
    theta = np.array([[2.5, 0.9, 0.35]])
    points = valley(problem(), theta)[0]
    at = centre(problem())[:, None]
    level, s = predict(theta, at)
    for point in points:
        new_level, new_s = predict(point[None], at)
        np.testing.assert_allclose([new_level, point[2] * new_s], [level, 0.35 * s], rtol=1e-12)
    assert len(points) == 6 and np.unique(points[:, 2]).size == 6


def test_a_start_lies_near_a_clean_law_and_one_is_flat():
    found = starts(problem(), 10)[0]
    assert np.abs(found - [2.5, 0.9, 0.35]).max(-1).min() < 0.05
    assert (found[-1, 0] == -30.0) and found.shape == (10, 3)
