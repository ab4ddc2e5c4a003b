"""Which Adam, and the DeepSpeed engine around it."""

from __future__ import annotations

import importlib.util
import logging

import deepspeed
import torch
from deepspeed.ops.op_builder.builder import CUDAMismatchException, MissingCUDAException
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.pipe.engine import PipelineEngine

from ado_megatron.trainer.options import TrainerOptions
from ado_megatron.trainer.parallel import ParallelRank

_BETAS, _EPS = (0.9, 0.95), 1e-8


def parameter_groups(model: PipelineModule, weight_decay: float) -> list[dict]:
    """Matrices decay; biases and norms do not. An empty group is left out: some optimizers refuse it."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(groups: list[dict], lr: float, device: torch.device) -> tuple[torch.optim.Optimizer, str]:
    """NVIDIA apex's FusedAdam where the real apex is installed, DeepSpeed's on CUDA, torch's AdamW elsewhere; and a
    line for the log.

    The package index has an unrelated `apex`; NVIDIA's is known by its compiled module `amp_C`.
    """
    if device.type == "cuda" and importlib.util.find_spec("amp_C") is not None:
        from apex.optimizers import FusedAdam

        return FusedAdam(groups, lr=lr, betas=_BETAS, eps=_EPS, adam_w_mode=True), "NVIDIA apex FusedAdam"
    if device.type == "cuda":
        try:
            from deepspeed.ops.adam import FusedAdam

            return FusedAdam(groups, lr=lr, betas=_BETAS, eps=_EPS, adam_w_mode=True), "DeepSpeed FusedAdam"
        except (
            ImportError,
            RuntimeError,
            OSError,
            MissingCUDAException,
            CUDAMismatchException,
        ) as error:  # it is compiled here, which needs CUDA's compiler
            reason = f"DeepSpeed's FusedAdam does not build here: {str(error).splitlines()[0]}"
        return torch.optim.AdamW(groups, lr=lr, betas=_BETAS, eps=_EPS, fused=True), f"torch AdamW, fused ({reason})"
    return torch.optim.AdamW(groups, lr=lr, betas=_BETAS, eps=_EPS), "torch AdamW"


def engine_config(options: TrainerOptions, dp: int, first_batch: int) -> dict:
    """DeepSpeed's configuration. Nothing of its own is printed or scheduled: the loop does that."""
    config = {
        "train_micro_batch_size_per_gpu": options.micro_batch,
        "gradient_accumulation_steps": first_batch // (options.micro_batch * dp),
        "zero_optimization": {"stage": options.zero},
        "gradient_clipping": options.clip,
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": options.bf16},
    }
    if options.bf16:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def make_engine(
    options: TrainerOptions, place: ParallelRank, model: PipelineModule, lr: float, first_batch: int
) -> tuple[PipelineEngine, str]:
    """The pipeline engine and the name of its optimizer. `first_batch`: samples of the first step."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    optimizer, name = make_optimizer(parameter_groups(model, options.weight_decay), lr, place.device)
    config = engine_config(options, place.dp, first_batch)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine, name
