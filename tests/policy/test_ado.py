"""Equations 2 to 6 by hand, profiles, transfer, the target, and the fixed points of both units."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.policy import PolicyContext, make_policy
from ado_megatron.policy.ado import AdoPolicy
from ado_megatron.policy.bounds import total_variation
from ado_megatron.policy.simplex import project, rescale_and_clip
from ado_megatron.scaling_law.laws import Laws
from tests.kit.policies import LAWS, PARAMS, PRIOR, SHARED_LAWS, is_distribution, run, walk


def test_released_step_by_hand():
    config = AdoConfig(profile="released", start_step=1)
    counts = np.array([[6, 3, 1], [5, 5, 0]])
    weights, state = run(config, counts, SHARED_LAWS)
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
    weights, _ = run(AdoConfig(start_step=0, max_change=1.0), np.array([[60, 30, 10]]))
    a, _, alpha = LAWS.params().T
    rho = PRIOR * alpha * np.exp(a) * np.array([60, 30, 10]) ** (-alpha - 1.0)
    np.testing.assert_allclose(weights[0], rho / rho.sum(), rtol=1e-12)


@pytest.mark.parametrize("change", [
    {"own_n": False}, {"speed_unit": "log"}, {"speed_exponent": 0.5}, {"alpha_floor": 0.4}, {"credit_exponent": 0.5},
    {"preference_rate": 0.3}, {"min_share": 0.3, "min_share_factor": 0.0}, {"max_share": 0.4}, {"start_step": 100},
    {"max_change": 0.05}, {"target": "uniform"}, {"probe": 20.0},
])
def test_every_switch_of_the_policy_changes_the_weights(change):
    counts = np.array([[60, 30, 10], [10, 20, 70]])
    configs = [AdoConfig(**({"start_step": 0, "max_change": 1.0} | c)) for c in ({}, change)]
    base, changed = (run(c, counts, Laws.given(PARAMS, c.given_transfer))[0] for c in configs)
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


def test_a_bad_prior_is_refused():
    with pytest.raises(UserError, match="prior"):
        AdoPolicy(AdoConfig(), [0.0, 0.0])


def fixed_point(laws, total, unit, target_K, prior_K=None):
    """The weights that reproduce themselves when n_k = π_k · total, by damped iteration of the policy's own step."""
    prior_K = np.full(len(target_K), 1 / len(target_K)) if prior_K is None else prior_K
    config = AdoConfig(start_step=0, speed_unit=unit, clip="none", max_change=1.0, credit_exponent=0.0)
    policy = AdoPolicy(config, PolicyContext(prior_K, target_K=target_K))
    weights_K = prior_K
    for _ in range(3000):
        samples_K = np.round(weights_K * total).astype(np.int64)
        new_K = policy.preference(laws, samples_K, prior_K)
        weights_K = 0.8 * weights_K + 0.2 * new_K
    return weights_K


def marginal_values(laws, weights_K, total, target_K):
    """τ_k · (−∂L_k/∂n_k) with n_k = π_k · total: equal for all domains at the best mixture (KKT)."""
    n_K = weights_K * total + np.where(np.isinf(laws.transfer_K), 0, laws.transfer_K) * total
    return target_K * laws.alpha_K * np.exp(laws.log_beta_K) * n_K ** (-laws.alpha_K - 1)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.0, 2.0), min_size=3, max_size=3), st.lists(st.floats(0.1, 1.0), min_size=3, max_size=3))
def test_the_fixed_point_of_unit_log_is_the_kkt_point_of_the_target(transfer, target):
    laws, target_K, total = Laws.given(PARAMS, transfer), np.array(target) / np.sum(target), 1e12
    weights_K = fixed_point(laws, total, "log", target_K)
    value_K = marginal_values(laws, weights_K, total, target_K)
    inside_K = weights_K > 1e-3  # the others stop at 0, where their value may be less
    np.testing.assert_allclose(value_K[inside_K], value_K.max(), rtol=1e-5)


def test_the_fixed_point_of_unit_sample_is_not_and_is_flatter():
    laws, target_K, total = Laws.given(PARAMS), PRIOR, 1e12
    weights_K = fixed_point(laws, total, "sample", target_K)
    a, _, alpha = np.array(PARAMS).T
    # π = c τ α β (π N)^(−α−1), solved for π: (τ α β N^(−α−1) c)^(1/(2+α))
    from scipy.optimize import brentq

    share = lambda log_c: (target_K * alpha * np.exp(a + log_c) * total ** (-alpha - 1)) ** (1 / (2 + alpha))  # noqa: E731
    log_c = brentq(lambda log_c: share(log_c).sum() - 1, -50, 100, xtol=1e-13)
    np.testing.assert_allclose(weights_K, share(log_c), rtol=1e-6)
    value_K = marginal_values(laws, weights_K, total, target_K)
    assert value_K.max() / value_K.min() > 1.5


def test_own_elasticity_by_hand():
    laws = Laws.given(PARAMS, [0.0, 0.5, 2.0])
    samples = np.array([60, 30, 10])
    policy = AdoPolicy(AdoConfig(start_step=0, speed_unit="log"), PolicyContext(PRIOR, target_K=[0.2, 0.2, 0.6]))
    a, _, alpha = np.array(PARAMS).T
    n = samples + np.array([0.0, 0.5, 2.0]) * 100
    expected = np.array([0.2, 0.2, 0.6]) * alpha * np.exp(a) * n**-alpha * samples / n
    np.testing.assert_allclose(policy.preference(laws, samples, PRIOR), expected / expected.sum(), rtol=1e-12)


