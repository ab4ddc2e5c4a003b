"""Standard errors against the spread of repeated fits, and the robust scale by hand.

Legend: K domains, T points.
"""

import numpy as np
import pytest

from ado_megatron.config import AdoConfig
from ado_megatron.scaling_law.fit import fit_laws
from ado_megatron.scaling_law.standard_errors import cap_of, effective_points, robust_scale
from tests.kit.laws import N_T, clean


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


def test_the_covariance_is_that_of_repeated_fits_and_zero_at_a_bound():
    rng = np.random.default_rng(1)
    loss = clean(5.0, 0.8, 0.4) * np.exp(0.002 * rng.standard_normal((N_T.size, 200)))
    laws = fit_laws(N_T, loss, AdoConfig(gate_speed_error=100.0))
    np.testing.assert_allclose(np.einsum("kii->ki", laws.covariance_Kx3x3), laws.stderr_Kx3**2, rtol=1e-12)
    expected = np.corrcoef(laws.params().T)
    root = laws.stderr_Kx3[:, :, None] * laws.stderr_Kx3[:, None, :]
    np.testing.assert_allclose(np.median(laws.covariance_Kx3x3 / root, 0), expected, atol=0.03)
    held = fit_laws(N_T, loss[:, :1], AdoConfig(alpha_max=0.2))
    assert held.alpha_K[0] == 0.2
    assert (held.covariance_Kx3x3[0, 2] == 0).all() and (held.covariance_Kx3x3[0, :, 2] == 0).all()
    assert held.stderr_Kx3[0, 0] > 0


def test_the_scale_clips_what_is_far_above_the_median():
    r = np.array([[1.0, -1.0, 1.0, -1.0, 1000.0]])
    share = np.full((1, 5), 0.2)
    cap = cap_of(r, share)
    assert cap == 4.5
    assert robust_scale(r, share, cap)[0] == pytest.approx(((4 + 4.5**2) / 5) ** 0.5)


def test_points_that_repeat_their_neighbours_count_once():
    rng = np.random.default_rng(0)
    free = rng.standard_normal((1, 2000))
    weight, one = np.ones((1, 2000)), np.ones(1)
    assert 1700 < effective_points(free, weight, one)[0] <= 2000
    eight = np.repeat(free[:, :250], 8, 1)
    assert 180 < effective_points(eight, weight, one)[0] < 330
