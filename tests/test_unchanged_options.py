"""Every option of the version before the package was divided into wings (0.1.0 at 2d0a8ec) is there and says the same.

tests/data/before/help.json: flags → help of each command, as that version printed it.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

DATA = pathlib.Path(__file__).parent / "data" / "before"
COMMANDS = ("prepare", "pretrain", "report", "audit", "replay", "doctor", "patch")


def help_of(command):
    line = [sys.executable, "-m", "ado_megatron.cli", command, "--help"]
    if command == "run":
        line = [sys.executable, "-m", "ado_megatron.run", "--ado-help"]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "120"})
    return done.stdout


def options_of(text):
    """{flags: help} of a --help text, in one form whatever the lines are broken at."""
    found, flags = {}, None
    for line in text.splitlines():
        words = line.strip()
        if line.startswith("  -") and not line.startswith("   "):
            words, _, rest = words.partition("  ")
            flags = ", ".join(word.strip(",") for word in words.split() if word.startswith("-"))
            found[flags] = rest.strip()
        elif flags is not None and line.startswith("      "):
            found[flags] = f"{found[flags]} {words}".strip()
        else:
            flags = None
    # Python 3.10 adds the default of a switch by itself
    default = re.compile(r" \(default: (True|False|None)\)$")
    return {name: default.sub("", " ".join(help.split())) for name, help in found.items()}


@pytest.mark.parametrize("command", [*COMMANDS, "run"])
def test_every_option_of_the_version_before_is_there_and_says_the_same(command):
    ours, theirs = options_of(help_of(command)), json.loads((DATA / "help.json").read_text())[command]
    assert theirs
    for old, new in NEW_NAMES.items():
        theirs = {flags: help.replace(old, new) for flags, help in theirs.items()}
    missing = {flags: help for flags, help in theirs.items() if flags not in ours and flags not in REWORDED}
    assert missing == {}
    assert {f: h for f, h in ours.items() if f in theirs and h != theirs[f] and f not in REWORDED} == {}


NEW_NAMES = {"the cut of": "the snapshot of", "host's": "framework's", "under a host": "under a framework"}

# Flags whose text was changed on purpose since: --ado-policy knows more policies, --steps says that a resumed run may
# have another number, --json of the audit prints a result, --compare takes runs of several seeds, the others now say
# their default where it is 0 or off.
REWORDED = {
    "--ado-policy", "--compare",
    "--resume, --no-resume", "--bf16, --no-bf16", "--recompute, --no-recompute", "--dropout", "--exit-interval",
    "--num-workers", "--save-interval", "--steps", "--json",
}  # fmt: skip


def test_the_stream_needs_no_other_library_than_before():
    code = "import sys, ado_megatron.stream.schedule, ado_megatron.stream.blended_dataset; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tops = {name.split(".")[0] for name in done.stdout.split()}
    assert tops & {"torch", "scipy", "yaml", "matplotlib", "deepspeed", "megatron", "pandas", "numba", "rich"} == set()
