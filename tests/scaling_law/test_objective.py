"""The objective: its derivatives against differences, its value against the released formula.

Legend: K domains, T points.
"""

import numpy as np
import pytest

from ado_megatron.scaling_law.objective import cost, derivatives
from tests.kit.laws import N_T, one_problem


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
