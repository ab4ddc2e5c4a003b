"""The projections onto bounded simplices, and the clip of the released code."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ado_megatron.policy import simplex
from ado_megatron.policy.simplex import project, project_proportional, rescale_and_clip

shares = st.lists(st.floats(0, 1), min_size=1, max_size=40).filter(lambda p: sum(p) > 1e-6)


@settings(max_examples=200, deadline=None)
@given(shares, st.floats(0, 1), st.floats(0, 1))
def test_projections_stay_in_bounds_and_are_optimal(p, low, high):
    p = np.array(p) / np.sum(p)
    lower, upper = np.full(p.size, low / p.size), np.full(p.size, 1 / p.size + high * (1 - 1 / p.size))
    q = project(p, lower, upper)
    k = project_proportional(p, lower, upper)
    for point in (q, k):
        assert point.sum() == pytest.approx(1.0, abs=1e-12)
        assert (point >= lower - 1e-12).all() and (point <= upper + 1e-12).all()
    # optimality: moving mass from i to j inside the bounds never brings q nearer to p
    gap = p - q
    can_fall, can_rise = q > lower + 1e-9, q < upper - 1e-9
    if can_fall.any() and can_rise.any():
        assert gap[can_rise].max() <= gap[can_fall].min() + 1e-7


def test_projection_examples_by_hand():
    np.testing.assert_allclose(project([0.9, 0.05, 0.05], np.full(3, 0.1), np.ones(3)), [0.8, 0.1, 0.1], atol=1e-15)
    scaled = project_proportional([0.6, 0.3, 0.1, 0.0], np.full(4, 0.1), np.ones(4))
    np.testing.assert_allclose(scaled, [0.8 * 2 / 3, 0.8 / 3, 0.1, 0.1], atol=1e-15)
    with pytest.raises(ValueError):
        project([0.5, 0.5], [0.6, 0.6], [1.0, 1.0])


def test_rescale_and_clip_has_the_faults_of_the_released_one():
    tail = np.full(21, 0.001)
    clipped = rescale_and_clip(np.append(tail, 1 - tail.sum()), 0.01)
    assert 0.008 < clipped.min() < 0.01
    np.testing.assert_allclose(rescale_and_clip(np.arange(1.0, 201) / 20100, 0.01), 1 / 200)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6), size=st.sampled_from([3, 22, 64, 65, 200, 1000]), shape=st.sampled_from([0.05, 1, 50]),
    low=st.sampled_from([0.0, 0.25, 0.9, 1.0]), proportional=st.booleans(),
)  # fmt: skip
def test_however_the_root_is_found_it_is_the_same_to_the_last_bit(seed, size, shape, low, proportional):
    """All kinks at once, a search from any guess, and bisection: the interval, and so the shares, are one."""
    p_K = np.random.default_rng(seed).dirichlet(np.full(size, shape)) + 1e-12
    lower_K, upper_K = np.full(size, low / size), np.ones(size)
    operation, found = project_proportional if proportional else project, []
    for few, shift in ((1, 0.0), (1, -1.0), (1, 3.0), (10**9, 0.0)):
        root = simplex._root
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(simplex, "_FEW", few)
            patch.setattr(simplex, "_root", lambda kinks, total, guess: root(kinks, total, guess + shift))  # noqa: B023
            found.append(operation(p_K / p_K.sum(), lower_K, upper_K))
    assert all(np.array_equal(found[0], other) for other in found[1:])
