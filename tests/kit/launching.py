"""Launch templates with made-up launchers on PATH, shared by tests/launch/ and tests/hosts/test_launch.py.

tests/cluster/ has the real ones.
"""

import os
import subprocess
from pathlib import Path

from ado_megatron.config import AdoConfig
from ado_megatron.hosts.arguments import parse

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
HOME = LAUNCH.parent
# writes down its arguments, its environment and the file of variables that it is given, and starts nothing
RECORDER = """#!/bin/bash
call="$RECORDS/$(find "$RECORDS" -name '*.argv' | wc -l)"
env -0 > "$call.env"
[ -z "${DS_ENV_FILE:-}" ] || cp "$DS_ENV_FILE" "$call.file"
printf '%s\\0' "$(basename "$0")" "$@" > "$call.argv"
"""
SCONTROL = """#!/bin/bash
[ "$1" = requeue ] && { echo "$2" >> "$RECORDS/requeued"; exit "${REQUEUE_FAILS:-0}"; }
[ "$1 $2" = "show hostnames" ] || exit 64
tr , '\\n' <<<"$3"
"""
# the command once a node, all on this machine
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
jobs=()
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    SLURM_NODEID=$node "$@" &
    jobs+=($!)
    [ -z "${IN_TURN:-}" ] || wait $!
done
for job in "${jobs[@]}"; do wait "$job" || exit $?; done
"""
# what pdsh is asked to run, once a node, all on this machine. Its launcher's `pkill` would reach every process here.
PDSH = """#!/bin/bash
while [ "$1" != -w ]; do shift; done
IFS=, read -ra nodes <<<"$2"
shift 2
[[ "$*" == *pkill* ]] && { echo "$*" >> "$RECORDS/pkill"; exit 0; }
jobs=()
for node in "${!nodes[@]}"; do
    echo "${nodes[$node]}" >> "$RECORDS/pdsh"
    command=$(sed "s/%%/\\x01/g; s/%n/$node/g; s/\\x01/%/g" <<<"$*")
    bash -c "$command" &
    jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job" || exit $?; done
"""
SSH = """#!/bin/bash
[ "${*: -2}" = "hostname -I" ] && echo 127.0.0.1
exit 0
"""
PROGRAMS = {"scontrol": SCONTROL, "srun": SRUN, "pdsh": PDSH, "ssh": SSH}


def put_programs(directory: Path, *recorded: str) -> Path:
    """A directory for PATH with the programs above, and recorders of the given names."""
    bin_ = directory / "bin"
    bin_.mkdir()
    (directory / "records").mkdir()
    for name, text in (PROGRAMS | dict.fromkeys(recorded, RECORDER)).items():
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    return bin_


def environment(directory: Path, **variables) -> dict[str, str]:
    """What a template needs, with the programs of `directory` first on PATH."""
    path = os.pathsep.join([str(directory / "bin"), os.environ["PATH"]])
    given = {key: str(value) for key, value in variables.items()}
    return {"PATH": path, "HOME": str(directory), "RECORDS": str(directory / "records"), **given}


def records(directory: Path) -> list[tuple[list[str], dict[str, str]]]:
    """(argv, environment) of every call of a recorder, in order."""

    def words(path):
        return path.read_text().split("\0")[:-1]

    calls = sorted((directory / "records").glob("*.argv"), key=lambda path: int(path.stem))
    return [
        (words(call), dict(pair.split("=", 1) for pair in words(call.with_suffix(".env"))))
        for call in calls
    ]  # fmt: skip


def start(template: str, *arguments, **options) -> subprocess.CompletedProcess:
    """Run a template to its end."""
    line = ["bash", LAUNCH / template, *map(str, arguments)]
    return subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def launch(place, template, *arguments, **variables):
    """What the launchers were called with: [(argv, environment)]."""
    given = {"CHECKOUT": place / "checkout", "RUN": place / "run", "ADO_HOME": HOME, **variables}
    done = start(template, *arguments, env=environment(place, **given))
    assert done.returncode == 0, done.stdout
    return records(place)


def torchrun_options(argv):
    from torch.distributed.run import get_args_parser

    assert argv[0] == "torchrun"
    options = get_args_parser().parse_args(argv[1:])
    return options, options.module, options.training_script, options.training_script_args


def deepspeed_options(argv):
    from deepspeed.launcher.runner import parse_args

    assert argv[0] == "deepspeed"
    options = parse_args(argv[1:])
    return options, options.module, options.user_script, options.user_args


def assert_our_module_runs_the_users_script(place, launched, deepspeed):
    """As the launcher's own parser reads it; returns the launcher's options."""
    options, is_module, module, arguments = launched
    assert is_module and module == "ado_megatron.run"
    config, script, theirs = parse(arguments)
    assert config == AdoConfig(refit_interval=1000) and script == str(place / "checkout" / "pretrain_gpt.py")
    line = " ".join(theirs)
    run = place / "run"
    assert f"--data-path 0.5 {run}/data/web_text_document 0.3 {run}/data/code_text_document 0.2 " in line
    assert f"--save {run} " in line and f"--load {run}" in line, "the same command resumes"
    assert "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2" in line
    assert ("--deepspeed " in line) == deepspeed
    return options


def assert_the_nodes_environment(variables):
    assert variables["PYTHONPATH"].split(":")[0] == str(HOME)
    assert variables["CUDA_DEVICE_MAX_CONNECTIONS"] == variables["OMP_NUM_THREADS"] == "1"
    assert variables["GLOO_SOCKET_IFNAME"] == variables["NCCL_SOCKET_IFNAME"]
