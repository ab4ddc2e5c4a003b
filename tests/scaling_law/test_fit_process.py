"""The fit process: same laws as in this process, and its death is a value."""

import os
import signal
import time

import numpy as np
import pytest

from ado_megatron.config import AdoConfig
from ado_megatron.scaling_law.fit_process import Fit
from ado_megatron.scaling_law.history import LossHistory
from ado_megatron.scaling_law.smoothing import fit_history

CONFIG = AdoConfig(start_step=0, ignore_steps=0, stride=1)


def cut_history(steps=60, num_domains=2):
    history = LossHistory(num_domains, CONFIG)
    for step in range(steps):
        n_K = np.full(num_domains, 64 * (step + 1))
        loss_K = 1.0 + 5.0 * n_K ** -np.array([0.3, 0.5])
        history.append(step, n_K, np.full(num_domains, 64), loss_K * 100, np.full(num_domains, 100.0))
    return history.cut(steps)


def test_the_laws_are_those_of_a_fit_in_this_process():
    history = cut_history()
    outcome = Fit(history, CONFIG).result(60)
    expected = fit_history(history, CONFIG)
    assert outcome.reason == ""
    for name, value in expected.to_arrays().items():
        np.testing.assert_array_equal(outcome.laws.to_arrays()[name], value)
    np.testing.assert_allclose(outcome.laws.alpha_K, [0.3, 0.5], rtol=0.05)


def test_a_killed_fit_is_a_reason_and_leaves_no_files():
    fit = Fit(cut_history(), CONFIG)
    os.kill(fit.pid, signal.SIGKILL)
    outcome = fit.result(60)
    assert outcome.laws is None and "status -9" in outcome.reason
    assert not fit._directory.exists()


def test_a_fit_that_cannot_run_says_why():
    history = cut_history()
    del history["loss_TxK"]
    outcome = Fit(history, CONFIG).result(60)
    assert outcome.laws is None and "KeyError: 'loss_TxK'" in outcome.reason


def test_a_fit_past_its_deadline_is_stopped():
    fit = Fit(cut_history(), CONFIG)
    os.kill(fit.pid, signal.SIGSTOP)
    started = time.monotonic()
    outcome = fit.result(0.1)
    assert "longer than 0.1 s" in outcome.reason
    assert outcome.seconds >= outcome.waited >= 0.1 and time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(fit.pid, 0)


def test_the_child_never_imports_torch():
    import subprocess
    import sys

    code = (
        "import sys, ado_megatron.scaling_law.fit_process; "
        "assert not any(m.split('.')[0] == 'torch' for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
