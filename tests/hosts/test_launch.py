"""The templates of launch/ for real, on one machine: two ranks train, stop, and the same command resumes.

srun, scontrol, pdsh and ssh are made up (tests/kit/launching.py): they start here what they would start on the nodes.
tests/cluster/ has the real ones. The made-up pdsh runs no `pkill`; the real launcher's would reach every process
of this machine.
"""

import os
import subprocess
from pathlib import Path

import pytest

from ado_megatron.audit import audit
from tests.kit.host_runs import Run, _free_port, checkout, deepspeed_config, put_host_launchers, tail, write_job
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


def start(directory: Path, case: str, **variables) -> Run:
    (template, *arguments), _, given = CASES[case]
    line = ["bash", LAUNCH / template, *(directory / name for name in arguments)]
    settings = environment(directory, **SLURM, **given, **variables)
    settings["PATH"] = put_host_launchers(directory)
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
