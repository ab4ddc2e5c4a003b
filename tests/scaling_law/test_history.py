"""LossHistory and the points of a fit: by hand, merged bins, resumption, and fuzzed histories end to end.

Legend: K domains, T steps.
"""

import dataclasses

import numpy as np
import pytest
from scipy.signal import savgol_filter

from ado_megatron import profiles
from ado_megatron.config import AdoConfig
from ado_megatron.policy import make_policy
from ado_megatron.policy.ado import share_bounds
from ado_megatron.scaling_law.history import LossHistory
from ado_megatron.scaling_law.smoothing import fit_history, fit_points

RELEASED = AdoConfig(profile="released", ignore_steps=0, stride=1).resolved()


def appended(config, counts_TxK, loss_TxK, history=None, first=0):
    counts_TxK = np.asarray(counts_TxK)
    history = history or LossHistory(counts_TxK.shape[1], config)
    n_TxK = np.cumsum(counts_TxK, 0)
    for t in range(first, len(counts_TxK)):
        tokens_K = np.where(np.isnan(loss_TxK[t]), 0, counts_TxK[t]) * 10.0
        loss_K = np.where(np.isnan(loss_TxK[t]), 0.0, loss_TxK[t])
        history.append(t, n_TxK[t], counts_TxK[t], loss_K * tokens_K, tokens_K)
    return history


def test_an_absent_domain_repeats_its_last_loss_and_first_the_mean_of_all():
    counts = [[3, 1, 0], [2, 0, 2], [0, 4, 0]]
    loss = np.array([[2.0, 4.0, np.nan], [1.5, np.nan, 3.0], [np.nan, 3.5, np.nan]])
    rows = appended(RELEASED, counts, loss).cut(3)
    np.testing.assert_allclose(rows["loss_TxK"], [[2, 4, 2.5], [1.5, 4, 3], [1.5, 3.5, 3]])
    np.testing.assert_allclose(rows["total_T"], [4, 8, 12])
    np.testing.assert_allclose(rows["n_TxK"][-1], [5, 5, 2])


def test_released_points_are_smoothed_over_everything_then_thinned():
    rng = np.random.default_rng(0)
    loss = 3.0 + rng.standard_normal((300, 2)) * 0.1
    config = AdoConfig(profile="released", ignore_steps=50).resolved()
    _, total, y, weight = fit_points(appended(config, np.full((300, 2), 4), loss).cut(300), config)
    np.testing.assert_allclose(y, savgol_filter(loss, 101, 3, axis=0)[50::10], rtol=1e-12)
    np.testing.assert_array_equal(total, 8.0 * np.arange(51, 301, 10))
    assert weight is None


def test_bins_weigh_tokens():
    config = AdoConfig(stride=2, ignore_steps=2).resolved()
    counts = np.array([[9, 9]] * 2 + [[1, 2], [3, 0], [0, 5], [0, 5]])
    loss = np.array([[9.0, 9.0]] * 2 + [[2.0, 1.0], [4.0, np.nan], [np.nan, 3.0], [np.nan, 5.0]])
    rows = appended(config, counts, loss).cut(6)
    np.testing.assert_array_equal(rows["step_T"], [2, 4])
    np.testing.assert_allclose(rows["loss_TxK"], [[3.5, 1.0], [np.nan, 4.0]])
    np.testing.assert_allclose(rows["tokens_TxK"], [[40, 20], [0, 100]])
    np.testing.assert_allclose(rows["n_TxK"][0], [(19 * 1 + 22 * 3) / 4, 20])
    np.testing.assert_allclose(rows["total_T"], [(39 + 42) / 2, (47 + 52) / 2])


def test_full_bins_merge_and_memory_stays_bounded():
    config = AdoConfig(stride=1, max_bins=8, ignore_steps=0).resolved()
    rng = np.random.default_rng(1)
    counts, loss = rng.integers(0, 5, (1000, 3)), rng.uniform(1, 4, (1000, 3))
    history = appended(config, counts, loss)
    assert history.width == 128 and len(history.cut(1000)["step_T"]) <= 8
    assert all(array.shape[0] <= 256 for array in history.to_arrays().values() if array.ndim)
    rows = history.cut(1000)
    for b, start in enumerate(rows["step_T"]):
        part = slice(start, start + 128)
        mean = (loss[part] * counts[part]).sum(0) / counts[part].sum(0)
        np.testing.assert_allclose(rows["loss_TxK"][b], mean, rtol=1e-12)


@pytest.mark.parametrize("profile", profiles.NAMES)
@pytest.mark.parametrize("at", [0, 1, 37, 119])
def test_a_resumed_history_is_the_same(profile, at):
    config = AdoConfig(profile=profile, max_bins=8, stride=3, ignore_steps=5).resolved()
    rng = np.random.default_rng(2)
    counts, loss = rng.integers(0, 5, (120, 3)), rng.uniform(1, 4, (120, 3))
    whole = appended(config, counts, loss).to_arrays()
    half = LossHistory.from_arrays(appended(config, counts[:at], loss[:at], LossHistory(3, config)).to_arrays())
    parts = appended(config, counts, loss, half, first=at).to_arrays()
    assert set(whole) == set(parts)
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)


