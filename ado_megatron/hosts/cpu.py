"""Running a host on a CPU: every compatibility measure, in one file, off unless ADO_CPU=1.

The two Megatrons are written for CUDA. With these measures their own `pretrain_gpt.py` trains a small model over gloo,
which is enough to rehearse a cluster job (launch/cpu_smoke.sh) and to test the hooks. None of them changes a host's
file, and none is for real training: torch.cuda is answered by the CPU, so nothing may rely on its timings or memory.
"""

import atexit
import collections
import contextlib
import importlib.machinery
import importlib.util
import inspect
import os
import sys
import time
import types
import typing

CPU_VARIABLE = "ADO_CPU"


def wanted() -> bool:
    """True if the environment asks for these measures (ADO_CPU=1)."""
    return os.environ.get(CPU_VARIABLE, "0") not in ("", "0")


def install(host: str) -> None:
    """Apply what `host` ("megatron_deepspeed" or "megatron_lm") needs. Call before the host is imported."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if host == "megatron_deepspeed":
        os.environ["DS_ACCELERATOR"] = "cpu"
        _prepare_deepspeed()
    else:
        # torch.compile needs a C++ toolchain for every fused function: far slower than running them once, eagerly
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        _answer_cuda_with_cpu()


def after_import(host: str) -> None:
    """Measures that need the host's own modules: call once they can be imported, before the script runs."""
    if host == "megatron_deepspeed":
        _contiguous_attention()
        _sequence_parallel_attention()
    else:
        _skip_fused_kernels()
        _attend_across_ranks()
        _keep_what_is_being_sent()
        _resume_with_the_adam_of_torch()


# ---- Megatron-DeepSpeed


