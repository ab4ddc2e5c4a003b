"""Integrations for unmodified Megatron-LM, Megatron-Bridge and Megatron-DeepSpeed checkouts.

In comes the training script of a framework and our options; out goes the same training with an adaptive blend: the
framework is recognised by its files and hooked in memory, no file of it is edited. The calls, before the script runs:

    framework, checkout = recognise("…/pretrain_gpt.py")
    session = install(framework, checkout, AdoConfig())
    runpy.run_path("…/pretrain_gpt.py", run_name="__main__")

What every framework's hooks do is in hooks.py and session.py; which functions of a framework are hooked, in the module
of its name; what is refused, in exclusions.py; how a run goes on from the framework's own blend, in takeover.py.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from ado_megatron.config import AdoConfig
from ado_megatron.hosts.recognition import MARKS, recognise

if TYPE_CHECKING:
    from ado_megatron.hosts.session import Session

__all__ = ["MARKS", "install", "recognise"]


def install(framework: str, checkout: Path, config: AdoConfig) -> Session:
    """Hook the framework for a run with `config`; returns the session. UserError if a hook point does not fit."""
    from ado_megatron.hosts import console, hooks
    from ado_megatron.hosts.session import Session

    module = importlib.import_module(f"ado_megatron.hosts.{framework}")
    hooks.check(module.HOOK_POINTS, str(checkout))
    console.print_warnings()
    session = Session(config)
    hooks.install(module.wrappers(session))
    return session
