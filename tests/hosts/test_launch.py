"""The templates of launch/ for real, on one machine: two ranks train, stop, and the same command resumes.

srun, scontrol, pdsh and ssh are made up (launch_kit.py): they start here what they would start on the nodes. The
made-up pdsh runs no `pkill`; the real launcher's would reach every process of this machine.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ado_megatron.audit import audit
from tests.kit.host_runs import (
    COMMON,
    LM,
    QUICK_ADO,
    SPLIT,
    Run,
    _free_port,
    checkout,
    deepspeed_config,
    tail,
    write_domains,
)
from tests.kit.launching import LAUNCH, environment, put_programs

pytestmark = [pytest.mark.host, pytest.mark.timeout(400)]
# template and its arguments → host, further variables
CASES = {
    "torchrun": (["torchrun.sh"], "lm", {"GPUS": 2}),
    "per_node": (["deepspeed_per_node.sh", "hostfile"], "deepspeed", {"NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1"}),
    "hostfile": (["deepspeed_hostfile.sh", "hostfile"], "deepspeed", {}),
    "slurm": (["slurm.sbatch"], "lm", {}),
    "slurm_deepspeed": (["slurm.sbatch"], "deepspeed", {"HOST": "deepspeed"}),
}
HOSTFILES = {"per_node": "localhost slots=2\n", "hostfile": "alpha slots=1\nbeta slots=1\n"}
SLURM = {
    "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": 1, "SLURM_JOB_ID": os.getpid(), "SLURM_GPUS_ON_NODE": 2
}  # fmt: skip


def write_job(directory: Path, host: str) -> Path:
    """launch/job.sh with the model shrunken by later options, which win; RESUME and DEEPSPEED as they are there."""
    small = [*COMMON, *SPLIT, "--train-iters", 12, "--lr-warmup-iters", 2, "--num-workers", 1]
    small += ["--tensor-model-parallel-size", 1, "--pipeline-model-parallel-size", 1, "--data-cache-path", directory]
    small += LM if host == "lm" else []
    data = ["--data-path", *write_domains(directory)]
    job = directory / "job.sh"
    job.write_text(
        '. "$ADO_HOME/launch/job.sh"\n'
        f"DATA=({' '.join(data)})\n"
        'for n in "${!MODEL[@]}"; do [ "${MODEL[n]}" != --bf16 ] || unset "MODEL[n]"; done\n'
        f"MODEL+=({' '.join(map(str, small))} ${{STOP_AT:+--exit-interval $STOP_AT}})\n"
        f"ADO+=({' '.join(QUICK_ADO)} --ado-audit)\n"
    )
    return job


def start(directory: Path, case: str, **variables) -> Run:
    (template, *arguments), _, given = CASES[case]
    line = ["bash", LAUNCH / template, *(directory / name for name in arguments)]
    settings = environment(directory, **SLURM, **given, **variables)
    python = os.environ.get("MEGATRON_PYTHON", sys.executable)
    settings["PATH"] = os.pathsep.join([str(directory / "bin"), os.path.dirname(python), os.environ["PATH"]])
    for name, module in (("torchrun", "torch.distributed.run"), ("deepspeed", "deepspeed.launcher.runner")):
        program = directory / "bin" / name  # what pip installs under these names, for this interpreter
        program.write_text(f'#!/bin/bash\nexec {python} -m {module} "$@"\n')
        program.chmod(0o755)
    with open(directory / f"log{len(list(directory.glob('log*')))}.txt", "w+") as log:
        process = subprocess.Popen(
            line, stdout=log, stderr=subprocess.STDOUT, env=settings, cwd=directory, start_new_session=True
        )
        try:
            status = process.wait(150)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # not SIGTERM, at which the pdsh launcher calls pkill
            process.wait()
            status = None
        log.seek(0)
        return Run(status, log.read(), directory / "run")


@pytest.mark.parametrize("case", CASES)
def test_a_template_trains_and_the_same_command_resumes(case, tmp_path):
    host = CASES[case][1]
    put_programs(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "hostfile").write_text(HOSTFILES.get(case, ""))
    given = {
        "CHECKOUT": checkout(host), "RUN": tmp_path / "run", "ADO_HOME": LAUNCH.parent,
        "JOB": write_job(tmp_path, host), "DS_CONFIG": deepspeed_config(tmp_path, 1)[1], "NCCL_SOCKET_IFNAME": "lo",
        "ADO_CPU": 1, "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    first = start(tmp_path, case, STOP_AT=6, MASTER_PORT=_free_port(), **given)
    assert first.status == 0, tail(first)
    assert set(first.curve) == set(range(1, 7))
    second = start(tmp_path, case, MASTER_PORT=_free_port(), **given)
    assert second.status == 0, tail(second)
    assert set(second.curve) == set(range(7, 13)), "the run went on where it had stopped"
    verdict = audit(tmp_path / "run")
    assert verdict.failure is None and verdict.samples == verdict.seen == 12 * 8 and verdict.attempts == 2
    if case == "hostfile":
        assert (tmp_path / "records" / "pdsh").read_text().split() == ["alpha", "beta"] * 2
