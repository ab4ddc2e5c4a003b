"""launch/deepspeed_hostfile.sh through real sshd and pdsh: what reaches a node, and a training that resumes.

The launcher is never interrupted: it would run a broad `pkill -f` on its nodes. (It would not leave them: a node here
has process ids of its own. When a test fails, the end of the cluster ends what is left.)
"""

import json
import shlex

import pytest

from ado_megatron.audit import audit
from tests.kit.host_runs import Run, checkout, deepspeed_config, put_host_launchers, write_job
from tests.kit.launching import LAUNCH

HOSTFILE = "node1 slots=1\nnode2 slots=1\n"
SCRIPT = """
import json, os, sys
with open(f"{os.environ['SEEN']}_{os.environ['RANK']}.json", "w") as file:
    json.dump({"argv": sys.argv[1:], "env": dict(os.environ)}, file)
"""
WORDS = [
    "", "two words", "a;touch broken", "|", "*", "$HOME", "`id`", "%n", "%%h 100%", '"', "it's", '{"a": "b c"}', "\\",
    "\\ $(id) \"'", "a\nb", "~", "#", "&", "(x)", "x=[1]", "<", "!!", "{a,b}", "tab\there", "é ü",
]  # fmt: skip


def start(cluster, directory, job, forwarded="", **variables):
    """The template on node1, at its end: (exit code, what it printed). forwarded: lines for ~/.deepspeed_env."""
    (directory / "hostfile").write_text(HOSTFILE)
    env = {
        "HOME": directory, "RUN": directory / "run", "ADO_HOME": LAUNCH.parent, "JOB": job,
        "NCCL_SOCKET_IFNAME": "eth0", "DS_ACCELERATOR": "cpu",
        "PATH": f"{cluster.directory}/bin:{put_host_launchers(directory)}", **variables,
    }  # fmt: skip
    # a node has nothing but what its sshd gives and this file says; `python3` must be the interpreter of the hosts
    (directory / ".deepspeed_env").write_text(
        f"DS_ACCELERATOR=cpu\nPYTHONWARNINGS=ignore\nPATH={env['PATH']}\n{forwarded}"
    )
    line = ["bash", LAUNCH / "deepspeed_hostfile.sh", directory / "hostfile"]
    done = cluster.call("run", "node1", *line, env={name: str(value) for name, value in env.items()}, cwd=directory)
    return done.returncode, done.stdout


@pytest.mark.timeout(300)
def test_arguments_and_environment_reach_both_nodes_as_they_were_given(cluster, tmp_path):
    (tmp_path / "pretrain_gpt.py").write_text(SCRIPT)
    job = tmp_path / "job.sh"
    words = " ".join(map(shlex.quote, WORDS))
    job.write_text(f"CHECKOUT={tmp_path} DATA=({words}) MODEL=() RESUME=() DEEPSPEED=() ADO=(--ado-off)\n")
    code, log = start(cluster, tmp_path, job, f"SEEN={tmp_path}/seen\n", PYTHONPATH="/a dir/$HOME:/%n")
    assert code == 0, log
    for rank in (0, 1):
        found = json.loads((tmp_path / f"seen_{rank}.json").read_text())
        assert [word for word in found["argv"] if not word.startswith("--local_rank")] == WORDS
        env = found["env"]
        assert (env["DS_ACCELERATOR"], env["GLOO_SOCKET_IFNAME"], env["OMP_NUM_THREADS"]) == ("cpu", "eth0", "1")
        assert env["PYTHONPATH"] == f"{LAUNCH.parent}:/a dir/$HOME:/%n"
        assert "SSH_CONNECTION" in env, "it came by ssh"
    assert not (tmp_path / "broken").exists()


@pytest.mark.host
@pytest.mark.timeout(900)
def test_two_nodes_train_stop_and_resume(cluster, tmp_path):
    (tmp_path / "run").mkdir()
    job = write_job(tmp_path, "deepspeed")
    given = {"CHECKOUT": checkout("deepspeed"), "DS_CONFIG": deepspeed_config(tmp_path, 1)[1]}
    for attempt, (first, last, stop) in enumerate([(1, 6, {"STOP_AT": 6}), (7, 12, {})]):
        code, log = start(cluster, tmp_path, job, "ADO_CPU=1\n", **given, **stop, MASTER_PORT=29600 + attempt)
        assert code == 0, log[-6000:]
        assert set(Run(code, log, tmp_path / "run").curve) == set(range(first, last + 1)), log[-6000:]
    verdict = audit(tmp_path / "run")
    assert verdict.failure is None and verdict.samples == verdict.seen == 12 * 8 and verdict.attempts == 2
