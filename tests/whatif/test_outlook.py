"""Intervals that hold: on simulated runs, whose true losses are known, at least 90 % of those that claim 95 %.

Legend: K domains.
"""

import dataclasses

import numpy as np
import pytest

from ado_megatron.config import AdoConfig
from ado_megatron.scaling_law import Laws
from ado_megatron.simulate.simulation import SimulatedRun
from ado_megatron.whatif.command import answer
from ado_megatron.whatif.course import Course
from ado_megatron.whatif.outlook import Z95, outlook
from ado_megatron.whatif.table import doubts, new_shares, text
from tests.kit.situations import random_response, situation_of

CONFIG = AdoConfig(policy="ado", refit_interval=100, start_step=100, ignore_steps=20, stride=5)


def proposals(rng, names):
    """A pin, all shares anew, the prior."""
    shares_K = rng.dirichlet(np.full(len(names), 2.0))
    free = dict(zip(names[:-1], shares_K[:-1].tolist(), strict=True))
    return [{"pins": {names[0]: float(rng.uniform(0.05, 0.6))}}, {"pins": free}, {"policy": "static"}]


def held(config, seed, most, middle, steps):
    """Which intervals hold: of losses as the run goes on and as proposed, and of differences; of the target, too."""
    rng = np.random.default_rng(seed)
    num = int(rng.integers(3, most))
    response, prior_K = random_response(rng, num), rng.dirichlet(np.ones(num)) + 0.01
    run = SimulatedRun(response, prior_K, config=config, steps=steps, block_size=256, noise=0.02, seed=seed)
    for _ in run.advance(middle):
        pass
    situation = situation_of(run, steps)
    answers = [answer(situation, one) for one in proposals(rng, situation.domains.names_K)]
    for _ in run.advance(steps):
        pass
    goes_on_K = response(run.drawn_K.astype(float))  # with the laws that it really came to have
    losses, differences, targets = [], [], []
    for one in answers:
        found, proposed_K = one.outlook, response(one.other.drawn_K.astype(float))
        losses += list(np.abs(found.now_K - goes_on_K) <= Z95 * found.now_error_K)
        losses += list(np.abs(found.other_K - proposed_K) <= Z95 * found.other_error_K)
        gap_K = proposed_K - goes_on_K
        differences += list(np.abs(found.difference_K - gap_K) <= Z95 * found.difference_error_K)
        targets.append(abs(found.target_difference - run.target_K @ gap_K) <= Z95 * found.target_error)
    return losses, differences, targets


def coverage(config, seeds, most, middle, steps):
    parts = [held(config, seed, most, middle, steps) for seed in range(seeds)]
    return [float(np.mean([hit for part in parts for hit in part[n]])) for n in range(3)]


def test_intervals_hold():
    assert min(coverage(CONFIG, 6, 6, 250, 500)) >= 0.9


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("options", [{}, {"transfer": "estimate"}, {"transfer": "estimate", "policy": "plan"}],
                         ids=["own", "estimate", "plan"])  # fmt: skip
def test_intervals_of_longer_runs_hold(options):
    assert min(coverage(dataclasses.replace(CONFIG, **options), 12, 9, 600, 1500)) >= 0.9


# ---------------------------------------------------------------- by hand


def situation(transfer=0.0, covariance=0.0):
    """Two domains of equal laws, 1,000 samples of each seen, half and half."""
    run = SimulatedRun(lambda n_K: 1.0 + n_K**-0.5, [0.5, 0.5], config=CONFIG, steps=100, block_size=20, noise=0.0)
    for _ in run.advance(100):
        pass
    laws = Laws.given([[2.0, 0.0, 0.5]] * 2, transfer)
    laws = dataclasses.replace(laws, covariance_Kx3x3=np.tile(np.diag([0.0, covariance, 0.0]), (2, 1, 1)))
    one = situation_of(run, 200)
    rows = one.rows | {"n_TxK": np.full((1, 2), 1000.0), "total_T": np.array([2000.0]), "step_T": np.array([0]),
                       "tokens_TxK": np.ones((1, 2))}  # fmt: skip
    arrays = {f"in_force.{name}": value for name, value in laws.to_arrays().items()}
    config = dataclasses.replace(one.config, plan_repeat=0.0)
    return dataclasses.replace(one, rows=rows, point=dict(one.point) | arrays, config=config)


