"""The common effect of time: its basis by hand, an effect put in is found again, one domain knows nothing of it.

Legend: K domains, T points.
"""

import numpy as np

from ado_megatron.scaling_law.newton import minimise
from ado_megatron.scaling_law.options import LawOptions
from ado_megatron.scaling_law.points import Points
from ado_megatron.scaling_law.time_effect import TimeEffect, hats, refine_time_effect
from tests.kit.responses import TRANSFER_K, LAWS_Kx3, losses, mixture

PRIOR = (np.log(0.1), 1.3)


def points_of(effect_T, columns=slice(None), noise=1e-4):
    """Points of laws that are exact but for `effect_T` on log loss, in steps of 10."""
    n_TxK, loss_TxK = losses(mixture(6000, seed=3), "constant", 3, noise=noise)
    n_TxK, loss_TxK = n_TxK[9::10], loss_TxK[9::10] * np.exp(effect_T)[:, None]
    options = LawOptions().resolved()
    n, loss = n_TxK[:, columns], loss_TxK[:, columns]
    return Points.build(n, loss, None, n_TxK.sum(1), np.zeros(n.shape[1]), options)


def refined(points, rounds=6):
    laws_Kx3 = LAWS_Kx3[: len(points.n_KxT)]
    theta_Kx3 = np.stack([laws_Kx3[:, 0] + laws_Kx3[:, 2] * np.log(512.0), *laws_Kx3[:, 1:].T], -1)
    log_s_K, effect = np.log(TRANSFER_K[: len(theta_Kx3)]), TimeEffect.none(*points.y_KxT.shape)
    for _ in range(rounds):
        problem = points.problem(np.exp(log_s_K), effect.of_domain_KxT)
        theta_Kx3, _ = minimise(problem, theta_Kx3)
        effect, log_s_K = refine_time_effect(points, problem, theta_Kx3, log_s_K, effect, PRIOR)
    return effect, log_s_K


def test_the_basis_is_piecewise_linear_and_sums_to_one():
    basis = hats(9)
    np.testing.assert_allclose(basis[:, 0], [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0])
    assert hats(7).shape == (7, 0) and hats(1000).shape == (1000, 16)
    np.testing.assert_allclose(hats(1000).sum(1), 1.0)


def test_an_effect_that_no_law_can_follow_is_found_and_leaves_the_transfers_alone():
    bump_T = -0.05 * np.maximum(np.linspace(-4, 1, 600), 0.0)  # the last fifth falls, as a decay does
    effect, log_s_K = refined(points_of(bump_T))
    for found_T in effect.of_domain_KxT:
        found_T = found_T - np.polyval(np.polyfit(np.arange(480), found_T[:480], 1), np.arange(600))
        assert np.abs(found_T[480:] - bump_T[480:]).max() < 0.01
    np.testing.assert_allclose(log_s_K, np.log(TRANSFER_K), atol=0.1)
    assert (effect.kept_K > 0).all() and (effect.kept_K <= 1.0).all()


def test_losses_without_an_effect_leave_none_and_more_of_the_information():
    flat, _ = refined(points_of(np.zeros(600), noise=0.004))
    assert np.abs(flat.of_domain_KxT).max() < 1e-3
    bump_T = -0.05 * np.maximum(np.linspace(-4, 1, 600), 0.0)
    falling, _ = refined(points_of(bump_T, noise=0.004))
    assert (flat.kept_K > 2 * falling.kept_K).all()


def test_under_a_decay_one_domain_keeps_next_to_nothing_and_five_keep_more():
    decay_T = -0.05 * np.linspace(0.0, 1.0, 600)
    one, _ = refined(points_of(decay_T, slice(0, 1), noise=0.004), rounds=4)
    five, _ = refined(points_of(decay_T, noise=0.004), rounds=4)
    assert one.kept_K[0] < 0.05 and five.kept_K[0] > 2 * one.kept_K[0]


def test_too_few_points_leave_everything_as_it_is():
    points = points_of(np.zeros(600))
    few = Points.build(points.n_KxT[:, :7].T, np.exp(points.y_KxT[:, :7].T), None, points.total_T[:7], np.zeros(5),
                       points.options)
    effect = TimeEffect.none(5, 7)
    problem = few.problem(TRANSFER_K)
    assert refine_time_effect(few, problem, LAWS_Kx3, np.log(TRANSFER_K), effect, PRIOR)[0] is effect
