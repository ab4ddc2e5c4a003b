"""What Megatron-DeepSpeed (4efb479) needs on a CPU, beside DeepSpeed's own CPU accelerator."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import inspect
import os
import sys
import types
from collections.abc import Sequence

import torch


def before_import() -> None:
    """DeepSpeed's accelerator, imports of 4efb479 that today's packages lack, no C++ build of its shm collectives.

    deepspeed 0.19.7 dropped compression.compress, and the vision code of the framework imports torchvision.
    """
    os.environ["DS_ACCELERATOR"] = "cpu"
    # transformers asks whether torchvision is installed; let it find out before the stand-in exists
    with contextlib.suppress(ImportError):
        import transformers.utils.import_utils  # noqa: F401
    sys.meta_path.append(StubFinder(("deepspeed.compression.compress", "torchvision")))
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def after_import() -> None:
    """Attention that takes strided tensors and, for Ulysses, today's DeepSpeed."""
    _contiguous_attention()
    _sequence_parallel_attention()


class StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Offers stand-ins for modules that a framework imports but does not use here, if nobody else has them.

    It stands last on sys.meta_path, so an installed module always wins; `names` are module prefixes.
    """

    def __init__(self, names: Sequence[str]):
        self.names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A package for one of the names or below it, else None (the import fails as it would without us)."""
        if any(name == known or name.startswith(known + ".") for known in self.names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """A module in which every name is an empty class."""
        module = types.ModuleType(spec.name)
        module.__path__ = []
        vars(module)["__getattr__"] = lambda attribute: _stub_attribute(spec.name, attribute)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


def _stub_attribute(module: str, attribute: str) -> type:
    if attribute.startswith("__"):
        raise AttributeError(attribute)
    return type(attribute, (), {"__module__": module})


def _contiguous_attention() -> None:
    """transformer.py views a strided tensor as another shape when the micro-batch is above one."""
    import megatron.model.transformer as transformer

    forward = transformer.CoreAttention.forward

    def contiguous(self, query, key, value, mask):
        return forward(self, query.contiguous(), key.contiguous(), value.contiguous(), mask)

    transformer.CoreAttention.forward = contiguous


def _sequence_parallel_attention() -> None:
    """Ulysses without flash attention: 4efb479 calls an older deepspeed, which took the mask as fourth argument.

    0.19 wants the index of the batch dimension there, the mask behind, and queries and results by heads alike.
    """
    from deepspeed.sequence.layer import DistributedAttention
    from megatron.core import parallel_state
    from megatron.model.transformer import CoreAttention

    core, distributed = CoreAttention.forward, DistributedAttention.forward
    if "batch_dim_idx" not in inspect.signature(distributed).parameters:
        return  # a deepspeed that takes the mask there

    def by_heads(self, query, *rest):  # [s, b, heads, d] → [s, b, heads·d], as a part of it [s, b, heads, d]
        context = core(self, query, *rest)
        return context.view(query.shape) if parallel_state.get_sequence_parallel_world_size() > 1 else context

    def forward(self, query, key, value, mask, *args, **kwargs):
        if not isinstance(mask, torch.Tensor):
            return distributed(self, query, key, value, mask, *args, **kwargs)
        return distributed(self, query, key, value, 1, None, mask, *args, **kwargs).flatten(2)

    gather = torch.distributed.all_gather_into_tensor

    def flat(output_tensor, input_tensor, *args, **kwargs):
        if output_tensor.dim() != input_tensor.dim():  # the losses; NCCL counts elements alone, gloo refuses
            output_tensor, input_tensor = output_tensor.view(-1), input_tensor.reshape(-1)
        return gather(output_tensor, input_tensor, *args, **kwargs)

    CoreAttention.forward, DistributedAttention.forward = by_heads, forward
    torch.distributed.all_gather_into_tensor = flat
