"""The law, its speed and what counts as n, by hand; arrays of today and of before there was a transfer.

Legend: K domains.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ado_megatron.config import AdoConfig
from ado_megatron.scaling_law.fit import fit_laws
from ado_megatron.scaling_law.laws import Laws
from tests.kit.laws import N_T, clean

LAW = [[np.log(8.0), np.log(2.0), 0.5]]


def test_law_and_speed_by_hand():
    laws = Laws.given([[np.log(8.0), np.log(2.0), 0.5]])
    np.testing.assert_allclose(laws.loss(4.0), [2.0 + 8.0 / 2.0])
    np.testing.assert_allclose(laws.speed(4.0), [0.5 / 4.0 * 4.0])
    np.testing.assert_allclose(laws.speed(4.0), -(laws.loss(4.0 + 1e-6) - laws.loss(4.0 - 1e-6)) / 2e-6, rtol=1e-6)


def test_arrays_round_trip_and_merge():
    laws = fit_laws(N_T, np.concatenate([clean(2.5, 0.9, 0.35), np.full((N_T.size, 1), np.nan)], 1), AdoConfig())
    back = Laws.from_arrays(laws.to_arrays())
    assert back.reason_K == laws.reason_K
    np.testing.assert_array_equal(back.params(), laws.params())
    old = Laws.given([[1.0, 0.1, 0.2], [1.5, 0.2, 0.3]])
    merged = laws.merged(old)
    assert merged.ok_K.all() and merged.reason_K == laws.reason_K
    np.testing.assert_array_equal(merged.params(), [laws.params()[0], [1.5, 0.2, 0.3]])
    assert laws.merged(None).ok_K.tolist() == [True, False]


def test_effective_samples_by_hand():
    laws = Laws.given(LAW * 3, [0.0, 0.5, np.inf])
    np.testing.assert_array_equal(laws.effective_n([10, 20, 30]), [10, 20 + 0.5 * 60, 60])
    np.testing.assert_array_equal(laws.effective_n([10, 20, 30], 100), [10, 70, 100])
    rows = laws.effective_n([[10, 20, 30], [1, 2, 3]], [100, 10])
    np.testing.assert_array_equal(rows, [[10, 70, 100], [1, 7, 10]])


@given(st.lists(st.integers(0, 2**60), min_size=2, max_size=2))
def test_the_two_ends_are_exact(samples):
    own, shared = Laws.given(LAW * 2), Laws.given(LAW * 2, np.inf)
    samples_K = np.array(samples)
    np.testing.assert_array_equal(own.effective_n(samples_K), samples_K.astype(float))
    np.testing.assert_array_equal(shared.effective_n(samples_K, samples_K.sum()), np.full(2, float(samples_K.sum())))


def test_the_speed_is_the_derivative_by_own_samples_while_the_total_is_held():
    laws = Laws.given(LAW, 0.3)
    up, down = (laws.loss(laws.effective_n([50.0 + d], 400.0)) for d in (1e-4, -1e-4))
    np.testing.assert_allclose(laws.speed(laws.effective_n([50.0], 400.0)), -(up - down) / 2e-4, rtol=1e-6)


@pytest.mark.parametrize("transfer", [0.0, np.inf])
def test_arrays_of_before_there_was_a_transfer(transfer):
    laws = fit_laws(N_T, clean(2.5, 0.9, 0.35), AdoConfig())
    new = {"transfer_K", "transfer_low_K", "transfer_high_K", "covariance_Kx3x3"}
    old = Laws.from_arrays({name: value for name, value in laws.to_arrays().items() if name not in new}, transfer)
    for name in ("transfer_K", "transfer_low_K", "transfer_high_K"):
        np.testing.assert_array_equal(getattr(old, name), [transfer])
    np.testing.assert_array_equal(old.params(), laws.params())
    np.testing.assert_allclose(old.covariance_Kx3x3[0], np.diag(laws.stderr_Kx3[0] ** 2))
    assert Laws.from_arrays(laws.to_arrays(), 7.0).transfer_K.tolist() == laws.transfer_K.tolist()


def test_a_law_that_is_kept_keeps_its_transfer():
    new = Laws.given([LAW[0], [np.nan] * 3, [np.nan] * 3], [0.1, 0.2, 0.3])
    old = Laws.given([[1.0, 0.1, 0.2], [1.5, 0.2, 0.3], [np.nan] * 3], [1.0, 2.0, 3.0])
    merged = new.merged(old)
    assert merged.transfer_K.tolist() == [0.1, 2.0, 0.3]
    assert merged.ok_K.tolist() == [True, True, False]
    np.testing.assert_array_equal(merged.params()[1], [1.5, 0.2, 0.3])
    assert np.isnan(merged.params()[2]).all()
