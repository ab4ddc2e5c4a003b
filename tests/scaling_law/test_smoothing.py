"""From histories to points and laws: the released smoothing, every switch of the fit, and fuzzed histories end to end.

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
from tests.kit.laws import appended


def test_released_points_are_smoothed_over_everything_then_thinned():
    rng = np.random.default_rng(0)
    loss = 3.0 + rng.standard_normal((300, 2)) * 0.1
    config = AdoConfig(profile="released", ignore_steps=50).resolved()
    _, total, y, weight = fit_points(appended(config, np.full((300, 2), 4), loss).snapshot(300), config)
    np.testing.assert_allclose(y, savgol_filter(loss, 101, 3, axis=0)[50::10], rtol=1e-12)
    np.testing.assert_array_equal(total, 8.0 * np.arange(51, 301, 10))
    assert weight is None


@pytest.mark.parametrize("change", [{"own_n": False}, {"transfer": "0.3"}, {"smoothing": "none"}, {"absent": "repeat"},
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
    laws = [fit_history(appended(c, counts, loss).snapshot(400), c) for c in (base, config)]
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
    options = {"profile": profile, "policy": "ado", "start_step": 0, "ignore_steps": int(rng.choice([0, 10]))}
    return prior, counts, loss, AdoConfig(**options)


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
    laws = fit_history(history.snapshot(len(counts_TxK)), config).merged(None)
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


def test_fuzzed_histories_give_transfers():
    for seed in range(16):
        _, counts_TxK, loss_TxK, config = fuzzed(np.random.default_rng(seed))
        if counts_TxK.shape[1] > 100:
            continue
        config = dataclasses.replace(config, transfer="estimate").resolved()
        loss_TxK = np.where(counts_TxK > 0, loss_TxK, np.nan)
        with np.errstate(all="ignore"):
            history = appended(config, counts_TxK, loss_TxK)
        laws = fit_history(history.snapshot(len(counts_TxK)), config)
        assert ((laws.transfer_K >= 0.005) & (laws.transfer_K <= 8.0)).all()
        assert ((laws.transfer_low_K <= laws.transfer_K) & (laws.transfer_K <= laws.transfer_high_K)).all()
        assert np.isfinite(laws.params()[laws.ok_K]).all()
