"""The step over the hinges against random trial points, and the small solver against the library's.

Legend: K domains, T points.
"""

import numpy as np

from ado_megatron.scaling_law.constrained_step import constrained_step, solve_3x3
from ado_megatron.scaling_law.objective import Problem


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


def test_solve_3x3_and_a_singular_matrix():
    rng = np.random.default_rng(2)
    root = rng.standard_normal((5, 3, 3))
    a, b = root @ root.transpose(0, 2, 1), rng.standard_normal((5, 3, 1))
    np.testing.assert_allclose(solve_3x3(a, b), np.linalg.solve(a, b), rtol=1e-6)
    assert np.isfinite(solve_3x3(np.ones((1, 3, 3)), np.ones((1, 3, 1)))).all()
