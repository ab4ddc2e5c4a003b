"""The policy `plan`: bounds, gate, horizon, and that nothing it is given makes it anything but a distribution."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ado_megatron.config import AdoConfig
from ado_megatron.policy import PolicyContext, make_policy
from ado_megatron.policy.bounds import total_variation
from ado_megatron.policy.plan import PlanPolicy
from ado_megatron.policy.state import PolicyState
from ado_megatron.scaling_law.laws import Laws
from tests.kit.policies import PRIOR, is_distribution, walk

# b learns fast from its own samples, a and c hardly: the plan wants b
PARAMS = np.array([[0.5, 0.0, 0.05], [6.0, 0.0, 0.5], [0.5, 0.0, 0.05]])
FREE = {"plan_kl": 0.0, "plan_max_change": 1.0, "plan_gate": 0.0, "plan_model_error": 0.0, "plan_repeat": 0.0}
ROW = np.array([500, 300, 200])


def fitted(params=PARAMS, error=1e-4, transfer=0.0, spread=1.0, points=100):
    """Laws with equal standard errors of log β and α/10, and an interval of s that is `spread` wide each way."""
    laws = Laws.given(params, transfer)
    covariance = np.tile(np.diag([error**2, 0.0, (0.1 * error) ** 2]), (len(params), 1, 1))
    return dataclasses.replace(
        laws, covariance_Kx3x3=covariance, points_K=np.full(len(params), points),
        transfer_low_K=laws.transfer_K / spread, transfer_high_K=laws.transfer_K * spread,
    )  # fmt: skip


def plan(prior=PRIOR, *, blocks=100, block_size=1000, cap=None, length=None, aim=None, **options):
    context = PolicyContext(np.asarray(prior), block_size=block_size, num_blocks=blocks, cap_K=cap, length_K=length,
                            target_K=aim)  # fmt: skip
    return make_policy(AdoConfig(**({"policy": "plan", "start_step": 0, "min_share": 0.01} | options)), context)


def first(policy, laws, row=ROW):
    """The state after the first block under laws."""
    return policy.step(policy.initial_state(), laws, row)


def test_two_domains_by_hand():
    # n = (100, 100), 1000 left, L = 2 · 100/n and 8 · 100/n (α = 1): best n = (400, 800), shares .3, .7 (test_horizon)
    laws = Laws.given([[np.log(200.0), 0.0, 1.0], [np.log(800.0), 0.0, 1.0]])
    policy = plan([0.5, 0.5], blocks=6, block_size=200, aim=[0.5, 0.5], **FREE)
    np.testing.assert_allclose(first(policy, laws, [100, 100]).weights_K, [0.3, 0.7], rtol=1e-10)
    bounded = plan([0.5, 0.5], blocks=6, block_size=200, **FREE | {"plan_max_change": 0.05})
    np.testing.assert_allclose(first(bounded, laws, [100, 100]).weights_K, [0.45, 0.55], rtol=1e-12)
    # τ = (.8, .2) makes the two losses weigh the same
    aimed = plan([0.5, 0.5], blocks=6, block_size=200, aim=[0.8, 0.2], **FREE)
    np.testing.assert_allclose(first(aimed, laws, [100, 100]).weights_K, [0.5, 0.5], rtol=1e-10)


def test_before_the_laws_it_is_the_prior_even_below_the_floor():
    prior = [0.899, 0.1, 0.001]
    policy = plan(prior, start_step=3)
    weights, state = walk(policy, [ROW] * 4, None)
    np.testing.assert_array_equal(weights, [prior] * 4)
    assert policy.constant_until(state, None, 90) == 90
    early, _ = walk(policy, [ROW] * 3, fitted())
    np.testing.assert_array_equal(early, [prior] * 3)


def test_the_first_laws_move_no_more_than_the_bound_and_hold():
    policy = plan(plan_max_change=0.1)
    weights, state = walk(policy, [ROW] * 5, fitted())
    assert total_variation(weights[0], PRIOR) == pytest.approx(0.1, abs=1e-12) and weights[0, 1] > PRIOR[1]
    assert (weights == weights[0]).all()
    assert policy.constant_until(state, fitted(), 70) == 70
    again = fitted(PARAMS + 1e-6)
    assert policy.constant_until(state, again, 70) == 6
    after = policy.step(state, again, ROW)
    assert total_variation(after.weights_K, weights[0]) == pytest.approx(0.1, abs=1e-12)
    assert "10.0% of the samples go to other domains; predicted gain" in after.note


def test_a_whole_stretch_laid_out_at_once_is_that_of_single_steps():
    policy, laws, later = plan(plan_max_change=0.1), fitted(), fitted(PARAMS * 1.01)
    slow = first(policy, laws)
    fast = slow
    rows = np.random.default_rng(0).multinomial(1000, PRIOR, 30)
    for row in rows:
        slow = policy.step(slow, laws, row)
    assert policy.constant_until(fast, laws, 31) == 31
    fast = fast.after(rows.sum(0), blocks=30)
    for state in (slow, fast):
        assert state.step == 31
    np.testing.assert_array_equal(policy.step(slow, later, ROW).weights_K, policy.step(fast, later, ROW).weights_K)


def test_a_domain_without_an_identified_law_keeps_its_prior_share():
    laws = fitted()
    for broken in (
        dataclasses.replace(laws, ok_K=np.array([False, True, True])),
        dataclasses.replace(laws, alpha_K=np.array([np.nan, 0.5, 0.05])),
        dataclasses.replace(laws, covariance_Kx3x3=np.where(np.arange(3)[:, None, None] == 0, np.nan,
                                                            laws.covariance_Kx3x3)),
    ):  # fmt: skip
        weights_K = first(plan(**FREE), broken).weights_K
        assert weights_K[0] == pytest.approx(PRIOR[0], abs=1e-15)
        assert weights_K[1] > 0.45 and is_distribution(weights_K)
    unseen = first(plan(**FREE), laws, [0, 600, 400]).weights_K
    assert unseen[0] == pytest.approx(PRIOR[0], abs=1e-15)


def test_laws_that_were_given_and_have_no_errors_may_be_acted_on():
    assert first(plan(plan_max_change=1.0), Laws.given(PARAMS)).weights_K[1] > 0.5


def test_the_gate_is_closed_by_wide_covariances_and_says_so():
    open_, closed = first(plan(), fitted(error=1e-4)), first(plan(), fitted(error=10.0))
    assert total_variation(open_.weights_K, PRIOR) > 0.05
    np.testing.assert_array_equal(closed.weights_K, PRIOR)
    assert closed.note.startswith("plan: the weights stay; predicted gain 0.")
    assert closed.solved_for != 0  # it holds until the next refit, and does not ask again
    assert total_variation(first(plan(plan_gate=0.0), fitted(error=10.0)).weights_K, PRIOR) > 0.05


def test_the_gate_stands_at_so_many_standard_errors():
    def decided(gate):
        return plan(plan_gate=gate).decide(fitted(error=0.05), ROW, PRIOR, 99_000.0)

    whole = decided(1.0)
    ratio = whole.gain / whole.error
    assert 1 < ratio < 1e3
    np.testing.assert_array_equal(decided(ratio * 0.999).weights_K, whole.weights_K)
    half = decided(ratio * 1.001)  # the whole move is not known to pay, half of it is: the gain bends
    np.testing.assert_allclose(half.weights_K, (whole.weights_K + PRIOR) / 2)
    assert half.moved and half.gain > ratio * half.error
    closed = decided(1e3)
    assert not closed.moved and (closed.weights_K == PRIOR).all()
    assert (closed.gain, closed.error) == (whole.gain, whole.error)  # what the whole move promised


def test_the_gate_is_closed_by_an_unknown_transfer_and_by_the_model_error():
    transfer = [0.05, 0.3, 0.05]
    kept = {"plan_kl": 0.0, "plan_model_error": 0.0}
    known, unknown = (plan(**kept).decide(fitted(transfer=transfer, spread=spread), ROW, PRIOR, 99_000.0)
                      for spread in (1.0, 100.0))  # fmt: skip
    assert known.gain == unknown.gain and unknown.error > 3 * known.error
    doubtful = plan(**kept | {"plan_model_error": 0.5}).decide(fitted(transfer=transfer), ROW, PRIOR, 99_000.0)
    assert known.moved and not doubtful.moved


def test_epoch_caps_are_met_exactly():
    cap = np.array([np.inf, 20_300.0, np.inf])  # of b, 300 are drawn; 99,000 are left
    weights_K = first(plan(cap=cap, **FREE), fitted()).weights_K
    assert weights_K[1] == 20_000 / 99_000
    assert first(plan(cap=cap, plan_gate=1e9), fitted()).weights_K[1] == 20_000 / 99_000  # 0.3 would break it
    tight = np.array([30_000.0, 40_000.0, 30_000.0])  # just enough
    np.testing.assert_allclose(first(plan(cap=tight, **FREE), fitted()).weights_K,
                               (tight - ROW) / 99_000, rtol=1e-12)  # fmt: skip


def test_a_run_that_cannot_be_fed_keeps_its_weights():
    cap = np.array([1000.0, 1000.0, 1000.0])
    np.testing.assert_array_equal(first(plan(cap=cap), fitted()).weights_K, PRIOR)


def test_floor_and_ceiling_are_met_exactly():
    weights_K = first(plan(**FREE | {"min_share": 0.05, "min_share_factor": 0.0, "max_share": 0.6}), fitted()).weights_K
    assert weights_K[1] == 0.6 and (weights_K >= 0.05).all()
    steep = fitted([[0.0, 0.0, 0.001], [6.0, 0.0, 0.1], [0.0, 0.0, 0.001]])
    weights_K = first(plan(**FREE | {"min_share": 0.05, "min_share_factor": 0.0}), steep).weights_K
    np.testing.assert_allclose(weights_K, [0.05, 0.9, 0.05], rtol=1e-12)
    # a floor never lifts a domain over its prior
    weights_K = first(plan([0.5, 0.48, 0.02], **FREE | {"min_share": 0.05, "min_share_factor": 0.0}), steep).weights_K
    np.testing.assert_allclose(weights_K, [0.05, 0.93, 0.02], rtol=1e-12)


def test_a_domain_that_follows_all_samples_alike_goes_to_its_floor_without_a_pull():
    laws = fitted(np.tile([3.0, 0.0, 0.4], (3, 1)), transfer=[0.0, np.inf, 0.0])
    weights_K = first(plan(**FREE | {"min_share": 0.02, "min_share_factor": 0.0}), laws).weights_K
    assert weights_K[1] == 0.02
    pulled = first(plan(**FREE | {"plan_kl": 10.0}), laws).weights_K
    np.testing.assert_allclose(pulled, PRIOR, atol=0.02)


@pytest.mark.parametrize("change", [
    {"plan_kl": 0.5}, {"plan_max_change": 0.05}, {"plan_gate": 1e6}, {"plan_repeat": 1.0},
    {"min_share": 0.3, "min_share_factor": 0.0}, {"max_share": 0.4}, {"start_step": 5}, {"target": "uniform"},
    {"probe": 10.0},
])
def test_every_part_can_be_switched_and_changes_the_weights(change):
    laws = fitted(np.array([[3.0, 0.0, 0.3], [3.5, 0.0, 0.35], [2.0, 0.0, 0.3]]), error=0.01)
    length = np.array([1e4, 2e4, 1e4])
    base, changed = (first(plan(length=length, **FREE | c), laws).weights_K for c in ({}, change))
    assert np.abs(base - changed).max() > 1e-3


def test_the_model_error_is_a_part_of_the_gate_alone():
    policies = [plan(**FREE | {"plan_model_error": error}) for error in (0.0, 0.1)]
    decisions = [policy.decide(fitted(), ROW, PRIOR, 99_000.0) for policy in policies]
    assert decisions[0].gain == decisions[1].gain and decisions[0].error < decisions[1].error


def test_at_the_end_of_the_run_nothing_moves():
    policy = plan(blocks=5)
    weights, state = walk(policy, [ROW] * 4, None)
    assert (policy.step(state, fitted(), ROW).weights_K == PRIOR).all()


def test_without_a_known_end_the_horizon_is_what_was_drawn():
    laws, options = fitted(), FREE | {"plan_kl": 0.05}
    open_end = make_policy(AdoConfig(policy="plan", start_step=0, **options), PRIOR)
    twice = plan(blocks=2, **options)  # 1000 drawn, 1000 left
    np.testing.assert_array_equal(first(open_end, laws).weights_K, first(twice, laws).weights_K)


def test_a_saved_state_goes_on_equally_and_other_options_act_at_once():
    policy, laws = plan(plan_max_change=0.1), fitted()
    _, state = walk(policy, [ROW] * 3, laws)
    back = PolicyState.from_arrays(state.to_arrays())
    same = plan(plan_max_change=0.1).step(back, laws, ROW)
    np.testing.assert_array_equal(same.weights_K, policy.step(state, laws, ROW).weights_K)
    assert same.solved_for == state.solved_for
    other = plan(plan_max_change=0.1, target="uniform").step(back, laws, ROW)
    assert other.solved_for != state.solved_for and (other.weights_K != same.weights_K).any()


def test_a_prior_of_zero_stays_zero():
    weights_K = first(plan([0.5, 0.5, 0.0], **FREE), fitted(), [500, 500, 0]).weights_K
    assert weights_K[2] == 0.0 and weights_K[1] > 0.9


def test_ten_thousand_domains():
    rng = np.random.default_rng(5)
    num = 10_000
    prior = rng.dirichlet(np.ones(num))
    params = np.stack([rng.uniform(0, 4, num), np.zeros(num), rng.uniform(0.05, 0.6, num)], -1)
    laws = fitted(params, error=1e-3, transfer=rng.uniform(0, 0.5, num))
    laws = dataclasses.replace(laws, ok_K=rng.random(num) < 0.9)
    counts = rng.integers(1, 1000, num)
    policy = plan(prior, blocks=1000, block_size=5_000_000, length=rng.uniform(1e4, 1e6, num),
                  cap=rng.uniform(1e5, 1e7, num), plan_gate=0.0)  # fmt: skip
    state = first(policy, laws, counts)
    assert is_distribution(state.weights_K)
    assert 0.01 < total_variation(state.weights_K, prior) < 0.1 + 1e-9
    lost_K = ~laws.ok_K & (counts + prior * 999 * 5e6 <= policy.context.cap_K)
    np.testing.assert_allclose(state.weights_K[lost_K], prior[lost_K], rtol=1e-9)


numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(numbers, numbers, numbers, numbers, numbers), min_size=1, max_size=6), st.integers(0, 2**32 - 1)
)
def test_whatever_the_laws_say_the_weights_are_a_distribution_within_the_bounds(values, seed):
    rng = np.random.default_rng(seed)
    values = np.array(values)
    num = len(values)
    with np.errstate(all="ignore"):
        laws = Laws.given(values[:, :3], np.abs(values[:, 3]))
    scale = np.nan_to_num(np.abs(values[:, 4]), nan=1.0, posinf=1e300)
    laws = dataclasses.replace(laws, covariance_Kx3x3=np.minimum(scale, 1e150)[:, None, None] * np.eye(3),
                               points_K=np.full(num, 9))  # fmt: skip
    prior = rng.dirichlet(np.ones(num)) * (rng.random(num) < 0.8)
    prior = prior / prior.sum() if prior.sum() > 0 else np.full(num, 1 / num)
    cap = np.where(rng.random(num) < 0.5, np.inf, rng.uniform(0, 5e4, num)) if rng.random() < 0.5 else None
    policy = plan(prior, cap=cap, length=rng.uniform(1, 1e5, num), plan_gate=float(rng.choice([0.0, 2.0])),
                  plan_kl=float(rng.choice([0.0, 0.05])))  # fmt: skip
    assert isinstance(policy, PlanPolicy)
    counts = rng.integers(0, 1000, num)
    state = first(policy, laws, counts)
    assert is_distribution(state.weights_K)
    assert (state.weights_K[prior == 0] == 0).all()
    if cap is not None and (supply := np.clip((cap - counts) / 99_000, 0, 1))[prior > 0].sum() >= 1:
        assert (state.weights_K <= supply + 1e-9).all()
    elif cap is None:
        assert total_variation(state.weights_K, prior) <= 0.1 + 1e-9
