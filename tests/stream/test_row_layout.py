"""RowLayout: the kernel, numpy and `apportion` lay out the same rows, whatever the weights and the caps do.

Legend: C datasets, S rows.
"""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ado_megatron.errors import UserError
from ado_megatron.stream import row_layout
from ado_megatron.stream.apportion import apportion, blocks_ahead
from ado_megatron.stream.row_layout import RowLayout, apportion_rows, kernels
from tests.kit.opponent import opposing_weights

KERNEL = pytest.mark.skipif(kernels() is None, reason="numba is not installed")


def moving_weights(rng, num_datasets, rows, shape, way):
    """weights_SxC: drifting, redrawn in every row, or with datasets that come and go."""
    weights_C = rng.dirichlet(np.full(num_datasets, shape))
    for s in range(rows):
        if way == "drift":
            weights_C = weights_C * np.exp(0.01 * rng.standard_normal(num_datasets))
        elif way == "redrawn" or (way == "come and go" and s % 5 == 0):
            weights_C = rng.dirichlet(np.full(num_datasets, shape))
        if way == "come and go":
            weights_C = weights_C * (rng.random(num_datasets) < 0.8)
            weights_C[rng.integers(num_datasets)] += 1e-3
        weights_C = weights_C / weights_C.sum()
        yield weights_C


def against(layout):
    """Weights that are chosen after the rows are seen."""
    rng = np.random.default_rng(0)
    for s in range(200):
        yield opposing_weights(layout.credit_C, s, rng)


