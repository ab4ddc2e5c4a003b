"""The templates of launch/ on made-up launchers: each assembles the line that launch/README.md promises."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time

import pytest

from ado_megatron.config import AdoConfig
from ado_megatron.hosts.arguments import parse
from tests.kit.launching import LAUNCH, environment, put_programs, records, start

HOME = LAUNCH.parent


@pytest.fixture
def place(tmp_path):
    put_programs(tmp_path, "torchrun", "deepspeed")
    for name in ("checkout", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkout" / "pretrain_gpt.py").write_text("")
    return tmp_path


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


SECOND_NODE = {"NODES": 2, "NODE_RANK": 1, "MASTER_ADDR": "node0", "MASTER_PORT": 7, "GPUS": 4}


@pytest.mark.parametrize("variables", [{}, SECOND_NODE])
def test_torchrun(place, variables):
    ((argv, environment_),) = launch(place, "torchrun.sh", **variables)
    options = assert_our_module_runs_the_users_script(place, torchrun_options(argv), deepspeed=False)
    found = (options.nnodes, options.node_rank, options.master_addr, options.master_port, options.nproc_per_node)
    assert found == (("2", 1, "node0", 7, "4") if variables else ("1", 0, "127.0.0.1", 29500, "8"))
    assert_the_nodes_environment(environment_)


def test_deepspeed_per_node(place):
    given = {"NODE_RANK": 1, "MASTER_ADDR": "node0", "NCCL_SOCKET_IFNAME": "ib0", "PYTHONPATH": "/elsewhere"}
    ((argv, environment_),) = launch(place, "deepspeed_per_node.sh", "/my/hostfile", **given)
    options = assert_our_module_runs_the_users_script(place, deepspeed_options(argv), deepspeed=True)
    assert options.no_ssh and (options.node_rank, options.master_addr, options.master_port) == (1, "node0", 29500)
    assert options.hostfile == "/my/hostfile"
    assert_the_nodes_environment(environment_)
    assert environment_["GLOO_SOCKET_IFNAME"] == "ib0" and environment_["PYTHONPATH"] == f"{HOME}:/elsewhere"


def test_deepspeed_with_a_hostfile_forwards_what_the_nodes_need(place):
    ((argv, environment_),) = launch(place, "deepspeed_hostfile.sh", NCCL_SOCKET_IFNAME="ib0")
    options = assert_our_module_runs_the_users_script(place, deepspeed_options(argv), deepspeed=True)
    assert not options.no_ssh and options.launcher == "pdsh"
    assert options.hostfile == str(LAUNCH / "hostfile")
    assert_the_nodes_environment(environment_)
    forwarded = dict(line.split("=", 1) for line in (place / "records" / "0.file").read_text().splitlines())
    assert_the_nodes_environment(forwarded)
    assert forwarded["GLOO_SOCKET_IFNAME"] == "ib0"


def remote_line(argv, env_file, rank=1):
    """What the node's shell is given: the command line as DeepSpeed's own pdsh runner builds it, as pdsh expands it."""
    from deepspeed.launcher.multinode_runner import PDSHRunner

    options = deepspeed_options(argv)[0]
    options.master_addr = "node0"
    runner = PDSHRunner(options, "e30=")
    for line in env_file.read_text().splitlines():
        runner.add_export(*line.split("=", maxsplit=1))
    line = " ".join(runner.get_cmd({}, {"node0": 8, "node1": 8})[0])
    return re.sub("%(.)", lambda m: {"n": str(rank), "h": "node1", "u": "me", "%": "%"}[m[1]], line)


SPECIAL = " \t\n\\'\"$`%;|&<>*?[]{}()~!#^=nhu"
PAIRS = [f"{head}{one}{two}b" for head in ("", "a") for one, two in itertools.product(SPECIAL, repeat=2)]
WORDS = ["", " ", "%n", "%%n", "$HOME", "two words $HOME %n `id`", '{"a": "b c"}', "*", "a;touch x", "|", "é ü", *PAIRS]


def test_every_argument_and_variable_passes_launcher_pdsh_and_remote_shell(place):
    job = place / "job.sh"
    job.write_text(f'. "$ADO_HOME/launch/job.sh"\nADO=({" ".join(map(shlex.quote, WORDS))})\n')
    paths = "/a dir/$HOME:/b`id`:/%n:/c\\d"
    ((argv, _),) = launch(place, "deepspeed_hostfile.sh", JOB=job, PYTHONPATH=paths)
    line = remote_line(argv, place / "run" / "deepspeed_env")
    exports, command = line[line.index("export ") :].split("cd ", 1)
    words = command[command.index("pretrain_gpt.py") :]
    show = exports + "printf '%s\\0' \"$PYTHONPATH\" " + words
    for shell in ("sh", "bash"):
        shown = subprocess.run([shell, "-c", show], capture_output=True, check=True, env={}, cwd=place).stdout.decode()
        path, *given = shown.split("\0")[:-1]
        assert path == f"{HOME}:{paths}"
        assert given[-len(WORDS) :] == WORDS


def forwarded(place):
    lines = (place / "run" / "deepspeed_env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_the_users_deepspeed_env_goes_along_and_wins(place, monkeypatch):
    monkeypatch.chdir(place / "checkout")
    (place / ".deepspeed_env").write_text('MY_KEY=a "b" $HOME\n\n# no\nNCCL_SOCKET_IFNAME=ib7\nPYTHONPATH=/mine')
    (place / "checkout" / ".deepspeed_env").write_text("HERE=1\n")
    launch(place, "deepspeed_hostfile.sh", NCCL_SOCKET_IFNAME="ib0")
    found = forwarded(place)
    assert found["MY_KEY"] == 'a "b" $HOME', "as the launcher itself would read it"
    assert (found["NCCL_SOCKET_IFNAME"], found["GLOO_SOCKET_IFNAME"], found["HERE"]) == ("ib7", "ib0", "1")
    assert found["PYTHONPATH"] == f"{HOME}:/mine"
    assert (place / "run" / "deepspeed_env").stat().st_mode & 0o77 == 0


def test_a_ds_env_file_takes_the_place_of_deepspeed_env(place):
    (place / ".deepspeed_env").write_text("NOT=this\n")
    (place / "named").write_text("THIS=one\n")
    launch(place, "deepspeed_hostfile.sh", DS_ENV_FILE=place / "named")
    assert forwarded(place)["THIS"] == "one" and "NOT" not in forwarded(place)


@pytest.mark.parametrize(
    "hostfile, line, directory, sentence",
    [
        ("missing", "A=1", "checkout", "there is no hostfile missing; the launcher would run everything on this node"),
        (LAUNCH / "hostfile", "export", "checkout", ".deepspeed_env has the line 'export', which is no NAME=VALUE"),
        (LAUNCH / "hostfile", "A=1", "a $(dir)", "start it in a directory without special characters"),
    ],
)
def test_what_cannot_reach_the_nodes_is_refused_before_anything_starts(place, hostfile, line, directory, sentence):
    (place / ".deepspeed_env").write_text(line + "\n")
    (place / directory).mkdir(exist_ok=True)
    given = {"CHECKOUT": place / "checkout", "RUN": place / "run", "ADO_HOME": HOME}
    done = start("deepspeed_hostfile.sh", hostfile, env=environment(place, **given), cwd=place / directory)
    assert done.returncode == 2 and sentence in done.stdout and done.stdout.count("\n") == 1, done.stdout
    assert records(place) == []


SLURM = {
    "SLURM_JOB_NODELIST": "alpha,beta", "SLURM_JOB_NUM_NODES": 2, "SLURM_JOB_ID": 41234, "SLURM_GPUS_ON_NODE": 4,
    "IN_TURN": 1,
}  # fmt: skip


def test_slurm_starts_torchrun_once_a_node(place):
    calls = launch(place, "slurm.sbatch", **SLURM)
    assert len(calls) == 2
    for node, (argv, environment_) in enumerate(calls):
        options = assert_our_module_runs_the_users_script(place, torchrun_options(argv), deepspeed=False)
        assert (options.nnodes, options.node_rank, options.nproc_per_node) == ("2", node, "4")
        assert (options.master_addr, options.master_port) == ("alpha", 20000 + 41234 % 20000)
        assert_the_nodes_environment(environment_)


def test_slurm_starts_deepspeed_once_a_node_with_a_hostfile_of_its_nodes(place):
    calls = launch(place, "slurm.sbatch", HOST="deepspeed", **SLURM)
    assert len(calls) == 2
    for node, (argv, _) in enumerate(calls):
        options = assert_our_module_runs_the_users_script(place, deepspeed_options(argv), deepspeed=True)
        assert options.no_ssh and (options.node_rank, options.master_addr) == (node, "alpha")
        with open(options.hostfile) as hostfile:
            assert hostfile.read() == "alpha slots=4\nbeta slots=4\n"


RANKS = """#!/bin/bash
[ -z "$AFTER" ] || echo "$AFTER" > "$RUN/latest_checkpointed_iteration.txt"
exit "$CODE"
"""


@pytest.mark.parametrize(
    "code, before, after, given, requeued, said",
    [
        (0, "", "100", {}, False, ""),
        (1, "", "100", {}, True, "ended with 1; the checkpoint went from 0 to 100: requeueing"),
        (1, "100", "200", {"SLURM_RESTART_COUNT": 19}, True, "from 100 to 200: requeueing"),
        (1, "100", "200", {"SLURM_RESTART_COUNT": 20}, False, "after 20 requeues, which is REQUEUES: not requeued"),
        (1, "100", "200", {"SLURM_RESTART_COUNT": 2, "REQUEUES": 2}, False, "not requeued; a new job goes on from 200"),
        (1, "", "", {}, False, "no checkpoint is newer than 0, with which this attempt began: not requeued"),
        (9, "100", "", {}, False, "no checkpoint is newer than 100"),
        (1, "100", "release", {}, False, "no checkpoint is newer than 100"),
        (1, "", "100", {"REQUEUE_FAILS": 1}, True, "Slurm did not requeue the job; a new one goes on from"),
    ],
)
def test_slurm_requeues_a_failed_attempt_within_bounds_if_it_made_progress(
    place, code, before, after, given, requeued, said
):
    for name, text in (("torchrun", RANKS), ("sleep", "#!/bin/bash\nexit 1\n")):
        (place / "bin" / name).write_text(text)
        (place / "bin" / name).chmod(0o755)
    if before:
        (place / "run" / "latest_checkpointed_iteration.txt").write_text(before)
    paths = {"CHECKOUT": place / "checkout", "RUN": place / "run", "ADO_HOME": HOME}
    done = start("slurm.sbatch", env=environment(place, **paths, **SLURM, CODE=code, AFTER=after, **given))
    asked = place / "records" / "requeued"
    assert (asked.read_text() == "41234\n" if asked.exists() else False) == requeued
    lines = bool(said) + ("REQUEUE_FAILS" in given)
    assert said in done.stdout and done.stdout.count("slurm.sbatch:") == lines, done.stdout
    if not (requeued and not given.get("REQUEUE_FAILS")):
        assert done.returncode == code


A_RANK = """
import signal, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=-1)
signal.signal(signal.SIGTERM, lambda *_: sys.exit("asked, worker " + str(worker.poll()) + [worker.kill(), ""][1]))
worker.stdout.readline()
print(flush=True)
time.sleep(60)
"""


def test_only_the_ranks_of_the_job_are_asked_to_save():
    """Not their launcher, not their workers, not the ranks of another job."""
    jobs = {"mine": {"SLURM_JOB_ID": f"ado{os.getpid()}", "RANK": "3"}}
    jobs["launcher"] = {"SLURM_JOB_ID": jobs["mine"]["SLURM_JOB_ID"]}
    jobs["another"] = jobs["mine"] | {"SLURM_JOB_ID": f"ado{os.getpid()}x"}
    started = {
        name: subprocess.Popen(
            [sys.executable, "-c", A_RANK], env={"PATH": os.environ["PATH"], **variables}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        ) for name, variables in jobs.items()
    }  # fmt: skip
    try:
        for process in started.values():
            process.stdout.readline()
        done = subprocess.run(
            ["bash", LAUNCH / "signal_ranks.sh"], env=os.environ | jobs["launcher"], capture_output=True, text=True
        )
        assert done.returncode == 0 and " 1 ranks on " in done.stdout, done.stderr
        assert started["mine"].communicate(timeout=30)[1] == "asked, worker None\n"
        time.sleep(0.2)
        assert started["launcher"].poll() is None and started["another"].poll() is None
    finally:
        for process in started.values():
            try:
                os.killpg(process.pid, 9)
            except ProcessLookupError:
                pass
            process.communicate()


def test_a_job_of_ones_own_takes_the_place_of_the_template(place):
    job = place / "job.sh"
    job.write_text('. "$ADO_HOME/launch/job.sh"\nADO=(--ado-off)\nMODEL=(--name "two words")\n')
    ((argv, _),) = launch(place, "torchrun.sh", JOB=job)
    config, _, theirs = parse(torchrun_options(argv)[3])
    assert config.off and theirs[-4:] == ["--name", "two words", "--load", str(place / "run")]


@pytest.mark.parametrize("missing", ["ADO_HOME", "CHECKOUT", "RUN"])
@pytest.mark.parametrize("template", ["torchrun.sh", "deepspeed_hostfile.sh", "deepspeed_per_node.sh"])
def test_a_missing_variable_is_named_and_nothing_is_started(place, template, missing):
    given = {"CHECKOUT": "c", "RUN": "r", "ADO_HOME": HOME, "NODE_RANK": 0, "MASTER_ADDR": "node0"}
    del given[missing]
    done = start(template, env=environment(place, **given))
    assert done.returncode != 0 and re.search(rf"{missing}: set {missing} to ", done.stdout) and records(place) == []


def test_the_deepspeed_configuration_fits_the_job(place):
    ((argv, _),) = launch(place, "deepspeed_per_node.sh", NODE_RANK=0, MASTER_ADDR="node0")
    values = {argv[n]: argv[n + 1] for n in range(len(argv) - 1) if argv[n].startswith("--")}
    with open(values["--deepspeed_config"]) as file:
        config = json.load(file)
    assert config["train_micro_batch_size_per_gpu"] == int(values["--micro-batch-size"])
    assert config["train_batch_size"] == int(values["--global-batch-size"])
    assert config["zero_optimization"]["stage"] == int(values["--zero-stage"])
    assert config["gradient_clipping"] == float(values["--clip-grad"])
    assert config["bf16"]["enabled"] == ("--bf16" in argv)
