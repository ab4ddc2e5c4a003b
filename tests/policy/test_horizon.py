"""The receding horizon against hand-solved cases, scipy and the conditions of Karush, Kuhn and Tucker."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from ado_megatron.policy.horizon import Doubt, Horizon, best_shares, gain_error, predicted_gain, worth


def horizon(alpha, excess, samples, transfer=0.0, left=1000.0, length=np.inf, prior=None, kl=0.0, reuse=0.0):
    """The problem of these lists, with E₀ and s N′ worked out."""
    samples = np.array(samples, float)
    num, total = len(samples), samples.sum()
    full = lambda value: np.broadcast_to(np.asarray(value, float), (num,)).copy()  # noqa: E731
    present = worth(samples, full(length), reuse)[0] + full(transfer) * total
    return Horizon(full(excess), full(alpha), samples, full(transfer) * (total + left), present, full(length),
                   full(1 / num if prior is None else prior), left, kl, reuse)  # fmt: skip


def solve(problem, lower=0.0, upper=1.0, anchor=None, change=1.0):
    num = len(problem.samples_K)
    anchor = np.full(num, 1 / num) if anchor is None else np.asarray(anchor, float)
    return best_shares(problem, np.broadcast_to(lower, (num,)).astype(float),
                       np.broadcast_to(upper, (num,)).astype(float), anchor, change)  # fmt: skip


def test_worth_of_repeated_data_by_hand():
    n, length = np.array([50.0, 100.0, 250.0, 1e9, 70.0]), np.array([100.0, 100.0, 100.0, 100.0, np.inf])
    m, slope = worth(n, length, 15.0)
    more = 100 * 15 * (1 - np.exp(-1.5 / 15))
    np.testing.assert_allclose(m, [50, 100, 100 + more, 100 + 1500, 70], rtol=1e-14)
    np.testing.assert_allclose(slope, [1, 1, np.exp(-0.1), 0, 1], rtol=1e-14)
    off, ones = worth(n, length, 0.0)
    assert off.tolist() == n.tolist() and ones.tolist() == [1.0] * 5


def test_two_domains_by_hand():
    # min 2 (n1/100)^-1 + 8 (n2/100)^-1 with n1 + n2 = 1200: n_k ∝ √c, n = (400, 800), shares of 1000: .3, .7
    problem = horizon(1.0, [2.0, 8.0], [100, 100])
    np.testing.assert_allclose(solve(problem), [0.3, 0.7], rtol=1e-11)
    assert problem.objective(np.array([0.3, 0.7])) == pytest.approx(2 / 4 + 8 / 8, rel=1e-14)
    # the floor, the ceiling, the change: each is met to the bit
    assert solve(problem, lower=[0.4, 0.0])[0] == 0.4
    assert solve(problem, upper=[1.0, 0.6])[1] == 0.6
    np.testing.assert_allclose(solve(problem, change=0.05), [0.45, 0.55], atol=1e-14)
    # a domain that follows the others' samples gets none
    both = horizon(1.0, [1.0, 1.0], [100, 100], transfer=[2.0, 0.0])
    # E₀ = (500, 100), E = (n1 + 2400, n2): weights c E₀: 500/(n1+2400)² = 100/n2² → n2 = (n1+2400)/√5, n1 < 100
    np.testing.assert_allclose(solve(both), [0.0, 1.0], atol=1e-14)


def test_two_domains_with_transfer_by_hand():
    # E₀ = (100 + .1 · 200, 100) = (120, 100); E = (n1 + 120, n2), n1 + n2 = 1200.
    # 120/E1² = 100/E2² → E1 = √1.2 E2, E1 + E2 = 1320
    e2 = 1320 / (1 + np.sqrt(1.2))
    share = (e2 - 100) / 1000
    w_K = solve(horizon(1.0, 1.0, [100, 100], transfer=[0.1, 0.0]))
    np.testing.assert_allclose(w_K, [1 - share, share], rtol=1e-10)


def test_the_prior_alone_decides_where_no_law_does():
    prior = np.array([0.5, 0.3, 0.2])
    problem = horizon(0.5, [0.0, 0.0, 0.0], [10, 10, 10], prior=prior, kl=0.1)
    np.testing.assert_allclose(solve(problem), prior, rtol=1e-11)
    w_K = solve(problem, upper=[0.2, 1.0, 1.0], anchor=[0.2, 0.4, 0.4])
    np.testing.assert_allclose(w_K, [0.2, 0.48, 0.32], rtol=1e-11)


def test_a_domain_that_gains_nothing_yields_and_ties_are_shared():
    problem = horizon(0.5, [1.0, 0.0, 0.0], [10, 10, 10])
    assert solve(problem).tolist() == [1.0, 0.0, 0.0]
    w_K = solve(problem, upper=[0.6, 1.0, 1.0], anchor=[0.6, 0.2, 0.2])
    assert w_K[0] == 0.6 and w_K.sum() == pytest.approx(1.0, abs=1e-15) and (w_K >= 0).all()


def test_repeats_make_a_small_domain_give_way():
    fresh = horizon(0.5, 1.0, [100, 100], length=[150, np.inf], left=10_000.0)
    stale = dataclasses.replace(fresh, reuse=2.0, present_K=np.array([100.0, 100.0]))
    np.testing.assert_allclose(solve(fresh), [0.5, 0.5], rtol=1e-10)
    w_K = solve(stale)
    assert w_K[0] < 0.15
    value_K = stale.price(w_K)[0]
    assert value_K[0] == pytest.approx(value_K[1], rel=1e-9)


problems = st.integers(0, 2**32 - 1)


def drawn(seed):
    """A problem of some size with bounds and an anchor inside them."""
    rng = np.random.default_rng(seed)
    num = int(rng.integers(2, 30))
    samples = rng.uniform(10, 1000, num)
    problem = horizon(
        rng.uniform(0.05, 1.2, num), rng.uniform(0, 3, num) * rng.dirichlet(np.ones(num)), samples,
        np.exp(rng.normal(-2, 1.3, num)) * (rng.random(num) < 0.7), samples.sum() * float(rng.uniform(0.1, 20)),
        np.where(rng.random(num) < 0.5, rng.uniform(50, 5000, num), np.inf), rng.dirichlet(np.full(num, 0.8)) + 1e-6,
        float(rng.choice([0.0, 0.01, 0.3])), float(rng.choice([0.0, 3.0, 15.0])),
    )  # fmt: skip
    anchor = rng.dirichlet(np.ones(num))
    lower = anchor * rng.uniform(0, 1, num) * (rng.random(num) < 0.8)
    upper = np.where(rng.random(num) < 0.5, 1.0, np.minimum(anchor * rng.uniform(1, 5, num), 1.0))
    return problem, lower, upper, anchor, float(rng.choice([1.0, 0.3, 0.03]))


@settings(max_examples=150, deadline=None)
@given(problems)
def test_the_conditions_of_the_optimum_hold(seed):
    problem, lower, upper, anchor, change = drawn(seed)
    w_K = best_shares(problem, lower, upper, anchor, change)
    assert abs(w_K.sum() - 1) < 1e-12 and (w_K >= lower).all() and (w_K <= upper).all()
    moved = 0.5 * np.abs(w_K - anchor).sum()
    assert moved <= change + 1e-12
    phi_K, dphi_K = problem.price(np.maximum(w_K, 1e-17))
    slack_K = 1e-9 * (1 + np.abs(phi_K)) + 1e-12 * np.abs(dphi_K)
    if moved < change - 1e-9:  # only the sum binds: no domain that may rise is worth more than one that may fall
        rise_K, fall_K = w_K < upper - 1e-13, w_K > np.maximum(lower, 1e-16) + 1e-13
    else:  # the change binds, too: that holds among the risers and among the fallers, and the risers are worth more
        rise_K, fall_K = (w_K < upper - 1e-13) & (w_K > anchor + 1e-13), w_K > anchor + 1e-13
        down_rise_K = w_K < anchor - 1e-13
        down_fall_K = down_rise_K & (w_K > np.maximum(lower, 1e-16) + 1e-13)
        if down_rise_K.any() and down_fall_K.any():
            assert (phi_K - slack_K)[down_rise_K].max() <= (phi_K + slack_K)[down_fall_K].min()
        if fall_K.any() and down_rise_K.any():
            assert (phi_K - slack_K)[down_rise_K].max() <= (phi_K + slack_K)[fall_K].min()
    if rise_K.any() and fall_K.any():
        assert (phi_K - slack_K)[rise_K].max() <= (phi_K + slack_K)[fall_K].min()


@pytest.mark.parametrize("seed", range(25))
def test_no_better_point_is_found_by_scipy(seed):
    problem, lower, upper, anchor, change = drawn(seed)
    keep = np.argsort(-problem.excess_K)[:5]
    problem, lower, upper = problem.take(keep), lower[keep], np.minimum(upper[keep] * 3, 1.0)
    anchor = anchor[keep] / anchor[keep].sum()
    lower, upper = np.minimum(lower, anchor), np.maximum(upper, anchor)
    num = len(keep)
    w_K = best_shares(problem, lower, upper, anchor, change)
    # up and down movements as variables make the bound on the change smooth
    done = minimize(
        lambda z: problem.objective(np.maximum(anchor + z[:num] - z[num:], 1e-300)), np.zeros(2 * num), method="SLSQP",
        bounds=[*((0, room) for room in upper - anchor), *((0, room) for room in anchor - lower)],
        constraints=[{"type": "eq", "fun": lambda z: (z[:num] - z[num:]).sum()},
                     {"type": "ineq", "fun": lambda z: change - 0.5 * z.sum()}],
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert done.fun >= problem.objective(w_K) - 1e-12
    assert done.fun == pytest.approx(problem.objective(w_K), abs=1e-6)


def test_ten_thousand_domains():
    rng = np.random.default_rng(3)
    num = 10_000
    samples, prior = rng.uniform(10, 1e6, num), rng.dirichlet(np.ones(num))
    problem = horizon(rng.uniform(0.05, 0.9, num), rng.uniform(0.1, 3, num) * prior, samples, rng.uniform(0, 0.5, num),
                      5e9, rng.uniform(1e4, 1e7, num), prior, 0.05, 15.0)  # fmt: skip
    lower = np.minimum(0.25 / num, prior)
    w_K = best_shares(problem, lower, np.full(num, 0.01), prior, 0.005)
    assert abs(w_K.sum() - 1) < 1e-10 and (w_K >= lower).all() and (w_K <= 0.01).all()
    assert 0.5 * np.abs(w_K - prior).sum() == pytest.approx(0.005, abs=1e-10)


@pytest.mark.parametrize("bad", [[0.5, 0.6], [0.3, 0.7]])
def test_an_anchor_outside_the_bounds_is_refused(bad):
    with pytest.raises(ValueError, match="anchor"):
        best_shares(horizon(1.0, 1.0, [1, 1]), np.array([0.4, 0.4]), np.ones(2), np.array(bad))


def test_the_error_of_a_gain_agrees_with_draws_of_the_laws():
    rng = np.random.default_rng(0)
    n, total, left, tau = np.array([4e4, 1e4]), 5e4, 1e5, np.array([0.6, 0.4])
    law = np.array([[2.0, 0.0, 0.3], [1.5, 0.0, 0.2]])
    s, s_error = np.array([0.1, 0.3]), np.array([0.2, 0.1])
    root = rng.normal(size=(2, 3, 3)) * [[[0.02], [0.0], [0.002]]]
    covariance = root @ root.transpose(0, 2, 1)
    before, after = np.array([0.6, 0.4]), np.array([0.4, 0.6])

    def end_loss(w, a, alpha, s_now, s_end):
        """τ β (…)^−α where s changes what is to come: P stays what the law says at the s of the fit."""
        present = np.exp(a - alpha * np.log(n + s * total))
        return tau * present * ((n + left * w + s_end * (total + left)) / (n + s_now * total)) ** -alpha

    gains = []
    for _ in range(4000):
        law_draw = law + np.einsum("kij,kj->ki", root, rng.normal(size=(2, 3)))
        s_draw = s * np.exp(s_error * rng.normal(size=2))
        losses = [end_loss(w, law_draw[:, 0], law_draw[:, 2], s_draw, s_draw).sum() for w in (before, after)]
        gains.append(losses[0] - losses[1])
    present = n + s * total
    problem = Horizon(tau * np.exp(law[:, 0] - law[:, 2] * np.log(present)), law[:, 2], n, s * (total + left), present,
                      np.full(2, np.inf), np.ones(2), left)  # fmt: skip
    doubt = Doubt(covariance, np.log(present), s, s_error, total, np.zeros(2))
    expected = [end_loss(w, law[:, 0], law[:, 2], s, s).sum() for w in (before, after)]
    assert predicted_gain(problem, before, after) == pytest.approx(expected[0] - expected[1], rel=1e-12)
    assert gain_error(problem, doubt, before, after) == pytest.approx(np.std(gains), rel=0.06)
    # the model's own error is that of dL/dlog E times the difference of log E
    model = dataclasses.replace(doubt, covariance_Kx3x3=np.zeros((2, 3, 3)), transfer_error_K=np.zeros(2),
                                model_K=np.array([0.03, 0.0]))  # fmt: skip
    apart = np.log((n[0] + left * 0.6 + 15e3) / (n[0] + left * 0.4 + 15e3))
    assert gain_error(problem, model, before, after) == pytest.approx(0.03 * apart, rel=1e-12)