class _StubFinder:
    """Offers stand-ins for modules that a host imports but does not use here, if nobody else has them.

    It stands last on sys.meta_path, so an installed module always wins; `names` are module prefixes.
    """

    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if any(name == known or name.startswith(known + ".") for known in self.names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []
        module.__getattr__ = lambda attribute: _stub_attribute(spec.name, attribute)
        return module

    def exec_module(self, module):
        pass


def _stub_attribute(module, attribute):
    if attribute.startswith("__"):
        raise AttributeError(attribute)
    return type(attribute, (), {"__module__": module})


def _prepare_deepspeed():
    """Imports of 4efb479 that today's packages lack, and no C++ build of the shared-memory collectives."""
    # transformers asks whether torchvision is installed; let it find out before the stand-in exists
    with contextlib.suppress(ImportError):
        import transformers.utils.import_utils  # noqa: F401
    # deepspeed 0.19.7 dropped compression.compress; the vision code of the host imports torchvision
    sys.meta_path.append(_StubFinder(("deepspeed.compression.compress", "torchvision")))
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _contiguous_attention():
    """transformer.py views a strided tensor as another shape when the micro-batch is above one."""
    import megatron.model.transformer as transformer

    forward = transformer.CoreAttention.forward

    def contiguous(self, query, key, value, mask):
        return forward(self, query.contiguous(), key.contiguous(), value.contiguous(), mask)

    transformer.CoreAttention.forward = contiguous


def _sequence_parallel_attention():
    """Ulysses without flash attention: 4efb479 calls an older deepspeed, which took the mask as fourth argument.

    0.19 wants the index of the batch dimension there, the mask behind, and queries and results by heads alike.
    """
    import torch
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


# ---- Megatron-LM


class _Nothing:
    """A CUDA stream or event on a machine that has none: every operation is done when it is asked for."""

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return False

    def query(self):
        return True

    def elapsed_time(self, other):
        return 0.0

    def record_event(self, *args):
        return _Nothing()

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def _is_cuda(device):
    import torch

    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda") or type(device) is int


def _answer_cuda_with_cpu():
    import torch

    if not hasattr(typing, "override"):  # Python 3.11
        import typing_extensions

        typing.override = typing_extensions.override
        _spare_children_the_script()
    torch.set_num_threads(1)
    _devices(torch)
    _random_state(torch)
    _streams_and_memory(torch)
    _distributed(torch)
    # the training loop asserts that CUDA is there; said only now, after torch itself was imported
    torch.cuda.is_available = lambda: True
    torch.cuda.is_initialized = lambda: True
    torch.cuda.is_bf16_supported = lambda *args, **kwargs: True
    torch.cuda.current_blas_handle = lambda: 0
    torch.cuda.get_arch_list = lambda: []
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        if hasattr(torch.optim.Optimizer, name):
            setattr(torch.optim.Optimizer, name, lambda self: None)


def _spare_children_the_script():
    """Spawned children (checkpoint writers) import the script again, where typing.override is still missing."""
    from multiprocessing import spawn

    stock = spawn.get_preparation_data

    def get_preparation_data(name):
        data = stock(name)
        data.pop("init_main_from_path", None)
        return data

    spawn.get_preparation_data = get_preparation_data


_FACTORIES = (
    "zeros empty ones full tensor arange randn rand randint as_tensor zeros_like empty_like ones_like full_like "
    "linspace eye"
).split()


def _devices(torch):
    """`cuda` as a device means the CPU; pinning and moving to the device do nothing."""
    cpu = torch.device("cpu")

    def on_cpu(function):
        def call(*args, **kwargs):
            if _is_cuda(kwargs.get("device")):
                kwargs["device"] = cpu
            if kwargs.get("pin_memory"):
                kwargs["pin_memory"] = False
            return function(*args, **kwargs)

        return call

    for name in _FACTORIES:
        setattr(torch, name, on_cpu(getattr(torch, name)))
    torch.cuda.current_device = lambda: cpu
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.pin_memory = lambda self, *args, **kwargs: self
    move, kind = torch.Tensor.to, torch.Tensor.type

    def to(self, *args, **kwargs):
        args = tuple(cpu if _is_cuda(x) and type(x) is not int else x for x in args)
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = cpu
        return move(self, *args, **kwargs)

    def type_(self, *args, **kwargs):
        # the optimizers recognise their parameters by the name torch.cuda.FloatTensor
        name = kind(self, *args, **kwargs)
        return name if args or kwargs or "cuda" in name else name.replace("torch.", "torch.cuda.", 1)

    torch.Tensor.to, torch.Tensor.type = to, type_


def _random_state(torch):
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


def _streams_and_memory(torch):
    cuda = torch.cuda
    cuda.Stream = cuda.Event = _Nothing
    cuda.stream = lambda stream=None: contextlib.nullcontext()
    cuda.current_stream = cuda.default_stream = lambda *args, **kwargs: _Nothing()
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


def _distributed(torch):
    """gloo for every group that would be NCCL, and no device ids."""
    # The hosts end right behind an all-gather of their timers. If gloo's thread comes to free it only when Python is
    # ending already, the process aborts ("terminate called without an active exception"): let the thread come first.
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


def _skip_fused_kernels():
    """Up to core 0.16 the start-up builds CUDA kernels with nvcc; the unfused paths do not need them."""
    for package in ("megatron.legacy", "megatron.legacy.fused_kernels"):
        if importlib.util.find_spec(package) is None:
            return
    import megatron.legacy.fused_kernels as fused_kernels

    fused_kernels.load = lambda args: None


def _attend_across_ranks():
    """Context parallelism without Transformer Engine: local attention refuses it, so keys and values are gathered.

    Each rank holds chunks r and 2n−1−r of the sequence (n ranks), as Megatron cuts it for causal masks.
    """
    import torch
    from megatron.core.transformer import dot_product_attention as module

    stock = module.DotProductAttention

    class Attention(torch.nn.Module):
        """Causal attention over all context-parallel ranks; queries, keys and values are [s/n, b, heads, d]."""

        def __init__(self, config, *args, **kwargs):
            super().__init__()
            from megatron.core import parallel_state

            self.config, self.group = config, parallel_state.get_context_parallel_group()

        def forward(self, query, key, value, *args, **kwargs):
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

    def choose(config, *args, **kwargs):
        return (Attention if config.context_parallel_size > 1 else stock)(config, *args, **kwargs)

    for name in ("models.gpt.gpt_layer_specs", "models.backends"):
        user = importlib.import_module(f"megatron.core.{name}")
        if hasattr(user, "DotProductAttention"):
            user.DotProductAttention = _class_that(choose, stock)


def _class_that(choose, stock):
    """A subclass of `stock` (specs want a class) whose construction is `choose`."""
    return type(stock.__name__, (stock,), {"__new__": staticmethod(lambda cls, *a, **k: choose(*a, **k))})


def _keep_what_is_being_sent():
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


def _resume_with_the_adam_of_torch():
    """The distributed optimizer cannot resume what it saved if Adam is torch's (no Apex, no Transformer Engine).

    It asks an optimizer that never stepped for its step (an assertion fails), copies into views of fp32 parameters
    that require grad, and counts the loaded optimizer's steps from 0 again.
    """
    import torch
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
