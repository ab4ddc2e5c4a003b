"""Our options in the command line of somebody else's script: those that begin with --ado- (or --no-ado-).

Where that script owns its command line, they may also stand in the environment (ADO_OPTIONS="--ado-audit --ado-seed 3")
or in a file of JSON or YAML (--ado-options FILE: {audit: true, seed: 3}). The command line wins, then the environment.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
from collections.abc import Sequence

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.files import parse_json_or_yaml, read_text
from ado_megatron.option_fields import flag_of
from ado_megatron.profiles import PREFIX

VARIABLE = "ADO_OPTIONS"
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
    ours = _from_environment() + ours
    parser = argparse.ArgumentParser(prog="ado_megatron.run", usage=USAGE, add_help=False, allow_abbrev=False)
    parser.add_argument("--ado-help", action="help", help="list these options")
    parser.add_argument("--ado-options", metavar="FILE", help="read options from a file of JSON or YAML: name, value")
    AdoConfig.add_arguments(parser)
    file = parser.parse_args(ours).ado_options
    config = AdoConfig.from_args(parser.parse_args((_from_file(file) if file else []) + ours))
    # the deepspeed launcher puts --local_rank in front of the script's name, where plain python would have it behind
    launcher = [token for token in theirs[:1] if token.startswith("--local_rank=") or token.startswith("--local-rank=")]
    rest = theirs[len(launcher) :]
    if not rest or not os.path.isfile(rest[0]):
        given = f", not {rest[0]!r}" if rest else ""
        raise UserError(f"the first argument must be the path of the training script{given}; usage: {USAGE}")
    return config, rest[0], launcher + rest[1:]


def _from_environment() -> list[str]:
    """The words of ADO_OPTIONS. UserError for one that is not ours."""
    try:
        words = shlex.split(os.environ.get(VARIABLE, ""))
    except ValueError as error:
        raise UserError(f"{VARIABLE} cannot be cut into words ({error}); mend the quotes in it") from error
    foreign = split_arguments(words)[1]
    if foreign:
        raise UserError(f"{VARIABLE} says {foreign[0]!r}, which is no option of ours; they begin with --ado-")
    return words


def _from_file(path: str) -> list[str]:
    """The options of a file, name → value, as words of a command line. UserError, also for a name that is none."""
    values = parse_json_or_yaml(read_text(path, f"the options in {path} cannot be read"), f"the options file {path}")
    names = [field.name for field in dataclasses.fields(AdoConfig)]
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UserError(f"the options file {path} must hold names and values, such as refit_interval: 500")
    words: list[str] = []
    for given, value in values.items():
        name = given.replace("-", "_").removeprefix("ado_")
        if name not in names:
            raise UserError(f"the options file {path} names {given!r}, which is no option; --ado-help lists them")
        flag = flag_of(name, PREFIX)
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        elif value is not None:
            words.append(f"{flag}={value}")
    return words
