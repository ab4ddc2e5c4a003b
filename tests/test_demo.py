"""The main job from end to end, as the demo does it, in small: prepare, two arms on two processes, audit, report."""
import subprocess
import sys

import numpy as np
import pytest

from ado_megatron.report import read_run

pytestmark = pytest.mark.slow
SIZE = "--num-processes 2 --layers 2 --hidden 32 --heads 2 --seq-length 32 --micro-batch 8 --global-batch 16"
TRAIN = f"{SIZE} --steps 160 --lr-warmup-steps 10 --eval-interval 80 --eval-samples 8 --num-workers 1 --no-tensorboard"
ADO = "--ado-start-step 60 --ado-ignore-steps 10 --ado-refit-interval 20 --ado-gate-points 4 --ado-audit"


def ado(*words) -> str:
    """Runs a command, which must pass; what it printed."""
    line = [sys.executable, "-m", "ado_megatron.cli", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_demo_in_small(tmp_path):
    data = tmp_path / "data"
    ado("prepare", "--demo", "--out", data, "--workers", 2)
    for arm, policy in (("adaptive", "ado"), ("static", "static")):
        ado("pretrain", "--data", data, "--run-dir", tmp_path / arm, "--ado-policy", policy,
            *TRAIN.split(), *ADO.split())  # fmt: skip
    adaptive, static = read_run(tmp_path / "adaptive"), read_run(tmp_path / "static")

    np.testing.assert_array_equal(static.weights_SxK, np.tile(static.weights_SxK[0], (len(static.step_S), 1)))
    assert np.abs(adaptive.weights_SxK[-1] - adaptive.prior_K).max() > 0.02
    assert adaptive.laws().ok_K.any()
    for run in (adaptive, static):
        assert run.counts_SxK.sum() == 160 * 16
        assert run.tokens_SxK.sum() == 160 * 16 * 32
        assert np.nanmean(run.last_loss_K() - run.first_loss_K()) < -0.5
        assert run.validation_step_V.tolist() == [80, 160]
        ado("audit", run.path)
    for run in (adaptive, static):  # until the first laws both follow the prior, but for the floor under small domains
        drawn_K = run.counts_SxK[run.step_S < 60].sum(0)
        np.testing.assert_allclose(drawn_K / drawn_K.sum(), run.prior_K, atol=0.01)

    printed = ado("report", tmp_path / "adaptive", "--compare", tmp_path / "static", "--out", tmp_path / "report")
    assert str(tmp_path / "report" / "report.html") in printed.splitlines()[-1]
    assert (tmp_path / "report" / "report.html").stat().st_size > 100_000
