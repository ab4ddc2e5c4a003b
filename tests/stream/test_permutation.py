"""The stateless permutation: a bijection at every size, the same scalar and vectorised, and spread out."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ado_megatron.stream.permutation import (
    derive_key,
    derive_key_N,
    invert,
    invert_N,
    mix64,
    mix64_N,
    permute,
    permute_N,
)

U64 = st.integers(0, 2**64 - 1)


def test_bijective_at_all_sizes_to_5000():
    """All sizes in one vectorised call each for the sizes' elements, laid end to end."""
    for low in range(1, 5001, 250):
        sizes = np.arange(low, min(low + 250, 5001))
        n_N = np.repeat(sizes, sizes)
        first_N = np.repeat(np.cumsum(sizes) - sizes, sizes)
        x_N = np.arange(len(n_N)) - first_N
        y_N = permute_N(x_N, n_N, derive_key_N((17,), n_N))
        assert y_N.min() >= 0 and (y_N < n_N).all()
        assert np.bincount(y_N + first_N, minlength=len(n_N)).max() == 1
        assert np.array_equal(invert_N(y_N, n_N, derive_key_N((17,), n_N)), x_N)


@given(n=st.integers(1, 10**12), key=U64, data=st.data())
def test_scalar_inverse_and_vectorised_agree(n, key, data):
    x = data.draw(st.integers(0, n - 1))
    y = permute(x, n, key)
    assert 0 <= y < n and invert(y, n, key) == x
    assert permute_N(np.array([x]), n, key).tolist() == [y]
    assert invert_N(np.array([y]), n, key).tolist() == [x]


@pytest.mark.parametrize("n", [10**9, 10**10, 2**33 - 1, 2**33, 2**33 + 1])
def test_large_domains_keep_distinct_elements_apart_and_come_back(n):
    x_N = np.unique(np.random.default_rng(n).integers(0, n, 200_000))
    y_N = permute_N(x_N, n, derive_key(5))
    assert len(np.unique(y_N)) == len(x_N) and y_N.max() < n
    assert np.array_equal(invert_N(y_N, n, derive_key(5)), x_N)
    assert abs(y_N.mean() / n - 0.5) < 0.005
    assert abs(np.corrcoef(x_N, y_N)[0, 1]) < 0.01


def test_pinned_values_so_that_no_platform_or_version_changes_a_stream():
    assert [permute(x, 10, derive_key(1, 2, 3)) for x in range(10)] == [7, 2, 8, 5, 9, 0, 3, 1, 6, 4]
    assert permute(123_456_789, 10**9, derive_key(42)) == 496_652_186
    assert (derive_key(0), derive_key(1, 2)) == (10451216379200822465, 5438809942717911462)
    assert mix64(1) == 0x5692161D100B05E5


def test_keys_depend_on_every_part_and_on_the_order():
    parts = [(1, 2), (2, 1), (1, 2, 0), (1,), (1, 3), (-1, 2), (2**64 - 1 + 2**64, 2)]
    keys = [derive_key(*p) for p in parts]
    assert len(set(keys)) == len(parts) - 1  # the last two are the same number modulo 2^64
    assert derive_key_N((7,), np.array([1, -5]), np.array([2, 9])).tolist() == [
        derive_key(7, 1, 2),
        derive_key(7, -5, 9),
    ]


@given(value=U64)
def test_mix_is_the_same_on_arrays(value):
    assert mix64_N(np.array([value], dtype=np.uint64)).tolist() == [mix64(value)]


def test_small_permutations_are_nearly_equally_likely():
    orders = Counter(tuple(permute_N(np.arange(4), 4, derive_key(s)).tolist()) for s in range(12_000))
    assert len(orders) == 24
    assert 350 < min(orders.values()) and max(orders.values()) < 650


def test_every_place_is_equally_likely_for_every_element():
    n, keys = 37, 4000
    counts = np.zeros((n, n), dtype=int)
    for s in range(keys):
        counts[np.arange(n), permute_N(np.arange(n), n, derive_key(s, 9))] += 1
    expected = keys / n
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi2 - (n - 1) ** 2) < 6 * np.sqrt(2) * (n - 1)  # six standard deviations of χ² with (n-1)² degrees


def test_neighbours_do_not_stay_neighbours():
    y_N = permute_N(np.arange(4096), 4096, derive_key(3))
    assert 0 < (np.abs(np.diff(y_N)) == 1).sum() < 15


@pytest.mark.parametrize("call", [lambda: permute(5, 5, 1), lambda: permute(-1, 5, 1), lambda: invert(9, 9, 1)])
def test_elements_outside_are_refused(call):
    with pytest.raises(ValueError, match="no element"):
        call()
    with pytest.raises(ValueError, match="outside"):
        permute_N(np.array([0, 5]), 5, 1)


def test_a_size_past_what_a_float_counts_is_refused():
    assert invert(permute(7, 2**52, 3), 2**52, 3) == 7
    assert permute_N(np.array([7]), 2**52, 3).tolist() == [permute(7, 2**52, 3)]
    for call in (permute, lambda x, n, key: permute_N(np.array([x]), n, key)):
        with pytest.raises(ValueError, match=r"2\^52 elements"):
            call(7, 2**52 + 1, 3)
