"""Run an unmodified Megatron script with an adaptive blend: the one line of a launch script that changes.

    python -m ado_megatron.run PATH/TO/pretrain_gpt.py <the script's own arguments> [--ado-…]
    torchrun  … -m ado_megatron.run PATH/TO/pretrain_gpt.py …
    deepspeed … --module ado_megatron.run PATH/TO/pretrain_gpt.py …

Arguments that begin with --ado- (or --no-ado-) are ours and are taken out; the script sees all others in their order.
With --ado-off, or without this module, the script runs as its authors wrote it. ADO_CPU=1: on a CPU (hosts/cpu.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import runpy
import sys
from collections.abc import Sequence

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError

USAGE = "python -m ado_megatron.run PATH/TO/pretrain_gpt.py <its arguments> [--ado-…]; --ado-help lists our options"


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(ours, the script's): ours begin with --ado- or --no-ado-, with their value if the option takes one."""
    names = [field.name for field in dataclasses.fields(AdoConfig) if field.metadata["kind"] is bool]
    switches = {"--ado-" + name.replace("_", "-") for name in names}
    ours, theirs, take = [], [], False
    for token in argv:
        if token.startswith(("--ado-", "--no-ado-")):
            ours.append(token)
            take = "=" not in token and token not in switches and not token.startswith("--no-ado-")
        elif take:
            ours.append(token)
            take = False
        else:
            theirs.append(token)
    return ours, theirs


def parse(argv: Sequence[str]) -> tuple[AdoConfig, str, list[str]]:
    """(our config, path of the script, the script's arguments). Raises UserError."""
    ours, theirs = split_arguments(argv)
    parser = argparse.ArgumentParser(prog="ado_megatron.run", usage=USAGE, add_help=False, allow_abbrev=False)
    parser.add_argument("--ado-help", action="help", help="list these options")
    AdoConfig.add_arguments(parser)
    config = AdoConfig.from_args(parser.parse_args(ours))
    # the deepspeed launcher puts --local_rank in front of the script's name, where plain python would have it behind
    launcher = [token for token in theirs[:1] if token.startswith("--local_rank=") or token.startswith("--local-rank=")]
    rest = theirs[len(launcher) :]
    if not rest or not os.path.isfile(rest[0]):
        given = f", not {rest[0]!r}" if rest else ""
        raise UserError(f"the first argument must be the path of the training script{given}; usage: {USAGE}")
    return config, rest[0], launcher + rest[1:]


def run(config: AdoConfig, script: str, arguments: Sequence[str]) -> None:
    """Run `script` as __main__ with `arguments`, hooked unless the config says off."""
    from ado_megatron.hosts import cpu, install, recognise
    from ado_megatron.hosts.changeover import say_if_leaving

    # as `python script` would have it: the script's directory first, the directory of this call not at all
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    sys.argv = [script, *arguments]
    if cpu.wanted() or not config.off:
        host, checkout = recognise()
        if cpu.wanted():
            cpu.install(host)
            cpu.after_import(host)
        if not config.off:
            install(host, checkout, config)
    if config.off:
        say_if_leaving(arguments)
    runpy.run_path(script, run_name="__main__")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line. A UserError ends the process with its one sentence and exit code 2."""
    try:
        run(*parse(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"ado_megatron.run: error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
