"""Two nodes for real: two network namespaces, two processes each, the DeepSpeed launcher once a node; one node dies."""

import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from ado_megatron.audit import audit
from tests.kit.host_runs import (
    COMMON,
    DEEPSPEED,
    QUICK_ADO,
    ROOT,
    SPLIT,
    Run,
    checkout,
    deepspeed_config,
    write_domains,
)

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]
ADDRESS = "10.77.0.{}"
LAYOUTS = {"tp2_pp2": (2, 2), "dp2_pp2": (1, 2)}


@pytest.fixture
def namespaces():
    """Two namespaces joined by a veth pair whose ends have one name, so that one GLOO_SOCKET_IFNAME fits both."""
    names = [f"ado{os.getpid() % 10000}_{node}" for node in (0, 1)]
    if shutil.which("ip") is None or subprocess.run(["ip", "netns", "add", names[0]], capture_output=True).returncode:
        pytest.skip("needs the ip command and the right to make network namespaces (CAP_NET_ADMIN)")

    def ip(command):
        subprocess.run(["ip", *command.split()], check=True)

    try:
        ip(f"netns add {names[1]}")
        ip(f"link add {names[0]} type veth peer name {names[1]}")
        for node, name in enumerate(names):
            ip(f"link set {name} netns {name}")
            ip(f"-n {name} link set {name} name eth0")
            ip(f"-n {name} addr add {ADDRESS.format(node + 1)}/24 dev eth0")
            ip(f"-n {name} link set eth0 up")
            ip(f"-n {name} link set lo up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


class Node:
    """The launcher of one node, in its namespace, in a process group of its own."""

    def __init__(self, namespace, rank, directory, arguments, port):
        hostfile = directory / "hostfile"
        hostfile.write_text("".join(f"{ADDRESS.format(node)} slots=2\n" for node in (1, 2)))
        python = os.environ.get("MEGATRON_PYTHON", shutil.which("python3"))
        command = [
            "ip", "netns", "exec", namespace, python, "-m", "deepspeed.launcher.runner",
            "--hostfile", hostfile, "--no_ssh", f"--node_rank={rank}", f"--master_addr={ADDRESS.format(1)}",
            f"--master_port={port}",
            "--module", "ado_megatron.run", checkout("deepspeed") / "pretrain_gpt.py", *arguments,
        ]  # fmt: skip
        environment = os.environ | {
            "ADO_CPU": "1", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0",
            "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore",
            "PATH": os.pathsep.join([os.path.dirname(python), os.environ["PATH"]]),
        }  # fmt: skip
        self.log = directory / f"node{rank}_{port}.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def wait_for(self, pattern, seconds):
        end = time.monotonic() + seconds
        while not re.search(pattern, self.log.read_text()):
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-4000:]
            time.sleep(0.1)

    def kill(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended, and its children with it
        self.process.wait()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_nodes_lose_one_and_resume(layout, namespaces, tmp_path):
    tp, pp = LAYOUTS[layout]
    data = ["--data-path", *write_domains(tmp_path)]
    save = tmp_path / "run"
    save.mkdir()
    common = [value if value != "1000" else "4" for value in COMMON]  # a checkpoint every 4 steps
    arguments = [
        *common, *data, *SPLIT, *DEEPSPEED, *deepspeed_config(tmp_path, 0), "--train-iters", "24",
        "--save", save, "--load", save, "--tensor-model-parallel-size", tp,
        "--pipeline-model-parallel-size", pp, "--num-workers", 2,
        "--data-cache-path", tmp_path / "cache", *QUICK_ADO, "--ado-audit",
    ]  # fmt: skip

    nodes = [Node(name, rank, tmp_path, arguments, 29655) for rank, name in enumerate(namespaces)]
    try:
        nodes[0].wait_for(r"successfully saved checkpoint at iteration\s+8", 240)
        nodes[1].kill()
        nodes[0].process.wait(120)
    finally:
        for node in nodes:
            node.kill()
    assert nodes[0].process.returncode != 0, "the first node did not notice that the other one died"

    nodes = [Node(name, rank, tmp_path, arguments, 29656) for rank, name in enumerate(namespaces)]
    try:
        for node in nodes:
            assert node.process.wait(280) == 0, node.log.read_text()[-4000:]
    finally:
        for node in nodes:
            node.kill()
    resumed = Run(0, nodes[0].log.read_text() + nodes[1].log.read_text(), save)
    first = min(resumed.curve)
    assert first % 4 == 1 and first > 4 and max(resumed.curve) == 24
    verdict = audit(save)
    assert verdict.failure is None and verdict.samples == 24 * 8 and verdict.attempts == 2
    measured = resumed.mixture_losses()
    for step in range(first, 25):
        assert measured[step] == pytest.approx(float(resumed.curve[step][0]), abs=2e-6)
