"""Our options in the command line of somebody else's script: those that begin with --ado- (or --no-ado-)."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.option_fields import flag_of
from ado_megatron.profiles import PREFIX

USAGE = "python -m ado_megatron.run PATH/TO/pretrain_gpt.py <its arguments> [--ado-…]; --ado-help lists our options"


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(ours, the script's): ours begin with --ado- or --no-ado-, with their value if the option takes one."""
    names = [field.name for field in dataclasses.fields(AdoConfig) if field.metadata["kind"] is bool]
    switches = {flag_of(name, PREFIX) for name in names}
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