@KERNEL
@given(
    seed=st.integers(0, 10**6), num_datasets=st.sampled_from([1, 2, 5, 22, 60, 300]),
    block=st.sampled_from([1, 2, 8, 33, 256, 2048]), shape=st.sampled_from([0.1, 0.3, 1, 50]),
    way=st.sampled_from(["hold", "drift", "redrawn", "come and go"]), capped=st.booleans(),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_the_kernel_lays_out_the_rows_of_apportion(seed, num_datasets, block, shape, way, capped):
    rng, credit_C = np.random.default_rng(seed), np.zeros(num_datasets)
    layout = RowLayout(num_datasets, credit_C, kernels)
    left_C = rng.integers(0, 30 * block // num_datasets + block, num_datasets) if capped else None
    for weights_C in moving_weights(rng, num_datasets, 25, shape, way):
        if capped and left_C[weights_C > 0].sum() < block:
            with pytest.raises(UserError, match="samples left"):
                layout.next_row(weights_C, block, left_C)
            break
        wanted_C, credit_C = apportion(weights_C, block, credit_C, left_C)
        assert layout.next_row(weights_C, block, left_C).tolist() == wanted_C.tolist()
        assert layout.credit_C.tolist() == credit_C.tolist()
        left_C = left_C - wanted_C if capped else None


@KERNEL
def test_the_kernel_refuses_what_it_must_and_lays_out_the_rest():
    """Each way out of the kernel is taken, so that the test above has met all of them."""
    rng, seen = np.random.default_rng(0), set()
    kernel = kernels()
    for num_datasets, block, way in (
        (22, 2048, "drift"), (60, 8, "redrawn"), (300, 256, "redrawn"), (40, 8, "opponent"),
    ):  # fmt: skip
        layout = RowLayout(num_datasets, np.zeros(num_datasets), kernels)
        rows = against(layout) if way == "opponent" else moving_weights(rng, num_datasets, 100, 0.3, way)
        for weights_C in rows:
            counts_C, work_6xC = np.zeros(num_datasets, dtype=np.int64), np.zeros((6, num_datasets), dtype=np.int64)
            credit_C = np.rint(layout.credit_C * 2**40).astype(np.int64)
            arguments = (weights_C, weights_C.sum(), block, credit_C, work_6xC[5], False, counts_C, work_6xC)
            state = kernel.lay_out_row(*arguments, np.zeros(256, dtype=np.int64))
            if state == kernel.CHECK and (reach := kernel.reach_of(counts_C, work_6xC)):
                later_H = blocks_ahead(reach)
                safe = kernel.is_safe(counts_C, work_6xC, block, later_H, np.zeros(len(later_H)))
                seen.add("safe" if safe else "deadline")
            seen.add(state)
            wanted_C, credit_after_C = apportion(weights_C, block, layout.credit_C)
            assert layout.next_row(weights_C, block).tolist() == wanted_C.tolist()
            assert layout.credit_C.tolist() == credit_after_C.tolist()
    assert seen == {kernel.REFUSED, kernel.DONE, kernel.CHECK, "safe", "deadline"}


@KERNEL
def test_the_nth_largest_is_that_of_a_sort():
    rng, bucket_B = np.random.default_rng(1), np.zeros(256, dtype=np.int64)
    for bits in (8, 32, 41):
        for size in (1, 7, 300):
            value_C = rng.integers(0, 1 << bits, size)
            value_C[rng.random(size) < 0.3] = -1
            value_C[rng.random(size) < 0.3] = value_C[0]
            inside = sorted((v for v in value_C.tolist() if v >= 0), reverse=True)
            for n in (1, 2, max(1, len(inside)), len(inside) + 1):
                wanted = inside[n - 1] if n <= len(inside) else -1
                assert kernels().nth_largest(value_C, n, bits, bucket_B) == wanted


@given(
    seed=st.integers(0, 10**6), num_datasets=st.integers(1, 40), num_domains=st.integers(1, 6),
    block=st.integers(1, 300), rows=st.integers(0, 120), capped=st.booleans(), compiled=st.booleans(),
    shape=st.sampled_from([0.2, 1, 50]),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_many_rows_at_once_are_the_same_rows_with_caps_and_groups(
    seed, num_datasets, num_domains, block, rows, capped, compiled, shape
):
    rng = np.random.default_rng(seed)
    domain_of_C = np.append(np.arange(num_domains), rng.integers(0, num_domains, num_datasets))
    num_datasets = len(domain_of_C)
    weights_C, credit_C, left_C = rng.dirichlet(np.full(num_datasets, shape)) + 1e-12, np.zeros(num_datasets), None
    if capped:  # some datasets run out, the others can take over
        left_C = np.ceil(rng.uniform(0.2, 2.0, num_datasets) * rows * block * weights_C).astype(np.int64)
        left_C[rng.integers(num_datasets)] += rows * block
    layout = RowLayout(num_datasets, credit_C, kernels if compiled else None)
    got_SxC = layout.next_rows(rows, weights_C, block, left_C, domain_of_C)
    for s in range(rows):
        counts_C, credit_C = apportion(weights_C, block, credit_C, left_C, domain_of_C)
        left_C = None if left_C is None else left_C - counts_C
        assert got_SxC[s].tolist() == counts_C.tolist()
    assert layout.credit_C.tolist() == credit_C.tolist()


def test_a_stretch_may_be_cut_anywhere():
    weights_C, domain_of_C = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0, 0, 1, 1])
    left_C = np.array([150, 2000, 70, 2000])
    whole_SxC, _ = apportion_rows(weights_C, 20, 60, np.zeros(4), left_C, domain_of_C)
    assert whole_SxC[:, 0].sum() == 150 and whole_SxC[:, 2].sum() == 70
    for cut in (1, 17, 18, 40):
        layout = RowLayout(4, np.zeros(4))
        first_SxC = layout.next_rows(cut, weights_C, 20, left_C, domain_of_C)
        rest_SxC = layout.next_rows(60 - cut, weights_C, 20, left_C - first_SxC.sum(axis=0), domain_of_C)
        assert np.concatenate([first_SxC, rest_SxC]).tolist() == whole_SxC.tolist()


@pytest.mark.parametrize("reach", [1e-3, 0.5, 1, 3, 62.5, 63, 64, 65, 1000, 2**40, 1e12])
def test_the_distances_looked_at_are_a_geometric_series(reach):
    wanted_H = np.concatenate([np.arange(1.0, min(reach, 64.0) + 1), np.floor(np.geomspace(1, reach + 1, 64))])
    assert blocks_ahead(reach).tolist() == wanted_H.tolist()


@pytest.mark.parametrize("weights", [[0.0, 0.0], [-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be"):
        RowLayout(2, np.zeros(2), kernels).next_row(np.array(weights), 8)


@pytest.mark.parametrize(
    ("broken", "said"), [(ImportError("no"), "not installed"), (RuntimeError("no locator"), "no locator")]
)
def test_without_numba_rows_are_laid_out_by_numpy_and_it_is_said_once(monkeypatch, caplog, broken, said):
    caplog.set_level("INFO")
    kernels.cache_clear()
    monkeypatch.setattr(row_layout, "_load", lambda: (_ for _ in ()).throw(broken))
    try:
        assert kernels() is None and kernels() is None
    finally:
        kernels.cache_clear()
    assert len(caplog.records) == 1 and said in caplog.text


def test_a_loader_worker_imports_no_numba():
    code = "import sys, ado_megatron.stream.blended_dataset; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_many_rows_at_constant_weights_load_no_kernel():
    layout = RowLayout(3, np.zeros(3), lambda: pytest.fail("the kernel was loaded"))
    assert layout.next_rows(4, np.array([0.5, 0.25, 0.25]), 8).tolist() == [[4, 2, 2]] * 4