def test_a_cut_ends_before_its_step_and_is_a_copy():
    history = appended(RELEASED, np.ones((5, 1), int), np.full((5, 1), 2.0))
    rows = history.cut(3)
    np.testing.assert_array_equal(rows["step_T"], [0, 1, 2])
    rows["loss_TxK"][:] = 0
    assert (history.cut(3)["loss_TxK"] == 2.0).all()


def test_steps_must_ascend_and_shapes_fit():
    history = LossHistory(2)
    history.append(4, [1, 1], [1, 1], [2.0, 2.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="not after step 4"):
        history.append(4, [1, 1], [1, 1], [2.0, 2.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="shape"):
        history.append(5, [1], [1], [2.0], [1.0])


@pytest.mark.parametrize("change", [{"own_n": False}, {"smoothing": "none"}, {"absent": "repeat"},
                                    {"huber_delta": 1e-4}, {"epsilon_bounds": "absolute", "log_epsilon_min": 1.0},
                                    {"alpha_max": 0.1},
                                    {"ignore_steps": 100}, {"smoothing": "savgol"}, {"log_beta_max": 0.5}])
def test_every_switch_of_the_fit_changes_the_laws(change):
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 9, (400, 2))
    n = np.maximum(np.cumsum(counts, 0), 1)
    loss = (1.5 + 6.0 * n**-0.3) * np.exp(0.02 * rng.standard_normal(n.shape))
    base = AdoConfig(gate_speed_error=100.0).resolved()
    config = dataclasses.replace(base, **change)
    laws = [fit_history(appended(c, counts, loss).cut(400), c) for c in (base, config)]
    assert np.abs(laws[0].params() - laws[1].params()).max() > 1e-3


def fuzzed(rng):
    """A seeded history of one of many kinds of trouble, and a config."""
    num = int(rng.choice([1, 2, 3, 8, 30] + [2000] * (rng.random() < 0.02)))
    steps = int(rng.choice([1, 2, 5, 30, 120, 300])) if num < 100 else 30
    prior = rng.dirichlet(np.full(num, rng.choice([0.1, 1.0])))
    counts = rng.multinomial(int(rng.choice([4, 64])), prior, steps)
    n = np.maximum(np.cumsum(counts, 0), 1)
    loss = rng.uniform(0.1, 4, num) + rng.uniform(0, 8, num) * n ** -rng.uniform(0.01, 1, num)
    loss = loss * np.exp(rng.choice([0, 1e-3, 0.05, 0.5]) * rng.standard_normal(loss.shape))
    hit = rng.random(loss.shape) < rng.choice([0.01, 0.3, 1.0])
    kind = rng.integers(0, 12)
    bad = {0: np.nan, 1: np.inf, 2: 0.0, 3: -1.0, 4: 1e6, 5: 1e-12, 6: 1e300}
    if kind in bad:
        loss[hit] = bad[kind]
    elif kind == 7:
        loss = loss[::-1].copy()
    elif kind == 8:
        loss[:] = rng.uniform(0.5, 3)
    elif kind == 9:
        counts[:, rng.random(num) < 0.5] = 0
    elif kind == 10:
        loss = np.exp(np.cumsum(0.1 * rng.standard_normal(loss.shape), 0))
    profile = str(rng.choice(profiles.NAMES))
    return prior, counts, loss, AdoConfig(profile=profile, start_step=0, ignore_steps=int(rng.choice([0, 10])))


def check_fuzzed(seed):
    prior_K, counts_TxK, loss_TxK, config = fuzzed(np.random.default_rng(seed))
    history, policy = LossHistory(prior_K.size, config), make_policy(config, prior_K)
    config = config.resolved()
    state, n_K = policy.initial_state(), np.zeros(prior_K.size, np.int64)
    for t, (counts_K, loss_K) in enumerate(zip(counts_TxK, loss_TxK, strict=True)):
        n_K = n_K + counts_K
        tokens_K = 16.0 * counts_K
        with np.errstate(all="ignore"):
            history.append(t, n_K, counts_K, loss_K * tokens_K, tokens_K)
        if t + 1 < len(counts_TxK):
            state = policy.step(state, None, counts_K)
    laws = fit_history(history.cut(len(counts_TxK)), config).merged(None)
    lower_K, _ = share_bounds(config, prior_K)
    for _ in range(3):
        state = policy.step(state, laws, counts_TxK[-1])
        assert np.isfinite(state.weights_K).all()
        assert abs(state.weights_K.sum() - 1.0) < 1e-9
        if config.clip != "rescale" and laws.ok_K.any():
            assert (state.weights_K >= lower_K - 1e-12).all()
    assert all(reason for reason, ok in zip(laws.reason_K, laws.ok_K, strict=True) if not ok)


def test_fuzzed_histories_give_weights():
    for seed in range(500):
        check_fuzzed(seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_fuzzed_histories_give_weights():
    for seed in range(10_000):
        check_fuzzed(seed)
