"""Back to the host's blend: with the exported weights, Megatron's own index builder stands where the run stands."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ado_megatron.blend.static_export import blend_text, describe_continuation, not_continued

counts_of = st.lists(st.integers(0, 400), min_size=2, max_size=12).filter(lambda counts: sum(counts) > 0)


def built(weights_C, size):
    """dataset_index of megatron-core's BlendedDataset."""
    from megatron.core.datasets import helpers
    from megatron.core.datasets.utils import normalize

    dataset_N, sample_N = np.zeros(size, dtype=np.int16), np.zeros(size, dtype=np.int64)
    helpers.build_blending_indices(dataset_N, sample_N, normalize(weights_C), len(weights_C), size, False)
    return dataset_N, sample_N


@given(counts=counts_of)
@settings(max_examples=200)
def test_stock_with_the_exported_weights_has_drawn_what_the_run_drew(counts):
    words = blend_text([f"p{c}" for c in range(len(counts))], np.array(counts)).split()
    weights = [float(word) for word in words[::2]]
    assert words[1::2] == [f"p{c}" for c, n in enumerate(counts) if n > 0]
    dataset_N, sample_N = built(weights, sum(counts) + 50)
    first_N = dataset_N[: sum(counts)]
    assert np.bincount(first_N, minlength=len(weights)).tolist() == [n for n in counts if n > 0]
    for c, n in enumerate(weights):  # and goes on with the next sample of each
        assert sample_N[sum(counts) :][dataset_N[sum(counts) :] == c][:1].tolist() in ([], [int(n)])


def test_a_dataset_beyond_its_epoch_now_or_at_the_end_of_the_run_is_named():
    lengths_C, drawn_C = np.array([100, 100, 100, 10]), np.array([50, 20, 19, 11])
    # of 400 samples: 200, 80, 76 and 44, and half a percent more is asked for
    assert not_continued(lengths_C, drawn_C, 400) == [0, 3]
    assert not_continued(lengths_C, drawn_C, 100) == [3]
    assert not_continued(np.array([100]), np.array([99]), 99) == []
    assert not_continued(np.array([100]), np.array([100]), 100) == [0]  # asked for 101
    assert not_continued(np.array([5, 5]), np.array([0, 4]), 4) == [], "nothing drawn, nothing to continue"
    assert "repeats and skips nothing" in describe_continuation("abcd", [], 100)
    assert "repeats and skips samples of a, d," in describe_continuation("abcd", [0, 3], 100)
