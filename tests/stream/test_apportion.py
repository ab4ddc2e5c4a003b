"""Apportionment: hand-written rows, and the bound under weights of every kind. Legend: C datasets, S blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ado_megatron.errors import UserError
from ado_megatron.stream.schedule import apportion, apportion_rows
from tests.kit.opponent import opposing_weights

TIE = 1e-9  # the checks add up floats; the bound itself is exact on the grid


def drive(weights_SxC, block, credit_C=None, remaining_C=None):
    """Rows one by one; yields (counts, credit before, credit after, weights)."""
    credit_C = np.zeros(weights_SxC.shape[1]) if credit_C is None else credit_C
    for weights_C in weights_SxC:
        counts_C, after_C = apportion(weights_C, block, credit_C, remaining_C)
        yield counts_C, credit_C, after_C, weights_C / weights_C.sum()
        credit_C = after_C


def folded(counts_C, before_C, after_C, weights_C, block):
    return np.abs(before_C + block * weights_C - counts_C - after_C).max()


@pytest.mark.parametrize(
    ("weights", "block", "rows"),
    [
        ([1, 1], 3, [[2, 1], [1, 2], [2, 1], [1, 2]]),
        ([1, 2, 1], 4, [[1, 2, 1], [1, 2, 1]]),
        ([3, 1], 2, [[2, 0], [1, 1], [2, 0], [1, 1]]),
        ([1, 1, 1], 1, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]),
        ([0, 1], 5, [[0, 5], [0, 5]]),
        ([0.5, 0.25, 0.25], 3, [[1, 1, 1], [2, 1, 0], [2, 0, 1], [1, 1, 1]]),
    ],
)
def test_rows_by_hand(weights, block, rows):
    got, credit_C = apportion_rows(weights, block, len(rows), np.zeros(len(weights)))
    total = np.array(weights) / sum(weights) * block * len(rows)
    assert np.abs(got.cumsum(axis=0)[-1] - total + credit_C).max() < TIE
    assert got.tolist() == rows


WEIGHTS = st.lists(
    st.one_of(st.integers(1, 4).map(float), st.floats(1e-6, 1), st.sampled_from([1e-3, 1e-2, 1e3])),
    min_size=1,
    max_size=40,
)


@given(weights=WEIGHTS, block=st.integers(1, 80))
@settings(max_examples=150)
def test_constant_weights_stay_within_one_sample_and_fold_nothing(weights, block):
    weights_SxC = np.tile(np.array(weights), (60, 1))
    total_C, quota_C = np.zeros(len(weights)), np.zeros(len(weights))
    for counts_C, before_C, after_C, weights_C in drive(weights_SxC, block):
        assert counts_C.sum() == block and counts_C.min() >= 0
        assert folded(counts_C, before_C, after_C, weights_C, block) < 1e-6
        total_C, quota_C = total_C + counts_C, quota_C + block * weights_C
        assert np.abs(total_C - quota_C).max() < 1 + 1e-6


@given(
    seed=st.integers(0, 10**6),
    num_datasets=st.integers(2, 60),
    block=st.integers(1, 600),
    shape=st.sampled_from([0.1, 0.3, 2]),
)
@settings(max_examples=80)
def test_weights_redrawn_in_every_block_stay_within_one_sample(seed, num_datasets, block, shape):
    weights_SxC = np.random.default_rng(seed).dirichlet(np.full(num_datasets, shape), size=60)
    total_C, quota_C = np.zeros(num_datasets), np.zeros(num_datasets)
    for counts_C, _, _, weights_C in drive(weights_SxC, block):
        assert counts_C.sum() == block and counts_C.min() >= 0
        total_C, quota_C = total_C + counts_C, quota_C + block * weights_C
        assert np.abs(total_C - quota_C).max() < 1 + 1e-6


def against_an_opponent(num_datasets, block, rows, seed):
    """(counts_C, credit_C before, credit_C after, weights_C) of rows whose weights the opponent chooses."""
    rng, credit_C = np.random.default_rng(seed), np.zeros(num_datasets)
    for s in range(rows):
        weights_C = opposing_weights(credit_C, s, rng)
        counts_C, after_C = apportion(weights_C, block, credit_C)
        yield counts_C, credit_C, after_C, weights_C
        credit_C = after_C


@given(seed=st.integers(0, 10**6), num_datasets=st.integers(2, 50), block=st.integers(1, 40))
@settings(max_examples=80)
def test_against_an_opponent_the_bound_holds_for_the_weights_in_force_and_little_is_folded(seed, num_datasets, block):
    for counts_C, credit_C, after_C, weights_C in against_an_opponent(num_datasets, block, 80, seed):
        assert counts_C.sum() == block and counts_C.min() >= 0
        assert np.abs(after_C).max() < 1 and abs(after_C.sum()) < TIE
        assert folded(counts_C, credit_C, after_C, weights_C, block) < 1


def test_the_opponent_does_make_it_fold():
    """Else the test above would not reach the code that it is about."""
    most = max(folded(*row, 8) for row in against_an_opponent(40, 8, 400, 0))
    assert 1e-3 < most < 1


@pytest.mark.parametrize(("num_datasets", "rows"), [(22, 400), (200, 200), (1000, 150)])
@pytest.mark.parametrize("shape", [0.3, 1, 100])
def test_the_discrepancy_at_block_boundaries_is_no_worse_than_megatron_s(num_datasets, rows, shape):
    from megatron.core.datasets.helpers import build_blending_indices

    block = 2048
    weights_C = np.random.default_rng(3).dirichlet(np.full(num_datasets, shape))
    domain_N, sample_N = np.zeros(rows * block, dtype=np.int16), np.zeros(rows * block, dtype=np.int64)
    build_blending_indices(domain_N, sample_N, weights_C, num_datasets, rows * block, False)
    theirs_SxC = np.stack([np.bincount(part_n, minlength=num_datasets) for part_n in domain_N.reshape(rows, block)])
    ours_SxC, _ = apportion_rows(weights_C, block, rows, np.zeros(num_datasets))
    quota_SxC = block * np.arange(1, rows + 1)[:, None] * weights_C
    theirs, ours = (np.abs(counts_SxC.cumsum(axis=0) - quota_SxC).max() for counts_SxC in (theirs_SxC, ours_SxC))
    assert ours <= theirs + TIE


@given(
    seed=st.integers(0, 10**6), num_datasets=st.integers(1, 60), block=st.integers(1, 300), rows=st.integers(0, 150),
    capped=st.booleans(), shape=st.sampled_from([0.2, 1, 50]),
)  # fmt: skip
@settings(max_examples=80)
def test_many_rows_at_once_are_the_same_rows(seed, num_datasets, block, rows, capped, shape):
    rng = np.random.default_rng(seed)
    weights_C, credit_C = rng.dirichlet(np.full(num_datasets, shape)), np.zeros(num_datasets)
    remaining_C = rng.integers(0, 2 * block * rows // num_datasets + 1, num_datasets) + block if capped else None
    remaining_C = remaining_C if capped and remaining_C[weights_C > 0].sum() >= block * rows else None
    got_SxC, got_credit_C = apportion_rows(weights_C, block, rows, credit_C, remaining_C)
    for s in range(rows):
        counts_C, credit_C = apportion(weights_C, block, credit_C, remaining_C)
        remaining_C = None if remaining_C is None else remaining_C - counts_C
        assert got_SxC[s].tolist() == counts_C.tolist()
    assert np.abs(got_credit_C - credit_C).max() < TIE
    again_SxC, _ = apportion_rows(np.tile(weights_C, (rows, 1)), block, rows, np.zeros(num_datasets))
    if not capped:
        assert np.array_equal(again_SxC, got_SxC)


@given(seed=st.integers(0, 10**6), num_datasets=st.integers(2, 20), block=st.integers(1, 50))
@settings(max_examples=80)
def test_caps_are_kept_exactly_and_the_supply_is_used_to_the_last_sample(seed, num_datasets, block):
    rng = np.random.default_rng(seed)
    caps_C = rng.integers(0, 100, num_datasets)
    rows = int(caps_C.sum()) // block
    taken_C, credit_C = np.zeros(num_datasets, dtype=np.int64), np.zeros(num_datasets)
    for _ in range(rows):
        weights_C = rng.dirichlet(np.full(num_datasets, 0.5)) + 1e-9
        counts_C, credit_C = apportion(weights_C, block, credit_C, caps_C - taken_C)
        taken_C += counts_C
        assert counts_C.sum() == block and (taken_C <= caps_C).all() and counts_C.min() >= 0
    with pytest.raises(UserError, match=f"a block needs {block}"):
        apportion(weights_C, block, credit_C, caps_C - taken_C)


def test_at_its_cap_a_dataset_drops_out_and_the_others_take_over_in_proportion():
    rows_SxC, _ = apportion_rows([0.5, 0.3, 0.2], 10, 10, np.zeros(3), [12, 1000, 1000])
    assert rows_SxC[:, 0].tolist() == [5, 5, 2, 0, 0, 0, 0, 0, 0, 0]
    assert rows_SxC[3:].sum(axis=0).tolist() == [0, 42, 28]


def test_at_its_cap_a_prefix_hands_over_to_its_domain_first_and_a_domain_to_the_others():
    """Domains {0, 1} and {2}, half each: 0 ends after 5 samples, and 1 takes over its part; the domain after 25."""
    total_C, credit_C, rows = np.zeros(3, dtype=np.int64), np.zeros(3), []
    for _ in range(8):
        remaining_C = np.array([5, 20, 1000]) - total_C
        counts_C, credit_C = apportion([0.25, 0.25, 0.5], 10, credit_C, remaining_C, np.array([0, 0, 1]))
        total_C += counts_C
        rows.append(counts_C.tolist())
    domain = [a + b for a, b, _ in rows]
    assert domain == [5, 5, 5, 5, 5, 0, 0, 0]
    assert [row[0] for row in rows][2:] == [0] * 6 and total_C.tolist() == [5, 20, 55]


@given(
    seed=st.integers(0, 10**6), num_datasets=st.integers(2, 20), num_domains=st.integers(1, 6), block=st.integers(1, 50)
)  # fmt: skip
@settings(max_examples=80)
def test_a_domain_keeps_its_share_until_all_of_its_prefixes_are_at_their_caps(seed, num_datasets, num_domains, block):
    rng = np.random.default_rng(seed)
    domain_of_C = np.append(np.arange(num_domains), rng.integers(0, num_domains, num_datasets))
    caps_C, weights_C = rng.integers(0, 200, len(domain_of_C)), rng.dirichlet(np.ones(len(domain_of_C))) + 1e-9
    taken_C, credit_C = np.zeros(len(caps_C), dtype=np.int64), np.zeros(len(caps_C))
    weights_K, wanted_K = np.bincount(domain_of_C, weights_C) / weights_C.sum(), np.zeros(num_domains)
    for _ in range(int(caps_C.sum()) // block):
        counts_C, credit_C = apportion(weights_C, block, credit_C, caps_C - taken_C, domain_of_C)
        taken_C, wanted_K = taken_C + counts_C, wanted_K + block * weights_K
        assert counts_C.sum() == block and (taken_C <= caps_C).all()
        taken_K, caps_K = (np.bincount(domain_of_C, count_C) for count_C in (taken_C, caps_C))
        if (wanted_K > caps_K).any():
            break
        datasets_K = np.bincount(domain_of_C)
        assert (np.abs(taken_K - wanted_K) < datasets_K + TIE).all()  # less than one sample a dataset


def test_a_dataset_without_weight_gets_nothing_and_leaves_nothing_owed():
    _, credit_C = apportion_rows([1, 1, 1], 4, 5, np.zeros(3))
    assert np.abs(credit_C).max() > 0.1
    rows_SxC, credit_C = apportion_rows([1, 0, 1], 4, 9, credit_C)
    assert rows_SxC[:, 1].tolist() == [0] * 9
    assert credit_C[1] == 0 and np.abs(credit_C).max() < 1


@given(
    seed=st.integers(0, 10**6), num_datasets=st.integers(2, 60), block=st.sampled_from([1, 2, 8, 33, 256, 2048]),
    shape=st.sampled_from([0.2, 1, 50]), capped=st.booleans(),
)  # fmt: skip
@settings(max_examples=150)
def test_datasets_may_come_and_go_as_they_like(seed, num_datasets, block, shape, capped):
    """Weights that are zero in some blocks, one dataset above all others, tiny ones; with caps or without."""
    rng, credit_C = np.random.default_rng(seed), np.zeros(num_datasets)
    caps_C = rng.integers(0, 4 * block, num_datasets) if capped else np.full(num_datasets, 1 << 62)
    for _ in range(30):
        weights_C = rng.dirichlet(np.full(num_datasets, shape)) + 1e-9
        weights_C[rng.random(num_datasets) < rng.random()] = 0
        weights_C[rng.integers(num_datasets)] = rng.choice([1e-4, 1, 1e4])
        left = int(np.minimum(caps_C, 2 * block)[weights_C > 0].sum())
        if left < block:
            with pytest.raises(UserError, match=f"have {caps_C[weights_C > 0].sum()} samples left"):
                apportion(weights_C, block, credit_C, caps_C)
            continue
        counts_C, credit_C = apportion(weights_C, block, credit_C, caps_C)
        caps_C = caps_C - counts_C
        assert counts_C.sum() == block and counts_C.min() >= 0 and caps_C.min() >= 0
        assert np.abs(credit_C).max() < 1 and abs(credit_C.sum()) < TIE


def test_what_a_dataset_was_owed_when_it_went_takes_no_other_past_its_cap():
    _, credit_C = apportion_rows([9, 8, 8, 9, 5], 2, 3, np.zeros(5))
    assert credit_C[1:4].min() > 0.2
    counts_C, _ = apportion([3, 0, 0, 0, 8], 2, credit_C, [100, 100, 100, 100, 1])
    assert counts_C.tolist() == [1, 0, 0, 0, 1]


def test_the_last_sample_under_a_cap_is_given_whatever_the_credit():
    counts_C, credit_C = apportion([1, 1], 1, np.zeros(2))
    assert counts_C.tolist() == [1, 0] and credit_C.tolist() == [-0.5, 0.5]
    assert apportion([0, 1], 1, credit_C, [5, 1])[0].tolist() == [0, 1]
    with pytest.raises(UserError, match="have 0 samples left"):
        apportion([0, 1], 1, credit_C, [5, 0])


@pytest.mark.parametrize("weights", [[0, 0], [-1, 2], [np.nan, 1], [np.inf, 1]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be"):
        apportion(weights, 8, np.zeros(2))


def test_thousands_of_datasets_and_tiny_weights():
    weights_C = np.random.default_rng(0).dirichlet(np.full(32767, 0.3))
    rows_SxC, credit_C = apportion_rows(weights_C, 2048, 3, np.zeros(32767))
    assert (rows_SxC.sum(axis=1) == 2048).all() and np.abs(credit_C).max() < 1
