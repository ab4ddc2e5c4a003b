"""Equations 2 to 6 by hand, the projections, profiles, static weights and stages."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.policy import make_policy
from ado_megatron.policy.ado import AdoPolicy, share_bounds
from ado_megatron.policy.simplex import project, project_proportional, rescale_and_clip
from ado_megatron.policy.state import PolicyState
from ado_megatron.scaling_law.laws import Laws

LAWS = Laws.given([[2.0, 0.5, 0.3], [1.0, 0.2, 0.5], [3.0, 0.7, 0.2]])
PRIOR = np.array([0.5, 0.3, 0.2])
shares = st.lists(st.floats(0, 1), min_size=1, max_size=40).filter(lambda p: sum(p) > 1e-6)


def run(config, counts_TxK, laws=LAWS, prior=PRIOR):
    policy = make_policy(config, prior)
    state, rows = policy.initial_state(), []
    for counts_K in counts_TxK:
        state = policy.step(state, laws, counts_K)
        rows.append(state.weights_K)
    return np.array(rows), state


def test_released_step_by_hand():
    config = AdoConfig(profile="released", start_step=1)
    counts = np.array([[6, 3, 1], [5, 5, 0]])
    weights, state = run(config, counts)
    np.testing.assert_array_equal(weights[0], PRIOR)
    h = 0.9 * (0.9 * PRIOR + 0.1 * counts[0] / 10) + 0.1 * counts[1] / 10
    a, _, alpha = LAWS.params().T
    speed = alpha * np.exp(a) * 20.0**-alpha / 20.0
    rho = speed * PRIOR * np.sqrt(h)
    rho = rescale_and_clip(rho / rho.sum(), 0.01)
    np.testing.assert_allclose(weights[1], 0.9 * PRIOR + 0.1 * rho, rtol=1e-13)
    np.testing.assert_allclose(state.average_K, 0.5 * PRIOR + 0.5 * rho, rtol=1e-13)


def test_paper_feeds_the_policy_to_the_credit_and_counts_own_samples():
    config = AdoConfig(profile="paper", start_step=0)
    counts = np.array([[60, 30, 10]])
    weights, state = run(config, counts)
    np.testing.assert_allclose(state.credit_K, PRIOR, rtol=1e-13)  # h of π = μ is μ
    a, _, alpha = LAWS.params().T
    rho = PRIOR**1.5 * alpha * np.exp(a) * counts[0] ** (-alpha - 1.0)
    rho = rho / rho.sum()
    np.testing.assert_allclose(weights[0], project(0.1 * rho + 0.9 * PRIOR, np.full(3, 0.01), np.ones(3)), rtol=1e-12)


def test_ado_is_prior_times_own_speed():
    weights, _ = run(AdoConfig(start_step=0), np.array([[60, 30, 10]]))
    a, _, alpha = LAWS.params().T
    rho = PRIOR * alpha * np.exp(a) * np.array([60, 30, 10]) ** (-alpha - 1.0)
    np.testing.assert_allclose(weights[0], rho / rho.sum(), rtol=1e-12)


@pytest.mark.parametrize("change", [
    {"own_n": False}, {"speed_unit": "log"}, {"speed_exponent": 0.5}, {"alpha_floor": 0.4}, {"credit_exponent": 0.5},
    {"preference_rate": 0.3}, {"min_share": 0.3, "min_share_factor": 0.0}, {"max_share": 0.4}, {"start_step": 100},
])
def test_every_switch_of_the_policy_changes_the_weights(change):
    counts = np.array([[60, 30, 10], [10, 20, 70]])
    base, changed = (run(AdoConfig(**({"start_step": 0} | c)), counts)[0] for c in ({}, change))
    assert np.abs(base - changed).max() > 1e-4


def test_a_domain_without_a_law_keeps_its_prior_share():
    laws = Laws.given([[2.0, 0.5, 0.3], [np.nan] * 3, [3.0, 0.7, 0.2]])
    weights, _ = run(AdoConfig(start_step=0), np.array([[60, 30, 10]]), laws)
    assert weights[0, 1] == pytest.approx(PRIOR[1], abs=1e-12)
    assert weights[0].sum() == pytest.approx(1.0, abs=1e-12)


def test_a_domain_never_seen_does_not_divide_by_zero():
    weights, _ = run(AdoConfig(start_step=0), np.array([[100, 0, 0]]))
    assert np.isfinite(weights).all()


def test_a_zero_prior_stays_zero():
    weights, _ = run(AdoConfig(start_step=0), np.array([[50, 50, 0]]), prior=np.array([0.5, 0.5, 0.0]))
    assert weights[0, 2] == 0.0


def test_state_round_trip_goes_on_equally():
    policy = make_policy(AdoConfig(profile="paper", start_step=0), PRIOR)
    state = policy.step(policy.initial_state(), LAWS, np.array([5, 3, 2]))
    back = PolicyState.from_arrays(state.to_arrays())
    for counts in ([1, 2, 7], [3, 3, 4]):
        state, back = policy.step(state, LAWS, counts), policy.step(back, LAWS, counts)
    np.testing.assert_array_equal(state.weights_K, back.weights_K)
    assert back.step == 3


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


@pytest.mark.parametrize("num", [1, 2, 22, 5000])
def test_floor_of_ado_leaves_room(num):
    lower_K, upper_K = share_bounds(AdoConfig().resolved(), np.full(num, 1 / num))
    assert lower_K.sum() <= 0.25 + 1e-12 and upper_K.sum() >= 1
    assert lower_K[0] == pytest.approx(min(0.01, 0.25 / num))


def test_static_weights_never_move():
    weights, state = run(AdoConfig(policy="static"), np.array([[6, 3, 1]] * 4))
    np.testing.assert_array_equal(weights, np.tile(PRIOR, (4, 1)))
    assert state.step == 4 and state.samples_K.tolist() == [24, 12, 4]


def test_stages_by_block(tmp_path):
    path = tmp_path / "stages.json"
    path.write_text(json.dumps([{"block": 1, "weights": {"a": 1, "c": 3}}, {"block": 3, "weights": [1, 1, 2]}]))
    policy = make_policy(AdoConfig(policy="stages", stages=str(path)), PRIOR, ["a", "b", "c"])
    state, rows = policy.initial_state(), []
    for _ in range(4):
        rows.append(state.weights_K.tolist())
        state = policy.step(state, None, [1, 0, 0])
    assert rows == [PRIOR.tolist(), [0.25, 0.0, 0.75], [0.25, 0.0, 0.75], [0.25, 0.25, 0.5]]


@pytest.mark.parametrize("content", [
    "not json", "[]", '[{"block": 2, "weights": [1, 1, 1]}, {"block": 1, "weights": [1, 1, 1]}]',
    '[{"block": 0, "weights": [1, 1]}]', '[{"block": 0, "weights": {"zebra": 1}}]',
    '[{"block": 0, "weights": [0, 0, 0]}]',
    '[{"block": 0, "weights": [1, -1, 1]}]', '[{"weights": [1, 1, 1]}]', '[{"block": 0, "weights": ["x", 1, 1]}]',
])
def test_bad_stages_are_refused(tmp_path, content):
    path = tmp_path / "stages.json"
    path.write_text(content)
    with pytest.raises(UserError, match="stages"):
        make_policy(AdoConfig(policy="stages", stages=str(path)), PRIOR, ["a", "b", "c"])


def test_a_bad_prior_is_refused():
    with pytest.raises(UserError, match="prior"):
        AdoPolicy(AdoConfig(), [0.0, 0.0])
