"""The line that each template hands to its launcher is the one that launch/README.md promises."""

import json
import re

import pytest

from ado_megatron.hosts.arguments import parse
from tests.kit.launching import (
    HOME,
    assert_our_module_runs_the_users_script,
    assert_the_nodes_environment,
    deepspeed_options,
    environment,
    launch,
    records,
    start,
    torchrun_options,
)

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


def test_a_job_of_ones_own_takes_the_place_of_the_template(place):
    job = place / "job.sh"
    job.write_text('. "$ADO_HOME/launch/job.sh"\nADO=(--ado-off)\nMODEL=(--name "two words")\n')
    ((argv, _),) = launch(place, "torchrun.sh", JOB=job)
    config, _, theirs = parse(torchrun_options(argv)[3])
    assert config.off and theirs[-4:] == ["--name", "two words", "--load", str(place / "run")]


def test_a_script_of_ones_own_with_arguments_of_its_own(place):
    (place / "train.py").write_text("")
    job = place / "job.sh"
    job.write_text("DATA=()\nMODEL=(--recipe mine train.train_iters=5)\nRESUME=()\nADO=(--ado-audit)\n")
    ((argv, _),) = launch(place, "torchrun.sh", JOB=job, SCRIPT=place / "train.py")
    config, script, theirs = parse(torchrun_options(argv)[3])
    assert config.audit and script == str(place / "train.py") and theirs == ["--recipe", "mine", "train.train_iters=5"]


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
