"""The fit: known laws are recovered, never above 512 L-BFGS starts, transfers, and the gate.

Legend: K domains, T points.
"""

import pathlib
import sys

import numpy as np
import pytest

from ado_megatron.config import AdoConfig
from ado_megatron.scaling_law.fit import fit_laws
from tests.kit.laws import N_T, clean

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import fit as bench  # noqa: E402


@pytest.mark.parametrize("profile", ["released", "paper", "ado"])
def test_a_clean_law_is_recovered(profile):
    laws = fit_laws(N_T, clean(2.5, 0.9, 0.35), AdoConfig(profile=profile))
    np.testing.assert_allclose(laws.params(), [[2.5, 0.9, 0.35]], rtol=1e-4)
    assert laws.ok_K.all() and laws.points_K[0] == N_T.size and laws.rms_K[0] < 1e-6


def test_low_loss_is_misfit_by_the_absolute_bound_and_met_by_the_relative_one():
    loss = clean(2.5, np.log(1.2), 0.3)
    released, ado = (np.exp(fit_laws(N_T, loss, AdoConfig(profile=p)).log_epsilon_K[0]) for p in ("released", "ado"))
    assert released == pytest.approx(np.exp(0.5), rel=1e-6)
    assert ado == pytest.approx(1.2, rel=1e-3)


def test_the_objective_is_the_released_one():
    n_T, loss_TxK = bench.histories(150, 4, seed=3)
    laws = fit_laws(n_T, loss_TxK, AdoConfig(profile="released"))
    for k in range(4):
        value, _ = bench.objective(laws.params()[k], np.log(n_T), np.log(loss_TxK[:, k]))
        assert laws.objective_K[k] == pytest.approx(value, rel=1e-12, abs=1e-16)


@pytest.mark.parametrize("points, seed", [(60, 1), (12, 2)])
def test_never_above_512_lbfgs_starts(points, seed):
    n_T, loss_TxK = bench.histories(points, 2, seed=seed)
    laws = fit_laws(n_T, loss_TxK)
    for k in range(2):
        best = bench.baseline(n_T, loss_TxK[:, k])[1]
        assert laws.objective_K[k] <= best + 1e-6 * abs(best)


def test_one_bad_domain_costs_the_others_nothing_under_ado():
    loss = np.concatenate([clean(2.5, 0.9, 0.35), np.full((N_T.size, 1), np.nan)], 1)
    alone, both = fit_laws(N_T, loss[:, :1], AdoConfig()), fit_laws(N_T, loss, AdoConfig())
    assert both.ok_K.tolist() == [True, False] and both.reason_K == ["", "no points"]
    np.testing.assert_array_equal(both.params()[0], alone.params()[0])
    assert np.isnan(both.params()[1]).all()


def test_one_bad_domain_drops_the_refit_under_released():
    loss = np.concatenate([clean(2.5, 0.9, 0.35), np.full((N_T.size, 1), np.nan)], 1)
    laws = fit_laws(N_T, loss, AdoConfig(profile="released"))
    assert laws.ok_K.tolist() == [False, False] and "another domain" in laws.reason_K[0]


def test_the_gate_refuses_few_points_and_unidentified_speeds():
    few = fit_laws(N_T[:6], clean(2.5, 0.9, 0.35, N_T[:6]), AdoConfig())
    assert not few.ok_K[0] and "fewer than" in few.reason_K[0]
    noise = np.exp(0.3 * np.random.default_rng(0).standard_normal((40, 1)))
    vague = fit_laws(N_T[:40], 2.0 * noise, AdoConfig())
    assert not vague.ok_K[0] and "not identified" in vague.reason_K[0]


def test_weights_count_like_repeated_points():
    rng = np.random.default_rng(4)
    loss = clean(2.5, 0.9, 0.35) * np.exp(0.02 * rng.standard_normal((N_T.size, 1)))
    times = rng.integers(1, 4, N_T.size)
    weighted = fit_laws(N_T, loss, AdoConfig(), weight_TxK=times[:, None])
    repeated = fit_laws(np.repeat(N_T, times), np.repeat(loss, times, 0), AdoConfig())
    np.testing.assert_allclose(weighted.params(), repeated.params(), rtol=1e-5)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="two dimensions"):
        fit_laws(N_T, np.ones(N_T.size))


def moved(transfer_K, seed=0):
    """Own samples, their totals and losses of two domains whose shares move, with the law (5, .8, .4) in each."""
    rng = np.random.default_rng(seed)
    share_T = np.repeat(rng.uniform(0.2, 0.8, 10), 40)
    n_TxK = 256.0 * np.cumsum(np.stack([share_T, 1 - share_T], -1), 0)
    total_T = n_TxK.sum(1)
    return n_TxK, total_T, np.exp(0.8) + np.exp(5.0) * (n_TxK + transfer_K * total_T[:, None]) ** -0.4


def test_a_law_with_given_transfers_is_recovered():
    n_TxK, total_T, loss = moved(np.array([0.3, 0.05]))
    laws = fit_laws(n_TxK, loss, AdoConfig(), total_T=total_T, transfer_K=[0.3, 0.05])
    np.testing.assert_allclose(laws.params(), [[5.0, 0.8, 0.4]] * 2, rtol=1e-4)
    assert laws.transfer_K.tolist() == laws.transfer_low_K.tolist() == laws.transfer_high_K.tolist() == [0.3, 0.05]
    np.testing.assert_allclose(laws.loss(laws.effective_n(n_TxK, total_T)), loss, rtol=1e-5)


def test_the_two_ends_are_the_laws_in_own_and_in_all_samples():
    n_TxK, total_T, loss = moved(0.2)
    own, shared = (fit_laws(n_TxK, loss, AdoConfig(own_n=own), total_T=total_T) for own in (True, False))
    np.testing.assert_array_equal(own.params(), fit_laws(n_TxK, loss, AdoConfig()).params())
    np.testing.assert_array_equal(shared.params(), fit_laws(total_T, loss, AdoConfig()).params())
    words = [fit_laws(n_TxK, loss, AdoConfig(transfer=word), total_T=total_T) for word in ("own", "shared", "0", "inf")]
    for laws, same in zip(words, [own, shared, own, shared], strict=True):
        np.testing.assert_array_equal(laws.params(), same.params())
        np.testing.assert_array_equal(laws.transfer_K, same.transfer_K)


@pytest.mark.parametrize("options, given, words", [
    ({"transfer": "estimate"}, {}, "needs total_T"), ({"transfer": "file.json"}, {}, "must be given as transfer_K"),
    ({}, {"transfer_K": -1.0}, "0 to inf"), ({}, {"transfer_K": np.nan}, "0 to inf"),
])
def test_a_transfer_that_cannot_be_known_is_refused(options, given, words):
    with pytest.raises(ValueError, match=words):
        fit_laws(N_T, clean(2.5, 0.9, 0.35), AdoConfig(**options), **given)
