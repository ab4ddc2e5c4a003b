"""kill -9 of a whole run at random points: what is resumed draws and computes what an unbroken run does."""

import multiprocessing
import os
import signal
import tempfile
import time

import numpy as np
import pytest

from ado_megatron import audit
from ado_megatron.measure.draw_file import DrawFile
from tests.kit.ranks import run_ranks
from tests.kit.training import metrics, train_rank, write_data
from tests.trainer.test_parallel import ADO

KILLS, RANKS = 20, 2
RUN = dict(steps=400, save_interval=4, lr_decay="constant", pp=2, num_workers=1, eval_interval=50, eval_samples=4)
MIX = ADO | dict(refit_interval=10, fit_lag=4, audit=True)


def _group(run: str, data: str) -> None:
    """All of a run in a process group of its own, so that one signal reaches every process of it."""
    os.setpgid(0, 0)
    run_ranks(train_rank, RANKS, run, data, RUN | dict(resume=True), MIX)


def stream(run) -> dict[int, dict[int, tuple]]:
    """By rank and step: keys drawn, samples and keys seen; an attempt replaces what came before from its first step
    on."""
    found: dict[int, dict[int, tuple]] = {}
    files = [DrawFile.open(path) for path in (run / "ado" / "audit").glob("*.draws")]
    for file in sorted((f for f in files if f.header), key=lambda f: f.header["attempt"]):
        steps = found.setdefault(file.header["rank"], {})
        for step in [step for step in steps if step >= file.header["step"]]:
            del steps[step]
        for step in file.steps():
            steps[step.step] = tuple(tuple(array.tolist()) for array in (step.key_N, step.sample_N, step.seen_N))
    return found


def kill_somewhere(process, run, rng: np.random.Generator) -> None:
    """In three of ten cases during the start, else somewhere in the steps and checkpoints after a new checkpoint."""
    before, latest = progress(run), run / "checkpoints" / "latest"
    if rng.random() < 0.3:
        process.join(float(rng.uniform(0.05, 2.5)))
    else:
        deadline = time.monotonic() + 120
        while process.is_alive() and progress(run) == before and time.monotonic() < deadline:
            time.sleep(0.002)
        process.join(float(rng.uniform(0.0, 0.2)))
    assert process.exitcode is None, f"the run ended by itself at {latest.read_text()}"
    os.killpg(process.pid, signal.SIGKILL)
    process.join()


def progress(run) -> int:
    """Step of the last complete checkpoint."""
    latest = run / "checkpoints" / "latest"
    return int(latest.read_text()[5:]) if latest.exists() else 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_twenty_times_equals_an_unbroken_one(tmp_path, monkeypatch):
    import ado_megatron.trainer.loop  # noqa: F401  once, here: the runs are forked

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))  # what is killed leaves things there
    data = str(write_data(tmp_path / "data", tokens=120_000))
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    run_ranks(train_rank, RANKS, str(unbroken), data, RUN, MIX)
    rng, killed_at = np.random.default_rng(20), []
    context = multiprocessing.get_context("fork")
    for _ in range(KILLS):
        process = context.Process(target=_group, args=(str(run), data))
        process.start()
        kill_somewhere(process, run, rng)
        killed_at.append(progress(run))
    assert len(set(killed_at)) > KILLS // 3, killed_at
    last = context.Process(target=_group, args=(str(run), data))
    last.start()
    last.join(400)
    assert last.exitcode == 0
    assert audit.main([str(run)]) == 0
    assert stream(run) == stream(unbroken) and {len(steps) for steps in stream(run).values()} == {RUN["steps"]}
    for kind in ("progress", "step", "validation", "fit"):
        ours, theirs = metrics(run, kind), metrics(unbroken, kind)
        keys = {"progress": ["step", "loss", "grad_norm"], "fit": ["step", "log_beta_K"]}.get(kind, ["step", "loss_K"])
        assert [[r.get(k) for k in keys] for r in ours] == [[r.get(k) for k in keys] for r in theirs]
