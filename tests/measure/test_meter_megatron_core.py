"""DomainMeter in megatron-core's own schedules: in every layout, the sums of one process.

A GPTModel is trained for a few steps with megatron-core's forward-backward functions; parameters are a function of
their name, so every layout is the same model. Context parallelism cuts each sample over ranks, virtual pipelines run
several chunks of the model on a rank; the loss function is the only place that knows the meter.
"""

import functools
import hashlib
import itertools
import math

import numpy as np
import pytest
import torch

from ado_megatron.measure.meter import DomainMeter
from ado_megatron.mixer.world import World
from ado_megatron.stream.sample_key import pack_key
from tests.kit import core
from tests.kit.ranks import run_ranks

SEQ, VOCAB, MICRO, GLOBAL, STEPS, LAYERS = 32, 64, 2, 8, 2, 4
DOMAINS = 3


class GatheringAttention(torch.nn.Module):
    """Attention for context parallelism on a CPU: gathers keys and values, masks by position in the whole sample."""

    def __init__(self, config, layer_number, attn_mask_type, attention_type, **kwargs):
        super().__init__()

    def forward(self, q, k, v, attention_mask=None, **kwargs):
        from megatron.core import parallel_state as ps
        from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region as gather

        group = ps.get_context_parallel_group()
        size, rank, half = group.size(), group.rank(), q.size(0) // 2

        def positions(r):  # rank r holds chunks r and 2·size−1−r
            return torch.cat([torch.arange(c * half, (c + 1) * half) for c in (r, 2 * size - 1 - r)])

        k, v = (gather(t.contiguous(), group=group) for t in (k, v))
        later = torch.cat([positions(r) for r in range(size)])[None] > positions(rank)[:, None]
        score = torch.einsum("qbhd,kbhd->bhqk", q, k) / math.sqrt(q.size(-1))
        out = torch.einsum("bhqk,kbhd->qbhd", score.masked_fill(later, -math.inf).softmax(-1), v)
        return out.reshape(q.size(0), q.size(1), -1)


def build_chunk(config, virtual):
    from megatron.core import parallel_state as ps
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    spec = get_gpt_layer_local_spec()
    spec.submodules.self_attention.submodules.core_attention = GatheringAttention
    ends = {} if virtual is None else {"ignore_virtual": False, "vp_stage": virtual}
    chunk = GPTModel(
        config, spec, vocab_size=VOCAB, max_sequence_length=SEQ, position_embedding_type="rope",
        pre_process=ps.is_pipeline_first_stage(**ends), post_process=ps.is_pipeline_last_stage(**ends),
        share_embeddings_and_output_weights=False, vp_stage=virtual,
    )  # fmt: skip
    numbers = {f"decoder.layers.{i}.": layer.layer_number for i, layer in enumerate(chunk.decoder.layers)}
    for name, parameter in chunk.named_parameters():
        for local, number in numbers.items():
            name = name.replace(local, f"layer {number}.")
        fill(name, parameter)
    return chunk


@torch.no_grad()
def fill(name, parameter):
    """Values that depend on the parameter's global name alone; a tensor-parallel shard takes its part of them."""
    from megatron.core import parallel_state as ps

    shape, tp = list(parameter.shape), ps.get_tensor_model_parallel_world_size()
    sharded = getattr(parameter, "tensor_model_parallel", False)
    if sharded:
        shape[parameter.partition_dim] *= tp
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.2
    if sharded:
        whole = whole.chunk(tp, parameter.partition_dim)[ps.get_tensor_model_parallel_rank()]
    parameter.copy_(1.0 + 0.1 * whole if "norm" in name and name.endswith("weight") else whole)


def sample(i):
    g = torch.Generator().manual_seed(i)
    tokens = torch.randint(0, VOCAB, (SEQ + 1,), generator=g)
    return tokens, (torch.rand(SEQ, generator=g) < 0.8).float(), (i * 7) % DOMAINS


