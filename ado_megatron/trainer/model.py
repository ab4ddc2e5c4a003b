"""A GPT as layers of a DeepSpeed pipeline: Embed, Block × L, FinalNorm, Head over megatron-core's tensor-parallel
layers.

One activation of shape [L tokens, B samples, hidden] passes between layers; the input is token ids [B, L], the output
logits [L, B, vocabulary / tp].
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from typing import Any

import torch
from deepspeed.pipe import LayerSpec, PipelineModule
from megatron.core import tensor_parallel
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig

from ado_megatron.trainer.options import TrainerOptions
from ado_megatron.trainer.parallel import ParallelRank


class Embed(LanguageModelEmbedding):
    """Token and learned position embeddings: ids [B, L] → [L, B, hidden]."""

    def __init__(self, config: TransformerConfig, vocab_size: int, seq_length: int) -> None:
        super().__init__(config, vocab_size, seq_length, position_embedding_type="learned_absolute")

    def forward(self, ids_BxL: torch.Tensor) -> torch.Tensor:
        """Ids [B, L] → [L, B, hidden]."""
        position_1xL = torch.arange(ids_BxL.size(1), device=ids_BxL.device)[None]
        return super().forward(ids_BxL, position_1xL)


class CausalAttention(torch.nn.Module):
    """megatron-core's core_attention over torch's scaled dot product: no call of torch.cuda, flash kernels where there
    are some."""

    def __init__(
        self, config: TransformerConfig, layer_number: int, attn_mask_type: Any, attention_type: str, **_: Any
    ) -> None:
        super().__init__()
        self.dropout = config.attention_dropout

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None, **_: Any
    ) -> torch.Tensor:
        """Each [L, B, heads / tp, head size] → [L, B, hidden / tp]."""
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        dropout = self.dropout if self.training else 0.0
        # Heads are split over tensor ranks, so their dropout comes from the generator that differs between those.
        with tensor_parallel.get_cuda_rng_tracker().fork() if dropout else contextlib.nullcontext():
            out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout)
        return out.permute(2, 0, 1, 3).reshape(out.size(2), out.size(0), -1)


class Block(torch.nn.Module):
    """One transformer layer, [L, B, hidden] → [L, B, hidden]."""

    def __init__(self, config: TransformerConfig, number: int) -> None:
        super().__init__()
        spec = get_gpt_layer_local_spec()
        spec.submodules.self_attention.submodules.core_attention = CausalAttention
        self.layer = build_module(spec, config=config, layer_number=number)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Shape [L, B, hidden]."""
        return self.layer(hidden, attention_mask=None)[0]


class FinalNorm(torch.nn.Module):
    """Layer norm before the head."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = WrappedTorchNorm(config, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Shape [L, B, hidden]."""
        return self.norm(hidden)


class Head(torch.nn.Module):
    """Output layer, its own weights, the vocabulary split over tensor ranks."""

    def __init__(self, config: TransformerConfig, vocab_size: int) -> None:
        super().__init__()
        self.out = tensor_parallel.ColumnParallelLinear(
            config.hidden_size,
            vocab_size,
            config=config,
            init_method=config.init_method,
            bias=False,
            gather_output=False,
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[L, B, hidden] → [L, B, vocabulary / tp]."""
        return self.out(hidden)[0]


def padded_vocab_size(vocab_size: int, tp: int) -> int:
    """The least multiple of 128 and of tp that holds the vocabulary; for tp a power of two up to 128 the same at any
    tp."""
    return -(-vocab_size // math.lcm(128, tp)) * math.lcm(128, tp)


def make_config(options: TrainerOptions) -> TransformerConfig:
    """megatron-core's configuration. pipeline_model_parallel_size stays 1: the pipeline is DeepSpeed's."""
    return TransformerConfig(
        num_layers=options.layers,
        hidden_size=options.hidden,
        num_attention_heads=options.heads,
        tensor_model_parallel_size=options.tp,
        params_dtype=torch.bfloat16 if options.bf16 else torch.float32,
        bf16=options.bf16,
        use_cpu_initialization=True,  # a master weight drawn on the CPU and cut: the same weights in every layout
        hidden_dropout=options.dropout,
        attention_dropout=options.dropout,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        gradient_accumulation_fusion=False,
    )


def make_model(options: TrainerOptions, place: ParallelRank, vocab_size: int, loss_fn: Callable) -> PipelineModule:
    """The pipeline module of this rank. Initial weights depend on the seed and the layer's number, not on the
    layout."""
    config = make_config(options)
    padded = padded_vocab_size(vocab_size, options.tp)
    layers = [LayerSpec(Embed, config, padded, options.seq_length)]
    layers += [LayerSpec(Block, config, number + 1) for number in range(options.layers)]
    layers += [LayerSpec(FinalNorm, config), LayerSpec(Head, config, padded)]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its layers
        model = PipelineModule(
            layers,
            topology=place.topology,
            loss_fn=loss_fn,
            seed_layers=True,
            seed_fn=torch.manual_seed,
            base_seed=options.seed,
            partition_method="type:Block",
            checkpointable_layers=["Block"],
            activation_checkpoint_interval=1 if options.recompute else 0,
        )
    # Seeds were for the initial weights. In training DeepSpeed would seed every layer by a count of micro-batches that
    # it keeps in no checkpoint; parallel.seed_step does it instead.
    model.seed_layers = False
    return model
