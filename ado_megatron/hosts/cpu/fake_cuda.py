"""torch.cuda answered by the CPU, and NCCL by gloo, so that code written for CUDA runs where there is none."""

from __future__ import annotations

import atexit
import collections
import contextlib
import time
import types
from collections.abc import Callable
from typing import Any

import torch


class Nothing:
    """A CUDA stream or event on a machine that has none: every operation is done when it is asked for."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def query(self) -> bool:
        """All work of the stream is done."""
        return True

    def elapsed_time(self, other: Nothing) -> float:
        """Milliseconds between two events: none passed."""
        return 0.0

    def record_event(self, *args: Any) -> Nothing:
        """An event that has happened."""
        return Nothing()

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def is_cuda(device: Any) -> bool:
    """True for what torch takes as a CUDA device: "cuda…", a torch.device of that type, the number of a device."""
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda") or type(device) is int


def answer_cuda_with_cpu() -> None:
    """Replace what the frameworks ask of torch.cuda, for the rest of the process. Before they are imported."""
    torch.set_num_threads(1)
    _devices()
    _random_state()
    _streams_and_memory()
    _distributed()
    # the training loop asserts that CUDA is there; said only now, after torch itself was imported
    torch.cuda.is_available = lambda: True
    torch.cuda.is_initialized = lambda: True
    # a build of torch with CUDA would start a thread that pins batches, and that asks the driver
    torch.accelerator.is_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *args, **kwargs: True
    torch.cuda.current_blas_handle = lambda: 0
    torch.cuda.get_arch_list = lambda: []
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        if hasattr(torch.optim.Optimizer, name):
            setattr(torch.optim.Optimizer, name, lambda self: None)


_FACTORIES = (
    "zeros empty ones full tensor arange randn rand randint as_tensor zeros_like empty_like ones_like full_like "
    "linspace eye"
).split()


def _on_cpu(function: Callable) -> Callable:
    """A factory of tensors that makes on the CPU what is asked for on the device, and pins nothing."""

    def call(*args, **kwargs):
        if is_cuda(kwargs.get("device")):
            kwargs["device"] = torch.device("cpu")
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return function(*args, **kwargs)

    return call


def _devices() -> None:
    """`cuda` as a device means the CPU; pinning and moving to the device do nothing."""
    cpu = torch.device("cpu")
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.cuda.current_device = lambda: cpu
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.pin_memory = lambda self, *args, **kwargs: self
    move, kind = torch.Tensor.to, torch.Tensor.type

    def to(self, *args, **kwargs):
        args = tuple(cpu if is_cuda(x) and type(x) is not int else x for x in args)
        if is_cuda(kwargs.get("device")):
            kwargs["device"] = cpu
        return move(self, *args, **kwargs)

    def type_(self, *args, **kwargs):
        # the optimizers recognise their parameters by the name torch.cuda.FloatTensor
        name = kind(self, *args, **kwargs)
        return name if args or kwargs or "cuda" in name else name.replace("torch.", "torch.cuda.", 1)

    torch.Tensor.to, torch.Tensor.type = to, type_


def _random_state() -> None:
    """The CPU generator stands for the device's. cuda.manual_seed must not become torch.manual_seed: that recurses."""
    cuda = torch.cuda
    cuda.manual_seed = lambda seed: torch.default_generator.manual_seed(int(seed))
    cuda.manual_seed_all = lambda seed: None
    cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    cuda.random.get_rng_state, cuda.random.set_rng_state = cuda.get_rng_state, cuda.set_rng_state
    cuda.default_generators = collections.defaultdict(lambda: torch.default_generator)
    cuda._lazy_init = lambda: None
    cuda._lazy_call = lambda function, **kwargs: function()


def _streams_and_memory() -> None:
    """One device of 16 GiB that is always idle and always empty."""
    cuda = torch.cuda
    cuda.Stream = cuda.Event = Nothing
    cuda.stream = lambda stream=None: contextlib.nullcontext()
    cuda.current_stream = cuda.default_stream = lambda *args, **kwargs: Nothing()
    for name in ("synchronize", "empty_cache", "set_device"):
        setattr(cuda, name, lambda *args, **kwargs: None)
    cuda.nvtx.range_push = cuda.nvtx.range_pop = lambda *args, **kwargs: 0
    for name in ("allocated", "reserved"):
        setattr(cuda, f"memory_{name}", lambda *args, **kwargs: 0)
        setattr(cuda, f"max_memory_{name}", lambda *args, **kwargs: 0)
    cuda.reset_peak_memory_stats = lambda *args, **kwargs: None
    cuda.memory_stats = lambda *args, **kwargs: collections.defaultdict(int)
    cuda.device_count = lambda: 1
    cuda.get_device_capability = lambda *args, **kwargs: (8, 0)
    cuda.get_device_name = lambda *args, **kwargs: "cpu"
    properties = types.SimpleNamespace(total_memory=1 << 34, major=8, minor=0, name="cpu", multi_processor_count=1)
    cuda.get_device_properties = lambda *args, **kwargs: properties


def _distributed() -> None:
    """gloo for every group that would be NCCL, and no device ids."""
    # The frameworks end right behind an all-gather of their timers. If gloo's thread comes to free it only when Python
    # is ending already, the process aborts ("terminate called without an active exception"): let the thread come first.
    atexit.register(time.sleep, 0.2)
    distributed = torch.distributed
    start, barrier = distributed.init_process_group, distributed.barrier

    def init_process_group(backend=None, **kwargs):
        kwargs.pop("device_id", None)
        return start("gloo", **kwargs)

    def wait(*args, **kwargs):
        kwargs.pop("device_ids", None)
        return barrier(*args, **kwargs)

    distributed.init_process_group, distributed.barrier = init_process_group, wait
