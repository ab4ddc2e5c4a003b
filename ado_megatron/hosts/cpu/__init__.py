"""Running a framework on a CPU: compatibility measures, off unless ADO_CPU=1.

The Megatrons are written for CUDA. With these measures their own `pretrain_gpt.py` trains a small model over gloo,
which is enough to rehearse a cluster job (launch/cpu_smoke.sh) and to test the hooks. None of them changes a file of a
checkout, and none is for real training: torch.cuda is answered by the CPU (fake_cuda), so nothing may rely on its
timings or memory. In comes the name of a framework, out goes a process in which its script runs; the one call is

    if cpu.wanted():
        cpu.install("megatron_lm")       # before the framework is imported
        cpu.after_import("megatron_lm")  # its modules can be imported, its script has not begun
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

CPU_VARIABLE = "ADO_CPU"


def wanted() -> bool:
    """True if the environment asks for these measures (ADO_CPU=1)."""
    return os.environ.get(CPU_VARIABLE, "0") not in ("", "0")


def install(framework: str) -> None:
    """Apply what `framework` ("megatron_lm", "megatron_bridge" or "megatron_deepspeed") needs before it is imported."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _measures(framework).before_import()


def after_import(framework: str) -> None:
    """Measures that need the framework's own modules: once they can be imported, before the script runs."""
    _measures(framework).after_import()


def _measures(framework: str) -> ModuleType:
    """The module of this package that is named like the framework."""
    return importlib.import_module(f"{__name__}.{framework}")
