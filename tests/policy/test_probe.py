"""Zero-sum probing: balanced, paired, reproducible, and nothing moves on average."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ado_megatron.config import AdoConfig
from ado_megatron.policy import PolicyContext, make_policy
from ado_megatron.policy.probe import ProbedPolicy, probe_signs, probed
from ado_megatron.policy.state import PolicyState
from tests.kit.policies import LAWS, PRIOR, is_distribution, walk

ROW = np.array([50, 30, 20])


def test_a_pair_by_hand():
    up = probed(PRIOR, np.array([1.0, -1.0, -1.0]), 0.2)  # both sides weigh .5: .1 moves
    np.testing.assert_allclose(up, [0.6, 0.24, 0.16], rtol=1e-15)
    np.testing.assert_allclose(probed(PRIOR, np.array([-1.0, 1.0, 1.0]), 0.2), [0.4, 0.36, 0.24], rtol=1e-15)
    np.testing.assert_allclose(probed(PRIOR, np.array([-1.0, -1.0, 1.0]), 0.5), [0.4375, 0.2625, 0.3], rtol=1e-15)
    assert probed(PRIOR, np.ones(3), 0.2) is PRIOR


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40).filter(lambda w: sum(w) > 1e-3), st.floats(0.0, 0.5),
       st.integers(0, 99), st.integers(1, 7), st.integers(0, 10**6))  # fmt: skip
def test_a_pair_is_zero_sum_bounded_and_cancels(weights, size, pair, length, seed):
    weights_K = np.array(weights) / np.sum(weights)
    signs = [probe_signs(block, len(weights_K), length, seed) for block in range(2 * pair * length,
                                                                                  2 * (pair + 1) * length)]  # fmt: skip
    assert (np.array(signs[:length]) == signs[0]).all() and (np.array(signs[length:]) == -signs[0]).all()
    first, second = (probed(weights_K, sign, size) for sign in (signs[0], -signs[0]))
    for half in (first, second):
        assert half.sum() == pytest.approx(1.0, abs=1e-12) and (half >= 0).all()
        assert (np.abs(half - weights_K) <= size * weights_K + 1e-15).all()
    np.testing.assert_allclose(first + second, 2 * weights_K, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("num", [2, 3, 5, 22, 64])
def test_the_design_is_balanced_and_orthogonal(num):
    rows = 2 ** num.bit_length() - 1
    design = np.array([probe_signs(2 * pair, num, 1, seed=7) for pair in range(rows)])
    # over a cycle each domain is down once more than up, and each two agree once less than they differ
    assert design.sum(0).tolist() == [-1] * num
    products = design.T @ design
    assert (products[~np.eye(num, dtype=bool)] == -1).all()


def test_which_are_up_depends_on_block_and_seed_alone():
    signs = [tuple(probe_signs(block, 22, 10, seed)) for seed in (1, 2) for block in range(0, 400, 10)]
    assert tuple(probe_signs(123, 22, 10, 1)) == tuple(probe_signs(129, 22, 10, 1))
    assert len(set(signs)) > 60


def test_the_policy_below_sees_its_own_weights_and_the_mean_is_theirs():
    plain = make_policy(AdoConfig(policy="ado", start_step=0), PRIOR)
    policy = make_policy(AdoConfig(policy="ado", start_step=0, probe=20.0, probe_length=2), PRIOR)
    assert isinstance(policy, ProbedPolicy)
    bare, _ = walk(plain, [ROW] * 40)
    weights, state = walk(policy, [ROW] * 40)
    np.testing.assert_array_equal(state.base_K, bare[-1])
    assert (np.abs(weights / bare - 1) <= 0.2 + 1e-12).all() and (weights != bare).any()
    for row in weights:
        assert is_distribution(row)


def test_probing_goes_on_after_a_resume_and_can_be_switched_off():
    config = AdoConfig(policy="plan", start_step=0, probe=10.0, probe_length=3, plan_max_change=0.1)
    make = lambda: make_policy(config, PolicyContext(PRIOR, num_blocks=100, block_size=100, seed=5))  # noqa: E731
    weights, _ = walk(make(), [ROW] * 20)
    _, half = walk(make(), [ROW] * 9)
    rest, state = walk(make(), [ROW] * 11, state=PolicyState.from_arrays(half.to_arrays()))
    np.testing.assert_array_equal(rest, weights[9:])
    off = make_policy(AdoConfig(policy="plan", start_step=0, plan_max_change=0.1),
                      PolicyContext(PRIOR, num_blocks=100, block_size=100, seed=5))  # fmt: skip
    after = off.step(state, LAWS, ROW)
    np.testing.assert_array_equal(after.weights_K, state.base_K)


def test_how_long_probed_weights_hold():
    policy = make_policy(AdoConfig(policy="plan", start_step=0, probe=10.0, probe_length=4), PRIOR)
    _, state = walk(policy, [ROW] * 5)
    until = policy.constant_until(state, LAWS, 100)
    assert until == 8
    for _ in range(until - state.step):
        before, state = state, policy.step(state, LAWS, ROW)
    assert before.step == 7 and (before.weights_K != state.weights_K).any()


@pytest.mark.parametrize("options", [{"policy": "static"}, {"shadow": True}, {"probe": 0.0}])
def test_what_is_not_probed(options):
    assert not isinstance(make_policy(AdoConfig(**{"probe": 10.0} | options), PRIOR), ProbedPolicy)
