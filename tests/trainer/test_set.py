"""A run of two ranks, changed by hand while it goes on, killed, and resumed on one."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from ado_megatron import cli
from ado_megatron.audit import audit
from ado_megatron.steer.journal import read_journal
from tests.kit.ranks import run_ranks
from tests.kit.training import metrics, train_rank, write_data
from tests.trainer.test_parallel import ADO

STEPS = 400
RUN = dict(steps=STEPS, save_interval=10, lr_decay="constant", zero=0, num_workers=1)
MIX = ADO | dict(refit_interval=20, fit_lag=4, log_interval=5, audit=True)


def _group(ranks: int, run: str, data: str) -> None:
    os.setpgid(0, 0)
    run_ranks(train_rank, ranks, run, data, RUN | dict(resume=True), MIX)


def wait_for(condition, process, seconds=120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_of_two_ranks_changed_killed_and_resumed_on_one(tmp_path, capsys):
    import ado_megatron.trainer.loop  # noqa: F401  once, here: the runs are forked

    data, run = str(write_data(tmp_path / "data", tokens=120_000)), tmp_path / "run"
    latest, context = run / "checkpoints" / "latest", multiprocessing.get_context("fork")
    process = context.Process(target=_group, args=(2, str(run), data))
    process.start()
    wait_for(latest.exists, process)
    assert cli.main(["set", str(run), "domain2=.5", "--floor", "domain1=.2"]) == 0
    assert "holds from block" in capsys.readouterr().out
    assert cli.main(["set", str(run), "domain2=.9"]) == 2
    assert "pins and floors sum to 1.1" in capsys.readouterr().err
    assert cli.main(["set", str(run), "--refit-now"]) == 0
    (change, refit), before = read_journal(run / "ado" / "journal.json"), latest.read_text()
    wait_for(lambda: latest.read_text() != before, process)
    assert cli.main(["set", str(run), "--undo"]) == 0  # most likely after the last checkpoint
    undo = read_journal(run / "ado" / "journal.json")[2]
    os.killpg(process.pid, signal.SIGKILL)
    process.join()

    last = context.Process(target=_group, args=(1, str(run), data))
    last.start()
    last.join(300)
    assert last.exitcode == 0
    verdict = audit(run)
    assert verdict.failure is None and (verdict.repeated, verdict.skipped) == (0, 0) and verdict.attempts == 2
    weights_K = {record["step"]: record["weights_K"] for record in metrics(run, "step")}
    assert max(weights_K) == STEPS
    for step, (a, b, c) in weights_K.items():  # the weights of block step − 1
        pinned = change.block < step <= undo.block
        assert (abs(c - 0.5) < 1e-9 and b >= 0.2 - 1e-9) if pinned else abs(c - 0.5) > 1e-3, (step, a, b, c)
    assert refit.block in [record["applies_at_block"] for record in metrics(run, "fit")]
    journalled = [record["id"] for record in metrics(run, "change")]
    assert journalled == [1, 2, 3]
    assert np.isfinite([record["loss"] for record in metrics(run, "progress")]).all()
