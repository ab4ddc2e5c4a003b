"""Which Adam: the real apex where it is, DeepSpeed's on CUDA, torch's elsewhere; stand-ins for what is not here."""

import importlib.util
import sys
import types

import pytest
import torch

from ado_megatron.trainer.optimizer import make_optimizer, parameter_groups

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Recorded:
    def __init__(self, groups, **options):
        self.groups, self.options = groups, options


@pytest.fixture
def groups():
    return parameter_groups(torch.nn.Linear(3, 2), 0.1)


@pytest.fixture
def spec(monkeypatch):
    """Says which modules are found."""
    found = importlib.util.find_spec

    def install(*names):
        present = lambda name: object() if name in names else None if name == "amp_C" else found(name)  # noqa: E731
        monkeypatch.setattr(importlib.util, "find_spec", present)

    return install


def stand_in(monkeypatch, module: str, adam) -> None:
    for depth in range(1, module.count(".") + 2):
        name = ".".join(module.split(".")[:depth])
        if name not in sys.modules or name == module:
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[module].FusedAdam = adam


def test_matrices_decay_and_vectors_do_not(groups):
    assert [(group["weight_decay"], [tuple(p.shape) for p in group["params"]]) for group in groups] == [
        (0.1, [(2, 3)]),
        (0.0, [(2,)]),
    ]


def test_torch_on_a_cpu_even_where_apex_is_installed(groups, spec):
    spec("amp_C")
    optimizer, name = make_optimizer(groups, 0.5, CPU)
    assert type(optimizer) is torch.optim.AdamW and name == "torch AdamW"
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


def test_the_real_apex_first(groups, spec, monkeypatch):
    spec("amp_C")
    stand_in(monkeypatch, "apex.optimizers", Recorded)
    optimizer, name = make_optimizer(groups, 0.5, CUDA)
    assert isinstance(optimizer, Recorded) and optimizer.options["adam_w_mode"] and name == "NVIDIA apex FusedAdam"


def test_an_apex_without_its_compiled_module_is_the_wrong_one(groups, spec, monkeypatch):
    spec()
    stand_in(monkeypatch, "apex.optimizers", Recorded)
    stand_in(monkeypatch, "deepspeed.ops.adam", type("DeepSpeeds", (Recorded,), {}))
    optimizer, name = make_optimizer(groups, 0.5, CUDA)
    assert type(optimizer).__name__ == "DeepSpeeds" and name == "DeepSpeed FusedAdam"


def test_torch_where_deepspeeds_cannot_be_compiled_and_the_log_says_why(groups, spec, monkeypatch):
    from deepspeed.ops.op_builder.builder import MissingCUDAException

    def refuse(*_, **__):
        raise MissingCUDAException("CUDA_HOME does not exist\nand more")

    spec()
    stand_in(monkeypatch, "deepspeed.ops.adam", refuse)
    optimizer, name = make_optimizer(groups, 0.5, CUDA)
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["fused"]
    assert "torch AdamW, fused" in name and "CUDA_HOME does not exist" in name and "\n" not in name