def test_a_domain_that_follows_all_samples_has_no_own_elasticity_beside_others():
    samples = np.array([60, 30, 10])
    policy = AdoPolicy(AdoConfig(start_step=0, speed_unit="log"), PRIOR)
    share_K = policy.preference(Laws.given(PARAMS, [0.1, np.inf, 0.1]), samples, PRIOR)
    assert share_K[1] == 0.0
    a, _, alpha = np.array(PARAMS).T
    shared = PRIOR * alpha * np.exp(a) * 100.0**-alpha  # all of them shared: per log N, as ever
    np.testing.assert_allclose(policy.preference(SHARED_LAWS, samples, PRIOR), shared / shared.sum(), rtol=1e-12)


def test_without_the_speed_the_target_alone_decides_even_where_a_speed_is_zero():
    policy = AdoPolicy(AdoConfig(start_step=0, speed_unit="log", speed_exponent=0.0), PRIOR)
    share_K = policy.preference(Laws.given(PARAMS, [0.1, np.inf, 0.1]), np.array([60, 30, 10]), PRIOR)
    np.testing.assert_allclose(share_K, PRIOR, rtol=1e-15)


def test_a_target_never_brings_back_a_domain_of_no_prior():
    policy = AdoPolicy(AdoConfig(start_step=0), PolicyContext([0.5, 0.5, 0.0], target_K=[0.2, 0.2, 0.6]))
    weights, _ = walk(policy, np.array([[50, 50, 0]] * 3))
    assert (weights[:, 2] == 0).all() and is_distribution(weights[-1])


def test_the_first_laws_do_not_jerk_the_mixture():
    laws = Laws.given([[0.0, 0.0, 0.01], [5.0, 0.0, 0.9], [0.0, 0.0, 0.01]])
    counts = np.array([[50, 30, 20]] * 6)
    free, _ = run(AdoConfig(start_step=0, max_change=1.0), counts, laws)
    assert total_variation(free[0], PRIOR) > 0.5
    policy = make_policy(AdoConfig(policy="ado", start_step=0, max_change=0.1), PRIOR)
    weights, state = walk(policy, counts, laws)
    start = policy.initial_state().weights_K
    for row in weights:  # however many blocks the laws hold
        assert total_variation(row, start) == pytest.approx(0.1, abs=1e-12)
    other = Laws.given([[0.0, 0.0, 0.02], [5.0, 0.0, 0.9], [0.0, 0.0, 0.01]])
    more, _ = walk(policy, counts, other, state)
    for row in more:  # new laws may go as far again, from where they found the mixture
        assert total_variation(row, weights[-1]) == pytest.approx(0.1, abs=1e-12)


def test_published_profiles_have_no_bound_on_the_change():
    for name in ("released", "paper"):
        assert AdoConfig(profile=name).value("max_change") == 1.0
    assert AdoConfig().value("max_change") < 0.4  # the demo went from 51 % to 11 % in one block


def test_a_policy_that_moves_at_every_block_says_so():
    policy = make_policy(AdoConfig(policy="ado", start_step=5), PRIOR)
    state = policy.initial_state()
    assert policy.constant_until(state, None, 40) == 40
    assert policy.constant_until(state, LAWS, 40) == 6  # block 5 is stepped over first; block 6 has other weights
    _, state = walk(policy, np.array([[5, 3, 2]] * 5), LAWS)
    assert (state.weights_K == policy.initial_state().weights_K).all()
    assert policy.constant_until(state, LAWS, 40) == 6
    assert (policy.step(state, LAWS, [5, 3, 2]).weights_K != state.weights_K).any()


@pytest.mark.parametrize("transfer", [0.0, 0.3, np.inf])
@pytest.mark.parametrize("profile", ["released", "paper", "ado"])
def test_laws_that_stay_and_laws_that_come_anew_give_the_same_weights(profile, transfer):
    """What a policy keeps of the laws in force is only a matter of speed: equal laws in new objects change no bit."""
    rng, num_domains = np.random.default_rng(3), 7
    policy = AdoPolicy(AdoConfig(profile=profile, start_step=0), rng.dirichlet(np.ones(num_domains)))
    laws_Kx3 = rng.uniform([0, -0.5, 0.05], [3, 1, 0.6], (num_domains, 3))
    laws = Laws.given(laws_Kx3, transfer)
    kept = anew = policy.initial_state()
    for _ in range(5):
        counts_K = rng.multinomial(64, policy.prior_K)
        kept = policy.step(kept, laws, counts_K)
        anew = policy.step(anew, Laws.given(laws_Kx3, transfer), counts_K)
        assert kept.weights_K.tolist() == anew.weights_K.tolist()
        log_speed_K = laws.log_speed(np.maximum(laws.effective_n(kept.samples_K), 1.0), policy.config.alpha_floor)
        score_K = np.log(policy.goal_K) + policy.config.credit_exponent * np.log(kept.credit_K) + log_speed_K
        share_K = np.exp(score_K - score_K.max())
        rho_K = policy.preference(laws, kept.samples_K, kept.credit_K)
        np.testing.assert_allclose(rho_K, share_K / share_K.sum(), rtol=1e-13)
