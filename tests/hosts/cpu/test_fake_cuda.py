"""Code that asks for CUDA runs on a CPU. In a process of its own, since torch.cuda stays replaced."""

import subprocess
import sys

import torch

from ado_megatron.hosts.cpu.fake_cuda import is_cuda
from tests.kit.host_runs import ROOT

PROGRAM = """
from ado_megatron.hosts.cpu.fake_cuda import answer_cuda_with_cpu
import torch
answer_cuda_with_cpu()
made = torch.zeros(3, device="cuda", pin_memory=True)
moved = torch.ones(3).cuda().to("cuda:0").to(device="cuda", dtype=torch.float64)
assert made.device.type == moved.device.type == "cpu" and moved.dtype is torch.float64
assert torch.ones(3).to(torch.int64).dtype is torch.int64
assert made.type() == "torch.cuda.FloatTensor" and torch.cuda.is_available() and torch.cuda.device_count() == 1
torch.cuda.manual_seed(3)
state = torch.cuda.get_rng_state()
first = torch.rand(2, device=torch.cuda.current_device())
torch.cuda.set_rng_state(state)
assert torch.equal(first, torch.rand(2))
with torch.cuda.stream(torch.cuda.Stream()):
    event = torch.cuda.current_stream().record_event()
event.synchronize()
assert event.query() and event.elapsed_time(event) == 0.0 and torch.cuda.memory_allocated() == 0
torch.distributed.init_process_group("nccl", rank=0, world_size=1, store=torch.distributed.HashStore())
assert torch.distributed.get_backend() == "gloo" and not torch.accelerator.is_available()
torch.distributed.barrier(device_ids=[0])
"""


def test_what_is_asked_of_cuda_is_done_by_the_cpu():
    line = [sys.executable, "-W", "error", "-c", PROGRAM]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_devices_are_told_apart():
    assert [is_cuda(d) for d in ("cuda", "cuda:1", torch.device("cuda", 0), 0)] == [True] * 4
    assert [is_cuda(d) for d in ("cpu", torch.device("cpu"), None, True, torch.float32)] == [False] * 5
