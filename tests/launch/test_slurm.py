"""slurm.sbatch on made-up srun and scontrol: what runs on each node, when it requeues, whom it asks to save."""

import os
import subprocess
import sys
import time

import pytest

from tests.kit.launching import (
    HOME,
    LAUNCH,
    assert_our_module_runs_the_users_script,
    assert_the_nodes_environment,
    deepspeed_options,
    environment,
    launch,
    start,
    torchrun_options,
)

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
        # an attempt that was requeued has a second try from the same checkpoint
        (1, "100", "", {"SLURM_RESTART_COUNT": 2}, True, "from 100 to 100: requeueing"),
        (1, "100", "", {"SLURM_RESTART_COUNT": 2, "TRIED": "50"}, True, "from 100 to 100: requeueing"),
        (1, "100", "", {"SLURM_RESTART_COUNT": 3, "TRIED": "100"}, False, "no checkpoint is newer than 100"),
        (1, "100", "", {"SLURM_RESTART_COUNT": 20}, False, "after 20 requeues, which is REQUEUES"),
        (1, "", "100", {"REQUEUE_FAILS": 1}, True, "Slurm did not requeue the job; a new one goes on from"),
    ],
)
def test_slurm_requeues_a_failed_attempt_within_bounds_if_it_made_progress(
    place, code, before, after, given, requeued, said
):
    for name, text in (("torchrun", RANKS), ("sleep", "#!/bin/bash\nexit 1\n")):
        (place / "bin" / name).write_text(text)
        (place / "bin" / name).chmod(0o755)
    if "TRIED" in given:
        (place / "run" / "tried_again.41234").write_text(given["TRIED"])
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
