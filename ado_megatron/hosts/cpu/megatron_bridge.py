"""What Megatron-Bridge (067f987df) needs on a CPU, beside what megatron-core needs (megatron_lm.py).

Bridge imports three packages of NVIDIA wherever it runs. modelopt is pure Python: install it. Of
nvidia_resiliency_ext one name is needed, of transformer_engine those in the annotations of one module; both are
offered to just that import. To the rest, which asks whether they are there, they are absent.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence

import torch

from ado_megatron.hosts.cpu import megatron_lm

LORA = "megatron.bridge.peft.lora_layers"
# what LORA imports after transformer_engine
_BEFORE_LORA = (
    "megatron.core.transformer.moe.moe_utils", "megatron.bridge.peft.adapter_wrapper", "megatron.bridge.peft.lora_merge"
)  # fmt: skip


def before_import() -> None:
    """The measures for megatron-core, and what stands for the packages that a CPU cannot have."""
    megatron_lm.before_import()
    megatron_lm.spare_children_the_script()  # they have none of these measures
    if importlib.util.find_spec("nvidia_resiliency_ext") is None:
        _stand_in("nvidia_resiliency_ext.inprocess", CallWrapper=type("CallWrapper", (), {}))
    if importlib.util.find_spec("transformer_engine") is None:
        sys.meta_path.insert(0, _LoraFinder())


def after_import() -> None:
    """As for Megatron-LM."""
    megatron_lm.after_import()


def _stand_in(name: str, **contents: object) -> list[str]:
    """Put a module with `contents` and the packages above it into sys.modules; returns their names."""
    parts = name.split(".")
    names = [".".join(parts[: n + 1]) for n in range(len(parts))]
    modules = [types.ModuleType(one) for one in names]
    for package, module in zip(modules, modules[1:], strict=False):
        vars(package).update({"__path__": [], module.__name__.rpartition(".")[2]: module})
    vars(modules[-1]).update(contents)
    sys.modules.update(zip(names, modules, strict=True))
    return names


class _LoraFinder(importlib.abc.MetaPathFinder):
    """Finds LORA where it lies. While it is executed, and no longer, there is a transformer_engine."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of LORA, else None."""
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if name == LORA else None
        if spec is not None and spec.loader is not None:
            stock = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                for other in _BEFORE_LORA:
                    importlib.import_module(other)
                ops = types.SimpleNamespace(Sequential=torch.nn.Sequential)
                names = _stand_in("transformer_engine.pytorch", ops=ops, Linear=type(None), LayerNormLinear=type(None))
                try:
                    stock(module)
                finally:
                    for one in names:
                        del sys.modules[one]

            vars(spec.loader)["exec_module"] = exec_module
        return spec
