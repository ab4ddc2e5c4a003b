"""launch/slurm.sbatch under a real Slurm: what ends an attempt, and whether the job goes on.

The first tests put a small program in the place of torchrun, to see the template and Slurm alone; the last trains.
"""

import re
import sys
from pathlib import Path

import pytest

from ado_megatron.audit import audit
from tests.cluster.conftest import wait_for
from tests.kit.host_runs import Run, checkout, deepspeed_config, put_host_launchers, write_job
from tests.kit.launching import LAUNCH

# two "ranks" on each node; rank 0 saves every second step. A file `fail` ends rank 1 after the next step.
COUNTING = """
import os, signal, subprocess, sys, time
from pathlib import Path

run, rank = Path(os.environ["RUN"]), os.environ.get("RANK")
if rank is None:  # the launcher: one that fails takes the other with it
    node = int(sys.argv[sys.argv.index("--node_rank") + 1])
    line = [sys.executable, *sys.argv]
    ranks = [subprocess.Popen(line, env=os.environ | {"RANK": str(2 * node + n)}) for n in (0, 1)]
    while None in (codes := [one.poll() for one in ranks]) and not any(codes):
        time.sleep(0.1)
    for one in ranks:
        one.kill()
    sys.exit(max(map(abs, filter(None, codes)), default=0))

asked, saved = [], run / "latest_checkpointed_iteration.txt"
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
start = step = int(saved.read_text()) if saved.exists() else 0

def save():
    if rank == "0":
        saved.with_suffix(".new").write_text(str(step))
        saved.with_suffix(".new").rename(saved)

os.write(1, f"rank {rank} begins at {start}\\n".encode())  # a line at once, also beside those of other ranks
while step < int(os.environ["STEPS"]):
    time.sleep(0.5)
    step += 1
    if asked or step % 2 == 0:
        save()
    if asked:
        os.write(1, f"rank {rank} saved and ended at {step}\\n".encode())
        sys.exit(0)
    if rank == "1" and (run / "fail").exists():
        (run / "fail").unlink()
        sys.exit(7)
save()
"""
JOB = "CHECKOUT=none DATA=() MODEL=() RESUME=() ADO=()\n"


class Counting:
    """A job of the counting program."""

    def __init__(self, cluster, directory: Path, *options, steps=40, **variables):
        self.cluster, self.run, self.log = cluster, directory / "run", directory / "log.txt"
        (directory / "bin").mkdir()
        self.run.mkdir()
        (directory / "job.sh").write_text(JOB)
        (directory / "count.py").write_text(COUNTING)
        program = directory / "bin" / "torchrun"
        program.write_text(f'#!/bin/bash\nexec {sys.executable} {directory}/count.py "$@"\n')
        program.chmod(0o755)
        env = {
            "PATH": f"{directory}/bin:/usr/bin:/bin", "RUN": self.run, "ADO_HOME": LAUNCH.parent, "STEPS": steps,
            "CHECKOUT": directory, "JOB": directory / "job.sh", **variables,
        }  # fmt: skip
        self.number = cluster.submit(self.log, *options, env={name: str(value) for name, value in env.items()})

    def saved(self) -> int:
        path = self.run / "latest_checkpointed_iteration.txt"
        return int(path.read_text()) if path.exists() else 0

    def wait_for_step(self, step: int, seconds=150) -> None:
        wait_for(lambda: self.saved() >= step, seconds, self.log)

    def attempts(self) -> list[int]:
        """Where each attempt began."""
        return [int(step) for step in re.findall(r"rank 0 begins at (\d+)", self.log.read_text())]


@pytest.mark.timeout(500)
def test_a_failed_rank_and_the_signal_before_the_time_is_up_are_requeued(cluster, tmp_path):
    job = Counting(cluster, tmp_path, steps=60)
    job.wait_for_step(4)
    (job.run / "fail").touch()
    wait_for(lambda: len(job.attempts()) == 2, 200, job.log)
    second = job.attempts()[1]
    assert second >= 4
    job.wait_for_step(second + 2)
    cluster.run("ctl", "scancel", "--signal=USR1", "--batch", job.number)  # as --signal=B:USR1@300 sends it
    ended = cluster.wait(job.number, 300)
    log = job.log.read_text()
    assert (ended["JobState"], ended["Restarts"], job.saved()) == ("COMPLETED", "2", 60), log
    # 7, or 143 of the other node, which is ended with it
    assert re.search(r"ended with (7|143); the checkpoint went from 0 to", log) and log.count(": requeueing") == 2, log
    asked = log.split("a signal came before the time is up")[1]
    assert asked.count("saved and ended at") == 4 and asked.count("signal_ranks.sh: 2 ranks on node") == 2, log
    assert job.attempts()[2] > second


@pytest.mark.timeout(500)
def test_the_time_limit_itself_is_no_end(cluster, tmp_path):
    # Slurm sends the signal up to a minute early: after 30 to 90 of the 120 seconds that the steps take
    job = Counting(cluster, tmp_path, "--time=2", "--signal=B:USR1@30", steps=240)
    ended = cluster.wait(job.number, 450)
    log = job.log.read_text()
    assert (ended["JobState"], job.saved()) == ("COMPLETED", 240) and int(ended["Restarts"]) >= 1, log
    assert "a signal came before the time is up" in log and "TIME LIMIT" not in log, log