def course(*drawn):
    drawn_K = np.array(drawn, float)
    nothing_K, share_K = np.full(2, -1), (drawn_K - 1000) / (drawn_K - 1000).sum()
    return Course(100, 200, drawn_K, drawn_K, nothing_K, share_K, nothing_K, nothing_K)


def test_losses_by_hand():
    found = outlook(situation(), course(2000, 2000), course(1000, 3000))
    np.testing.assert_allclose(found.now_K, 1 + np.exp(2) * 2000**-0.5)
    np.testing.assert_allclose(found.other_K, 1 + np.exp(2) * np.array([1000.0, 3000.0]) ** -0.5)
    np.testing.assert_allclose(found.difference_K, found.other_K - found.now_K)
    assert found.target_difference == pytest.approx(found.difference_K.mean()) and found.unknown == 0
    shared = outlook(situation(np.inf), course(2000, 2000), course(1000, 3000))
    np.testing.assert_allclose(shared.difference_K, 0, atol=1e-12)  # only N counts, and it is the same


def test_what_both_courses_do_not_know_cancels():
    """The floor ε of a law counts in both losses alike: a wide error of it leaves the difference as sure as it was."""
    sure, unsure = (outlook(situation(0.1, c), course(2000, 2000), course(1000, 3000)) for c in (0.0, 1.0))
    assert (unsure.now_error_K > 0.9).all() and (sure.now_error_K < 0.2).all()
    np.testing.assert_allclose(unsure.difference_error_K, sure.difference_error_K, rtol=1e-9)
    same = outlook(situation(0.1, 1.0), course(2000, 2000), course(2000, 2000))
    assert (same.difference_K == 0).all() and (same.difference_error_K == 0).all()


def test_a_domain_without_a_law_is_left_out_and_named():
    one = situation()
    ok_K = {"in_force.ok_K": np.array([True, False])}
    one = dataclasses.replace(one, point=dict(one.point) | ok_K)
    found = outlook(one, course(2000, 2000), course(1000, 3000))
    assert np.isnan(found.other_K[1]) and found.unknown == 0.5
    assert found.target_difference == pytest.approx(0.5 * found.difference_K[0])


def test_nothing_is_said_of_the_target_where_no_law_is_identified():
    one = situation()
    one = dataclasses.replace(one, point=dict(one.point) | {"in_force.ok_K": np.zeros(2, bool)})
    words = text(answer(one, {"hold": True}))
    assert "target loss" not in words and "no law is identified for d0, d1: 100.0% of the target is left out" in words


def test_shares_that_were_never_seen_are_named():
    run = SimulatedRun(random_response(np.random.default_rng(0), 3), [0.5, 0.3, 0.2], config=CONFIG, steps=400,
                       block_size=256)  # fmt: skip
    for _ in run.advance(200):
        pass
    found = answer(situation_of(run, 400), {"pins": {"d1": 0.6}})
    assert 1 in [k for k, _, _ in new_shares(found)]
    assert any("shares that this run has never seen" in line and "d1 60.0%" in line for line in doubts(found))
    assert not new_shares(answer(situation_of(run, 400), {"hold": True}))


def test_a_far_end_is_said():
    run = SimulatedRun(random_response(np.random.default_rng(0), 3), [0.5, 0.3, 0.2], config=CONFIG, steps=2000,
                       block_size=256)  # fmt: skip
    for _ in run.advance(200):
        pass
    found = answer(situation_of(run, 2000), {"hold": True})
    assert any("times the samples that the laws were fitted on" in line for line in doubts(found))
