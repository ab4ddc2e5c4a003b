"""The templates of launch/ on made-up launchers: each assembles the line that launch/README.md promises."""

import json
import re

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
