"""The command line: `ado-megatron SUB …`. A subcommand is a module with `main(argv) -> int`, imported when called."""
from __future__ import annotations

import importlib
import os
import sys

from ado_megatron import __version__
from ado_megatron.errors import UserError
from ado_megatron.tables import text_table

# subcommand -> (module, what it does)
COMMANDS = {
    "prepare": ("ado_megatron.prepare.command", "text of your domains to Megatron .bin/.idx files (or --demo)"),
    "pretrain": ("ado_megatron.trainer.launch", "train with an adaptive blend on DeepSpeed, one machine or many"),
    "set": ("ado_megatron.steer.command", "change the mixture of a run that goes on: pins, policy, target, caps, …"),
    "report": ("ado_megatron.report.command", "table, picture and HTML page of a run"),
    "watch": ("ado_megatron.watch.command", "a run as it goes: mixture, losses, laws, what comes next"),
    "whatif": ("ado_megatron.whatif.command", "what another mixture from here on would come to, by the run's laws"),
    "audit": ("ado_megatron.audit", "check what each rank drew: no sample of an epoch repeated or skipped"),
    "replay": ("ado_megatron.replay.command", "run the policy over a recorded trace, without training"),
    "simulate": ("ado_megatron.simulate.command", "what each policy would gain on a known response, without training"),
    "doctor": ("ado_megatron.doctor", "what is installed and what is wrong with it"),
    "patch": ("ado_megatron.hosts.patch", "apply our insertions to a Megatron checkout"),
}


def usage() -> str:
    """The help text: every command in a line."""
    table = [("command", list(COMMANDS)), ("what", [text for _, text in COMMANDS.values()])]
    lines = ["  " + line for line in text_table(table, {"command", "what"}, headings=False).split("\n")]
    return "\n".join(
        ["usage: ado-megatron COMMAND [options]", "", "commands:", *lines, "", "ado-megatron COMMAND --help says more."]
    )


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; returns its exit code. A UserError is printed in one line on stderr, exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"ado-megatron {__version__}")
        return 0
    try:
        if argv[0] not in COMMANDS:
            raise UserError(f"there is no command {argv[0]!r}; the commands are {', '.join(COMMANDS)}")
        return importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:])
    except UserError as error:
        print(f"ado-megatron: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe (head, less) went away: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("ado-megatron: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
