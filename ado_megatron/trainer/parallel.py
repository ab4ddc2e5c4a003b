"""Process groups of DeepSpeed and megatron-core that agree, and random states that need no checkpoint.

Both libraries order ranks alike: pipeline stage outermost, data-parallel rank in the middle, tensor-parallel rank
innermost.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import deepspeed
import deepspeed.ops
import megatron.core.tensor_parallel.random as megatron_random
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.activation_checkpointing import checkpointing
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from megatron.core import parallel_state

from ado_megatron.trainer.options import TrainerOptions

_MODEL_PARALLEL_STREAM = (
    "model-parallel-rng"  # the name both libraries give the generator that differs between tensor ranks
)


@dataclass(frozen=True)
class ParallelRank:
    """Where this process stands. contributes: whether its losses belong in the world's sum; reads: whether it needs
    batches."""

    rank: int
    world_size: int
    tp_rank: int
    pp_rank: int
    dp_rank: int
    dp: int
    pp: int
    device: torch.device
    topology: PipeModelDataParallelTopology

    @property
    def is_last_stage(self) -> bool:
        """Whether the loss is computed here."""
        return self.pp_rank == self.pp - 1

    @property
    def contributes(self) -> bool:
        """Whether the losses of this rank belong in the world's sum."""
        return self.is_last_stage and self.tp_rank == 0

    @property
    def reads(self) -> bool:
        """Whether this rank needs batches."""
        return self.pp_rank == 0 or self.is_last_stage


def set_up(options: TrainerOptions) -> ParallelRank:
    """Initialise torch.distributed (unless it is), both libraries' groups and one random-state tracker for both.

    Raises UserError when the world cannot be split as the options ask.
    """
    # DeepSpeed asks here whether it may compile a shared-memory operator for inference on a CPU (one to two minutes in
    # the first start). Its own answer would be found by trying to link every operator it has.
    deepspeed.ops.__compatible_ops__ = {}
    accelerator = get_accelerator()
    accelerator.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # before any group, which binds to the current device
    deepspeed.init_distributed(accelerator.communication_backend_name(), verbose=False)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    dp = options.check_world(world_size)
    topology = PipeModelDataParallelTopology(num_pp=options.pp, num_mp=options.tp, num_dp=dp)
    parallel_state.initialize_model_parallel(options.tp, options.pp)
    here = topology.get_coord(rank)
    theirs = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
    )
    if (here.pipe, here.data, here.model) != theirs:
        raise RuntimeError(f"rank {rank} is {here} for DeepSpeed but (pipe, data, model) = {theirs} for megatron-core")
    # megatron-core's own tracker is for CUDA alone; DeepSpeed's goes through the accelerator.
    megatron_random._CUDA_RNG_STATE_TRACKER = checkpointing.get_cuda_rng_tracker()
    megatron_random._CUDA_RNG_STATE_TRACKER_INITIALIZED = True
    device = torch.device(accelerator.current_device_name())
    place = ParallelRank(rank, world_size, here.model, here.pipe, here.data, dp, options.pp, device, topology)
    seed_step(options, place, 0)
    return place


def seed_step(options: TrainerOptions, place: ParallelRank, step: int) -> None:
    """Random states of a step as a function of (seed, step, place): a resumed run drops the same units as an unbroken
    one."""
    seed = (options.seed * 1_000_003 + step) * 4099 + place.pp_rank * 64 + place.dp_rank * 8191
    get_accelerator().manual_seed(seed % 2**63)
    tracker = checkpointing.get_cuda_rng_tracker()
    tracker.reset()
    tracker.add(_MODEL_PARALLEL_STREAM, (seed * 2 + 2719 + place.tp_rank) % 2**63)


def tear_down() -> None:
    """Leave all groups; call once, when every rank is done."""
    torch.distributed.barrier()
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()