def batches(step, dp, dp_rank):
    """Micro-batches of this data rank, as dicts cut for this context rank."""
    mine = [i for i in range(step * GLOBAL, (step + 1) * GLOBAL) if i // MICRO % dp == dp_rank]
    for first in range(0, len(mine), MICRO):
        tokens, mask, domain = zip(*map(sample, mine[first : first + MICRO]), strict=True)
        tokens = torch.stack(tokens)
        cut = {"tokens": tokens[:, :-1], "labels": tokens[:, 1:], "loss_mask": torch.stack(mask)}
        cut["position_ids"] = torch.arange(SEQ).expand(len(tokens), SEQ)
        cut = core.cut_for_context_rank({name: value.contiguous() for name, value in cut.items()})
        keys = [pack_key(i, d) for i, d in zip(mine[first : first + MICRO], domain, strict=True)]
        yield cut | {"key": torch.tensor(keys)}


def train(rank, tp, pp, cp, virtual):
    from ado_megatron.hosts import cpu

    cpu.install("megatron_lm")
    from megatron.core import parallel_state as ps
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer.transformer_config import TransformerConfig

    ps.initialize_model_parallel(tp, pp, virtual_pipeline_model_parallel_size=virtual, context_parallel_size=cp)
    model_parallel_cuda_manual_seed(1)
    config = TransformerConfig(
        num_layers=LAYERS, hidden_size=32, num_attention_heads=4, tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp, context_parallel_size=cp, virtual_pipeline_model_parallel_size=virtual,
        overlap_p2p_comm=bool(virtual), batch_p2p_comm=not virtual, pipeline_dtype=torch.float32,
        use_cpu_initialization=True, hidden_dropout=0.0, attention_dropout=0.0, masked_softmax_fusion=False,
        bias_dropout_fusion=False, bias_activation_fusion=False, apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
    )  # fmt: skip
    chunks = [build_chunk(config, v) for v in (range(virtual) if virtual else [None])]
    contributes = ps.is_pipeline_last_stage(ignore_virtual=True) and ps.get_tensor_model_parallel_rank() == 0
    world = World.detect(contributes)
    meter = DomainMeter(STEPS, np.arange(DOMAINS), DOMAINS, contributes=contributes)

    def loss_function(batch, loss_BxL):
        meter.add(loss_BxL, batch["loss_mask"], batch["key"])
        mask = batch["loss_mask"]
        loss = (loss_BxL * mask).sum() / (MICRO * SEQ)
        return loss, {"loss": loss.detach()}

    def forward_step(iterator, model):
        batch = next(iterator)
        out = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
        return out, functools.partial(loss_function, batch)

    dp, dp_rank = ps.get_data_parallel_world_size(), ps.get_data_parallel_rank()
    for step in range(STEPS):
        for forward_only in (True, False):  # an evaluation before the step must leave no trace
            meter.begin(step)
            iterators = [iter(list(batches(step, dp, dp_rank))) for _ in chunks]
            with torch.set_grad_enabled(not forward_only):  # as both hosts evaluate
                get_forward_backward_func()(
                    forward_step_func=forward_step, data_iterator=iterators if virtual else iterators[0],
                    model=chunks if virtual else chunks[0], num_microbatches=GLOBAL // MICRO // dp, seq_length=SEQ,
                    micro_batch_size=MICRO, forward_only=forward_only,
                )  # fmt: skip
            if forward_only:
                assert meter._sums_TxKx2[step].abs().sum() == 0
    return world.all_reduce_sum(meter.take(STEPS)).numpy()


@functools.cache
def one_process():
    return run_ranks(train, 1, 1, 1, 1, None)[0]


def check(tp, pp, dp, cp=1, virtual=None):
    truth = one_process()
    assert truth[..., 1].sum() == sum(float(sample(i)[1].sum()) for i in range(STEPS * GLOBAL))
    for sums in run_ranks(train, tp * pp * dp * cp, tp, pp, cp, virtual):
        np.testing.assert_array_equal(sums[..., 1], truth[..., 1])
        np.testing.assert_allclose(sums[..., 0], truth[..., 0], rtol=1e-6)


def test_context_parallel_ranks_add_their_shards():
    check(tp=1, pp=1, dp=1, cp=2)


def test_a_virtual_pipeline_counts_the_last_chunk_once():
    check(tp=1, pp=2, dp=1, virtual=2)


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "pp", "dp"), [s for s in itertools.product((1, 2), repeat=3) if np.prod(s) > 1])
def test_every_product_of_tensor_pipeline_and_data_parallel(tp, pp, dp):
    check(tp, pp, dp)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tp", "pp", "dp", "virtual"), [(2, 1, 1, None), (1, 2, 1, None), (1, 2, 1, 2), (1, 1, 2, None)]
)
def test_context_parallel_with_every_other(tp, pp, dp, virtual):
    check(tp, pp, dp, cp=2, virtual=virtual)
