"""Run an unmodified Megatron script with an adaptive blend: the one line of a launch script that changes.

    python -m ado_megatron.run PATH/TO/pretrain_gpt.py <the script's own arguments> [--ado-…]
    torchrun  … -m ado_megatron.run PATH/TO/pretrain_gpt.py …
    deepspeed … --module ado_megatron.run PATH/TO/pretrain_gpt.py …

Arguments that begin with --ado- (or --no-ado-) are ours and are taken out; the script sees all others in their order.
With --ado-off, or without this module, the script runs as its authors wrote it. ADO_CPU=1: on a CPU (hosts/cpu/).
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.hosts.arguments import parse


def run(config: AdoConfig, script: str, arguments: Sequence[str]) -> None:
    """Run `script` as __main__ with `arguments`, hooked unless the config says off."""
    from ado_megatron.hosts import cpu, install, recognise
    from ado_megatron.hosts.takeover import say_if_leaving

    # as `python script` would have it: the script's directory first, the directory of this call not at all
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    sys.argv = [script, *arguments]
    if cpu.wanted() or not config.off:
        framework, checkout = recognise(script)
        if cpu.wanted():
            cpu.install(framework)
            cpu.after_import(framework)
        if not config.off:
            install(framework, checkout, config)
    if config.off:
        say_if_leaving(arguments)
    runpy.run_path(script, run_name="__main__")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line. A UserError ends the process with exit code 2 and its one sentence, printed once a run."""
    try:
        run(*parse(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        from ado_megatron.hosts.console import end_with

        end_with(error)


if __name__ == "__main__":
    main()
