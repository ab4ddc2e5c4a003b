"""The hooks as a patched checkout calls them (patches/, `ado-megatron patch`): by name, in the framework's own files.

    from ado_megatron.hosts import explicit as ado
    ado.start("megatron_lm")                      in the training script, before it imports the framework
    @ado.hook("megatron.training.training:train") above a function, or NAME = ado.hook(…)(NAME) after an import

The wrappers are those of `ado_megatron.run`, so the patched script run plainly trains as the wrapped one does. Where
nothing was started (another script of the checkout, a loader's worker), a hook leaves its function alone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from ado_megatron.errors import UserError

_wrappers: dict[str, Any] = {}


def start(framework: str) -> None:
    """Take our options out of sys.argv and make the hooks live, unless they say --ado-off. Once a process."""
    from ado_megatron.hosts import console, cpu, takeover
    from ado_megatron.hosts.arguments import parse
    from ado_megatron.hosts.session import Session

    try:
        config, script, arguments = parse([sys.argv[0], *sys.argv[1:]])
    except UserError as error:
        console.end_with(error)
    sys.argv[1:] = arguments
    if config.off:
        takeover.say_if_leaving(arguments)
    if cpu.wanted():
        cpu.install(framework)
    if not config.off and not _wrappers:
        console.print_warnings()
        _wrappers.update(importlib.import_module(f"ado_megatron.hosts.{framework}").wrappers(Session(config)))
    if cpu.wanted():
        cpu.after_import(framework)


def hook(name: str) -> Callable[[Any], Any]:
    """Decorator: the hooked function, or the function itself while nothing is started."""

    def decorate(stock: Any) -> Any:
        return _wrappers[name](stock) if name in _wrappers else stock

    return decorate
