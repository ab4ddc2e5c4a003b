"""The cluster of cluster.sh for the tests of this folder: started once, ended by process id."""

import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("cluster.sh")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


class Cluster:
    """Nodes ctl, node1, node2, and the jobs of their Slurm."""

    def __init__(self, directory: Path):
        self.directory = directory

    def call(self, command: str, *words, **options) -> subprocess.CompletedProcess:
        line = ["bash", SCRIPT, command, self.directory, *map(str, words)]
        return subprocess.run(line, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)

    def run(self, node: str, *words, **options) -> str:
        """What a command on a node prints; it must end well."""
        done = self.call("run", node, *words, **options)
        assert done.returncode == 0, f"{words}: {done.stdout}"
        return done.stdout

    def submit(self, log: Path, *options, env: dict[str, str]) -> str:
        """The number of a job of launch/slurm.sbatch."""
        template = SCRIPT.parents[2] / "launch" / "slurm.sbatch"
        words = ["sbatch", "--parsable", "-o", log, "--gpus-per-node=2", "--cpus-per-task=2", *options, template]
        return self.run("ctl", *words, env=os.environ | env, cwd=log.parent).strip()

    def job(self, number: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S+)", self.run("ctl", "scontrol", "show", "job", number)))

    def wait(self, number: str, seconds: float) -> dict[str, str]:
        """The job when it is at its end."""
        deadline = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED"):
            if time.monotonic() > deadline:
                self.run("ctl", "scancel", number)
                raise AssertionError(f"job {number} is {job['JobState']} ({job['Reason']}) after {seconds} s")
            time.sleep(1)
        return job


@pytest.fixture(scope="session")
def cluster():
    directory = tempfile.TemporaryDirectory(prefix="ado-cluster-")
    os.chmod(directory.name, 0o755)  # munge wants a way to its socket for everybody, which pytest's directories are not
    made = Cluster(Path(directory.name))
    started = made.call("start")
    if started.returncode == 2 and ("is missing" in started.stdout or "needs root" in started.stdout):
        pytest.skip(started.stdout.strip().splitlines()[-1])
    try:
        assert started.returncode == 0, started.stdout
        yield made
    finally:
        made.call("stop")
        directory.cleanup()


def wait_for(what, seconds: float, log: Path):
    """The first true value of `what`; the log in the message when there is none."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, log.read_text()[-6000:] if log.exists() else "no log"
        time.sleep(0.2)
    return value