@pytest.mark.timeout(500)
def test_a_preempted_job_saves_first_and_goes_on_afterwards(cluster, tmp_path):
    job = Counting(cluster, tmp_path, "--partition=low", "--signal=B:USR1@60", steps=60)
    job.wait_for_step(4)
    line = ["sbatch", "--parsable", "--exclusive", "--nodes=2", "-o", tmp_path / "other.txt", "--wrap", "sleep 2"]
    other = cluster.run("ctl", *line, cwd=tmp_path).strip()
    assert cluster.wait(other, 150)["JobState"] == "COMPLETED"
    ended = cluster.wait(job.number, 300)
    log = job.log.read_text()
    assert (ended["JobState"], ended["Restarts"], job.saved()) == ("COMPLETED", "1", 60), log
    assert log.count("saved and ended at") == 4 and job.attempts()[1] >= 4, log


@pytest.mark.timeout(200)
def test_without_progress_the_job_fails(cluster, tmp_path):
    job = Counting(cluster, tmp_path, REQUEUES=3)
    (job.run / "fail").touch()  # before the first checkpoint
    ended = cluster.wait(job.number, 120)
    log = job.log.read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0") and "no checkpoint is newer than 0" in log, log
    assert ended["ExitCode"] in ("7:0", "143:0"), "of the rank, or of the other node, which was ended with it"


@pytest.mark.timeout(200)
def test_a_cancelled_job_stays_cancelled(cluster, tmp_path):
    job = Counting(cluster, tmp_path)
    job.wait_for_step(4)
    cluster.run("ctl", "scancel", job.number)
    ended = cluster.wait(job.number, 60)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0"), job.log.read_text()


class Training:
    """A job of a framework: two nodes of two processes each, a checkpoint every five steps."""

    STEPS = 100

    def __init__(self, cluster, host: str, directory: Path):
        self.cluster, self.run, self.log = cluster, directory / "run", directory / "log.txt"
        self.run.mkdir()
        options = ["--save-interval", 5]
        options += ["--pipeline-model-parallel-size", 2] if host == "deepspeed" else []
        env = {
            "HOST": host, "CHECKOUT": checkout(host), "RUN": self.run, "ADO_HOME": LAUNCH.parent, "ADO_CPU": 1,
            "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore", "NCCL_SOCKET_IFNAME": "eth0", "PYTHONPATH": "",
            "JOB": write_job(directory, host, *options, steps=self.STEPS), "PATH": put_host_launchers(directory),
            "DS_CONFIG": deepspeed_config(directory, 1)[1],
        }  # fmt: skip
        self.number = cluster.submit(self.log, env={name: str(value) for name, value in env.items()})

    def saved_after(self, step: int) -> int:
        """The newest checkpoint, when there is one after `step`."""
        latest = self.run / "latest_checkpointed_iteration.txt"

        def newer():
            found = int(latest.read_text() or 0) if latest.exists() else 0
            return found if found > step else 0

        return wait_for(newer, 300, self.log)

    def assert_whole(self, attempts: int, more: int = 0) -> None:
        """It went on to the last step; every step was made, and the audit finds every sample once. more: attempts that
        there may be besides, and that may have drawn nothing."""
        ended, text = self.cluster.wait(self.number, 400), self.log.read_text()
        restarts = int(ended["Restarts"])
        assert ended["JobState"] == "COMPLETED" and attempts - 1 <= restarts < attempts + more, text[-6000:]
        assert set(Run(0, text, self.run).curve) == set(range(1, self.STEPS + 1)), text[-6000:]
        verdict = audit(self.run)
        assert verdict.failure is None and verdict.samples == self.STEPS * 8, verdict
        assert attempts <= verdict.attempts <= restarts + 1, verdict


@pytest.mark.host
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("host", ["lm", "deepspeed"])
def test_a_training_is_requeued_and_loses_a_node(host, cluster, tmp_path):
    job = Training(cluster, host, tmp_path)
    first = job.saved_after(0)
    cluster.run("ctl", "scontrol", "requeue", job.number)
    job.saved_after(first + 10)
    cluster.call("kill", "node2")
    wait_for(lambda: cluster.job(job.number)["JobState"] != "RUNNING", 120, job.log)
    cluster.call("revive", "node2")
    job.assert_whole(attempts=3, more=2)  # Slurm may end the attempt after the lost node, too


@pytest.mark.host
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("host", ["lm", "deepspeed"])
def test_a_training_saves_when_the_signal_comes_and_goes_on(host, cluster, tmp_path):
    job = Training(cluster, host, tmp_path)
    job.saved_after(0)
    cluster.run("ctl", "scancel", "--signal=USR1", "--batch", job.number)
    job.assert_whole(attempts=2)
    text = job.log.read_text()
    assert "exiting program after receiving SIGTERM" in text and text.count(": requeueing") == 1, text[-6000:]
