"""What Megatron-LM (core_v0.16.1, main d98e8a6) needs on a CPU, beside a torch.cuda that answers.

Legend: s positions of the whole sequence, n context-parallel ranks, b samples of a micro-batch.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import typing
from collections.abc import Callable
from typing import Any

import torch

from ado_megatron.hosts.cpu.fake_cuda import answer_cuda_with_cpu


def before_import() -> None:
    """A torch.cuda that answers, functions run eagerly, and what Python 3.11 lacks."""
    # torch.compile needs a C++ toolchain for every fused function: far slower than running them once, eagerly
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if not hasattr(typing, "override"):  # Python 3.11
        import typing_extensions

        vars(typing)["override"] = typing_extensions.override
        spare_children_the_script()
    answer_cuda_with_cpu()


def after_import() -> None:
    """No fused kernels, attention over context-parallel ranks, sends that keep their tensors, torch's Adam resumed."""
    _skip_fused_kernels()
    _attend_across_ranks()
    keep_what_is_being_sent()
    _resume_with_the_adam_of_torch()


def spare_children_the_script() -> None:
    """Spawned children (checkpoint writers) import the script again, where typing.override is still missing."""
    from multiprocessing import spawn

    stock = spawn.get_preparation_data

    def get_preparation_data(name):
        data = stock(name)
        data.pop("init_main_from_path", None)
        return data

    spawn.get_preparation_data = get_preparation_data


def _skip_fused_kernels() -> None:
    """Up to core 0.16 the start-up builds CUDA kernels with nvcc; the unfused paths do not need them."""
    for package in ("megatron.legacy", "megatron.legacy.fused_kernels"):
        if importlib.util.find_spec(package) is None:
            return
    import megatron.legacy.fused_kernels as fused_kernels

    fused_kernels.load = lambda args: None


class GatheredAttention(torch.nn.Module):
    """Causal attention over all context-parallel ranks; queries, keys and values are [s/n, b, heads, d].

    Each rank holds chunks r and 2n−1−r of the sequence, as Megatron cuts it for causal masks.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        super().__init__()
        from megatron.core import parallel_state

        self.config, self.group = config, parallel_state.get_context_parallel_group()

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """[s/n, b, heads·d]: the rank's own positions, attending to those of every rank before them."""
        from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region as gather

        n, chunk = self.group.size(), query.shape[0] // 2

        def positions(rank):
            ends = (rank, 2 * n - 1 - rank)
            return torch.cat([torch.arange(end * chunk, (end + 1) * chunk) for end in ends])

        mine = positions(self.group.rank())
        everyone = torch.cat([positions(rank) for rank in range(n)])
        key, value = gather(key.contiguous(), group=self.group), gather(value.contiguous(), group=self.group)
        score = torch.einsum("qbhd,kbhd->bhqk", query, key) / query.shape[-1] ** 0.5
        weight = score.masked_fill(everyone[None, :] > mine[:, None], float("-inf")).softmax(-1)
        context = torch.einsum("bhqk,kbhd->qbhd", weight, value)
        return context.reshape(*query.shape[:2], -1)


def _attend_across_ranks() -> None:
    """Context parallelism without Transformer Engine: local attention refuses it, so keys and values are gathered."""
    from megatron.core.transformer import dot_product_attention as module

    stock = module.DotProductAttention

    def choose(config, *args, **kwargs):
        return (GatheredAttention if config.context_parallel_size > 1 else stock)(config, *args, **kwargs)

    for name in ("models.gpt.gpt_layer_specs", "models.backends"):
        user = vars(importlib.import_module(f"megatron.core.{name}"))
        if "DotProductAttention" in user:
            user["DotProductAttention"] = _class_that(choose, stock)


def _class_that(choose: Callable, stock: type) -> type:
    """A subclass of `stock` (specs want a class) whose construction is `choose`."""
    return type(stock.__name__, (stock,), {"__new__": staticmethod(lambda cls, *a, **k: choose(*a, **k))})


def keep_what_is_being_sent() -> None:
    """The interleaved schedule frees an activation (`out.data = …`) before its send was waited for.

    On a GPU the stream orders NCCL's copy before the memory is used again; gloo reads it when the receiver is ready,
    and by then it is often something else: NaN or wrong losses in most stock runs of PP2 with virtual PP2
    (core_v0.16.1; main has the same lines). A second tensor over the storage, held by the send, keeps it alive.
    """
    from megatron.core.pipeline_parallel import p2p_communication as module

    stock = module._p2p_ops

    def p2p_ops(**tensors):
        for name in ("tensor_send_prev", "tensor_send_next"):
            if tensors[name] is not None:
                tensors[name] = tensors[name].detach()
        return stock(**tensors)

    module._p2p_ops = p2p_ops


def _resume_with_the_adam_of_torch() -> None:
    """The distributed optimizer cannot resume what it saved if Adam is torch's (no Apex, no Transformer Engine).

    It asks an optimizer that never stepped for its step (an assertion fails), copies into views of fp32 parameters
    that require grad, and counts the loaded optimizer's steps from 0 again.
    """
    from megatron.core.optimizer import distrib_optimizer as module

    if module.HAVE_APEX_OR_TE:
        return
    optimizer = module.DistributedOptimizer
    state_dict, load_state_dict = optimizer.state_dict, optimizer.load_state_dict

    def parameters(self):
        return [(parameter, group) for group in self.optimizer.param_groups for parameter in group["params"]]

    def with_a_step(self):
        for parameter, _ in parameters(self):
            if not self.optimizer.state[parameter]:
                zeros = {name: torch.zeros_like(parameter.data) for name in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {"step": torch.tensor(0.0), **zeros}
        return state_dict(self)

    def with_the_saved_step(self, state):
        with torch.no_grad():
            load_state_dict(self, state)
        for parameter, group in parameters(self):
            self.optimizer.state[parameter]["step"] = torch.tensor(float(group["step"]))

    optimizer.state_dict, optimizer.load_state_dict = with_a_step, with_the_saved_step
