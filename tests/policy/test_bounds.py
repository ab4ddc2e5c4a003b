"""Floor, ceiling and the bound on a change."""

import numpy as np
import pytest

from ado_megatron.config import AdoConfig
from ado_megatron.policy.bounds import share_bounds, total_variation, within_change


@pytest.mark.parametrize("num", [1, 2, 22, 5000])
def test_floor_of_ado_leaves_room(num):
    lower_K, upper_K = share_bounds(AdoConfig().resolved(), np.full(num, 1 / num))
    assert lower_K.sum() <= 0.25 + 1e-12 and upper_K.sum() >= 1
    assert lower_K[0] == pytest.approx(min(0.01, 0.25 / num))


def test_a_domain_of_no_prior_has_no_floor():
    lower_K, _ = share_bounds(AdoConfig().resolved(), np.array([0.5, 0.5, 0.0]))
    np.testing.assert_array_equal(lower_K, [0.01, 0.01, 0.0])


def test_a_change_stops_on_the_line_at_the_bound():
    anchor, goal = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.4, 0.5])
    assert total_variation(anchor, goal) == pytest.approx(0.4)
    np.testing.assert_allclose(within_change(goal, anchor, 0.1), [0.4, 0.325, 0.275], rtol=1e-14)
    np.testing.assert_array_equal(within_change(goal, anchor, 0.45), goal)
