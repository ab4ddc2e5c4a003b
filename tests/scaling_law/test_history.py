"""LossHistory by hand: merged bins, resumption.

Legend: K domains, T steps.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ado_megatron import profiles
from ado_megatron.config import AdoConfig
from ado_megatron.scaling_law.history import LossHistory
from tests.kit.laws import appended

RELEASED = AdoConfig(profile="released", ignore_steps=0, stride=1).resolved()


def test_an_absent_domain_repeats_its_last_loss_and_first_the_mean_of_all():
    counts = [[3, 1, 0], [2, 0, 2], [0, 4, 0]]
    loss = np.array([[2.0, 4.0, np.nan], [1.5, np.nan, 3.0], [np.nan, 3.5, np.nan]])
    rows = appended(RELEASED, counts, loss).snapshot(3)
    np.testing.assert_allclose(rows["loss_TxK"], [[2, 4, 2.5], [1.5, 4, 3], [1.5, 3.5, 3]])
    np.testing.assert_allclose(rows["total_T"], [4, 8, 12])
    np.testing.assert_allclose(rows["n_TxK"][-1], [5, 5, 2])


def test_bins_weigh_tokens():
    config = AdoConfig(stride=2, ignore_steps=2).resolved()
    counts = np.array([[9, 9]] * 2 + [[1, 2], [3, 0], [0, 5], [0, 5]])
    loss = np.array([[9.0, 9.0]] * 2 + [[2.0, 1.0], [4.0, np.nan], [np.nan, 3.0], [np.nan, 5.0]])
    rows = appended(config, counts, loss).snapshot(6)
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
    assert history.width == 128 and len(history.snapshot(1000)["step_T"]) <= 8
    assert all(array.shape[0] <= 256 for array in history.to_arrays().values() if array.ndim)
    rows = history.snapshot(1000)
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


@pytest.mark.parametrize("smoothing", ["bins", "savgol"])
def test_a_cut_ends_before_its_step_and_stays_as_it_is(smoothing):
    config = AdoConfig(smoothing=smoothing, ignore_steps=0, stride=1, max_bins=16)
    history = appended(config, np.ones((5, 1), int), np.full((5, 1), 2.0))
    rows = history.snapshot(3)
    np.testing.assert_array_equal(rows["step_T"], [0, 1, 2])
    before = {name: array.copy() for name, array in rows.items()}
    for step in range(5, 60):  # the arrays grow, and bins double
        history.append(step, [step], [1], [9.0], [1.0])
    for name, array in rows.items():
        np.testing.assert_array_equal(array, before[name])
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_steps_must_ascend_and_shapes_fit():
    history = LossHistory(2)
    history.append(4, [1, 1], [1, 1], [2.0, 2.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="not after step 4"):
        history.append(4, [1, 1], [1, 1], [2.0, 2.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="shape"):
        history.append(5, [1], [1], [2.0], [1.0])


@pytest.mark.parametrize("smoothing", ["bins", "savgol"])
def test_many_steps_at_once_are_what_they_are_one_by_one(smoothing):
    """Split anywhere, with absent domains, infinities and the doubling of bins: bit for bit."""
    rng = np.random.default_rng(3)
    config = AdoConfig(smoothing=smoothing, ignore_steps=3, stride=2, max_bins=16)
    step_T = np.cumsum(rng.integers(1, 3, 90))
    n_TxK = np.cumsum(rng.integers(0, 9, (90, 4)), 0)
    tokens_TxK = rng.integers(0, 3, (90, 4)).astype(float)
    loss_TxK = rng.normal(3.0, 1.0, (90, 4)) * tokens_TxK
    loss_TxK[7, 1], loss_TxK[30, 2], tokens_TxK[40, 0] = np.inf, np.nan, np.inf
    one, many = LossHistory(4, config), LossHistory(4, config)
    for t in range(90):
        one.append(step_T[t], n_TxK[t], n_TxK[t], loss_TxK[t], tokens_TxK[t])
    for first, last in ((0, 1), (1, 40), (40, 40), (40, 90)):
        many.extend(step_T[first:last], n_TxK[first:last], loss_TxK[first:last], tokens_TxK[first:last])
    for name, value in one.to_arrays().items():
        np.testing.assert_array_equal(many.to_arrays()[name], value, err_msg=name)
    with pytest.raises(ValueError, match=f"step {step_T[-1]} is not after step {step_T[-1]}"):
        many.extend(step_T[-1:], n_TxK[-1:], loss_TxK[-1:], tokens_TxK[-1:])


@given(st.integers(0, 2**32 - 1), st.integers(64, 70), st.integers(0, 5), st.integers(1, 400))
def test_many_steps_at_once_are_the_same_to_the_last_bit(seed, max_bins, ignore_steps, steps):
    rng = np.random.default_rng(seed)
    options = AdoConfig(smoothing="bins", stride=1, max_bins=max_bins, ignore_steps=ignore_steps).resolved()
    step_T = np.flatnonzero(rng.uniform(size=steps) < 0.8)
    n_TxK, loss_TxK = rng.uniform(0, 9, (2, len(step_T), 3))
    tokens_TxK = rng.integers(0, 3, (len(step_T), 3)).astype(float)
    single, many = LossHistory(3, options), LossHistory(3, options)
    for t, step in enumerate(step_T.tolist()):
        single.append(step, n_TxK[t], n_TxK[t], loss_TxK[t], tokens_TxK[t])
    for part in np.array_split(np.arange(len(step_T)), int(rng.integers(1, 5))):
        many.extend(step_T[part], n_TxK[part], loss_TxK[part], tokens_TxK[part])
    for name, value in single.to_arrays().items():
        np.testing.assert_array_equal(many.to_arrays()[name], value, err_msg=name)
