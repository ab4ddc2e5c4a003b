"""DomainMeter: what counts, what does not, and nothing waits for the device."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ado_megatron.measure.meter import DomainMeter
from ado_megatron.stream.sample_key import pack_key


def keys(*dataset_ids):
    """Keys of samples 0, 1, … drawn from the given datasets."""
    return torch.tensor([pack_key(i, c) for i, c in enumerate(dataset_ids)])


def meter(rows=3, domain_of_C=(0, 1, 2), **kwargs):
    return DomainMeter(rows, np.array(domain_of_C), max(domain_of_C) + 1, contributes=True, **kwargs)


LOSS_2x3 = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])


def test_sums_and_tokens_go_to_the_domain_of_the_dataset():
    m = meter(domain_of_C=(0, 1, 1))  # two prefixes form domain 1
    m.begin(1)
    m.add(LOSS_2x3, torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]), keys(0, 2))
    m.add(LOSS_2x3[:1], torch.ones(1, 3), keys(1))  # gradient accumulation: the same step again
    assert m.take(2).tolist() == [[[0, 0], [0, 0]], [[3, 2], [56 + 7, 3 + 3]]]


def test_take_starts_again_from_zero():
    m = meter()
    m.begin(0)
    m.add(LOSS_2x3, torch.ones(2, 3), keys(0, 1))
    m.take(1)
    assert m.take(3).abs().sum() == 0


def test_packed_rows_are_split_by_token():
    m = meter()
    m.begin(0)
    key_2x3 = torch.stack([keys(0, 0, 2), keys(2, 1, 1)])
    m.add(LOSS_2x3, torch.tensor([[1, 1, 1], [0, 1, 1]]), key_2x3)
    assert m.take(1).tolist() == [[[3, 2], [48, 2], [4, 1]]]


def test_a_step_that_is_replayed_counts_once_and_a_skipped_one_not_at_all():
    m = meter()
    for attempt in range(2):
        m.begin(0)
        m.add(LOSS_2x3 + attempt, torch.ones(2, 3), keys(0, 1))
    m.begin(1)
    m.add(LOSS_2x3 * float("inf"), torch.ones(2, 3), keys(0, 1))
    m.discard()
    assert m.take(2).tolist() == [[[10, 3], [59, 3], [0, 0]], [[0, 0]] * 3]


def test_evaluation_and_ranks_that_do_not_contribute_add_nothing():
    m, other = meter(), DomainMeter(1, np.arange(3), 3, contributes=False)
    m.begin(0), other.begin(0)
    with torch.no_grad():
        m.add(LOSS_2x3, torch.ones(2, 3), keys(0, 1))
    other.add(LOSS_2x3, torch.ones(2, 3), keys(0, 1))
    assert m.take(1).abs().sum() == other.take(1).abs().sum() == 0


def test_a_meter_of_the_evaluation_counts_without_gradients_alone():
    m = meter(evaluation=True)
    m.add(LOSS_2x3, torch.ones(2, 3), keys(0, 1))
    with torch.no_grad():
        m.add(LOSS_2x3[:1], torch.ones(1, 3), keys(2))
    assert m.take(1).tolist() == [[[0, 0], [0, 0], [7, 3]]]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_recomputed_layer_before_the_loss_does_not_count_twice(use_reentrant):
    m, weight = meter(), torch.ones(3, requires_grad=True)
    m.begin(0)
    hidden = torch.utils.checkpoint.checkpoint(lambda w: LOSS_2x3 * w, weight, use_reentrant=use_reentrant)
    m.add(hidden, torch.ones(2, 3), keys(0, 1))
    hidden.sum().backward()
    assert m.take(1)[0, :, 1].tolist() == [3, 3, 0]


def test_a_loss_inside_a_reentrant_recomputation_counts_once():
    m, weight = meter(), torch.ones(3, requires_grad=True)
    m.begin(0)

    def loss(w):  # runs without gradients first, and again with them in the backward pass
        m.add(LOSS_2x3 * w, torch.ones(2, 3), keys(0, 1))
        return (LOSS_2x3 * w).sum()

    torch.utils.checkpoint.checkpoint(loss, weight, use_reentrant=True).backward()
    assert m.take(1)[0].tolist() == [[7, 3], [56, 3], [0, 0]]


def test_a_domain_that_is_not_finite_does_not_touch_the_others():
    m = meter()
    m.begin(0)
    m.add(torch.tensor([[float("nan")] * 3, [1.0, 2.0, 3.0]]), torch.ones(2, 3), keys(0, 1))
    sums = m.take(1)[0]
    assert sums[0, 0].isnan() and sums[1].tolist() == [6, 3]


def test_a_masked_token_may_hold_nan():
    m = meter()
    m.begin(0)
    m.add(torch.tensor([[float("nan"), 2.0, 3.0]]), torch.tensor([[0.0, 1.0, 1.0]]), keys(1))
    assert m.take(1)[0].tolist() == [[0, 0], [5, 2], [0, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_losses_are_summed_in_float64(dtype):
    m = meter()
    m.begin(0)
    m.add(torch.full((1, 4096), 3.0, dtype=dtype), torch.ones(1, 4096, dtype=dtype), keys(2))
    assert m.take(1)[0, 2].tolist() == [3 * 4096, 4096]  # float16 would have stopped at 65504 or rounded


def test_more_steps_than_rows_is_an_error():
    with pytest.raises(IndexError, match="holds 3 steps"):
        meter(rows=3).begin(3)


@settings(deadline=None)
@given(st.data())
def test_any_split_into_micro_batches_and_shards_gives_the_same_sums(data):
    seed = data.draw(st.integers(0, 2**31))
    batch, length = data.draw(st.integers(1, 8)), data.draw(st.sampled_from([2, 4, 6]))
    g = torch.Generator().manual_seed(seed)
    loss_BxL = torch.rand(batch, length, generator=g) * 10
    mask_BxL = (torch.rand(batch, length, generator=g) < 0.7).float()
    key_B = torch.randint(0, 3, (batch,), generator=g)
    whole, split = meter(), meter()
    whole.begin(0), split.begin(0)
    whole.add(loss_BxL, mask_BxL, key_B)
    for b in range(batch):  # micro-batches of one sample, each cut in two context-parallel shards
        for half in (slice(0, length // 2), slice(length // 2, None)):
            split.add(loss_BxL[b : b + 1, half], mask_BxL[b : b + 1, half], key_B[b : b + 1])
    torch.testing.assert_close(whole.take(1), split.take(1), rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_nothing_waits_for_the_device_and_sums_repeat_bit_for_bit():
    runs = []
    for _ in range(3):
        m = meter(device="cuda")
        g = torch.Generator("cuda").manual_seed(0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            m.begin(0)
            for _ in range(20):
                loss = torch.rand(64, 128, generator=g, device="cuda")
                m.add(loss, torch.ones_like(loss), torch.randint(0, 3, (64,), generator=g, device="cuda"))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        runs.append(m.take(1).cpu())
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[1], runs[2])
