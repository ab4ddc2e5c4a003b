"""The fit process: same laws as in this process, and its death is a value."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from ado_megatron.config import AdoConfig
from ado_megatron.scaling_law import fit_process
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
    return history.snapshot(steps)


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
    code = (
        "import sys, ado_megatron.scaling_law.fit_process; "
        "assert not any(m.split('.')[0] == 'torch' for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_its_files_lie_where_the_caller_says_and_are_removed(tmp_path):
    directory = tmp_path / "ado" / "fits"
    fit = Fit(cut_history(), CONFIG, directory=directory)
    assert fit._directory.parent == directory and fit.pid > 0
    assert fit.result(60).reason == ""
    assert list(directory.iterdir()) == []


def test_given_transfers_reach_the_fit(tmp_path):
    history = cut_history()
    outcome = Fit(history, CONFIG, [0.0, np.inf], directory=tmp_path).result(60)
    assert outcome.laws.transfer_K.tolist() == [0.0, np.inf]
    own, shared = (fit_history(history, CONFIG, value) for value in (0.0, np.inf))
    np.testing.assert_array_equal(outcome.laws.params(), [own.params()[0], shared.params()[1]])
    assert np.abs(own.params()[1] - shared.params()[1]).max() > 0.1


def test_leftovers_of_processes_that_are_gone_are_swept_at_the_first_fit(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    node = os.uname().nodename
    stale = tmp_path / f"ado-fit-{node}-{int(gone.stdout)}-abc"
    alive = tmp_path / f"ado-fit-{node}-{os.getppid()}-abc"
    elsewhere = tmp_path / f"ado-fit-not{node}-{int(gone.stdout)}-abc"
    for path in (stale, alive, elsewhere):
        (path / "sub").mkdir(parents=True)
    Fit(cut_history(), CONFIG, directory=tmp_path).cancel()
    assert sorted(tmp_path.iterdir()) == sorted([alive, elsewhere])


def test_a_fit_ends_with_the_process_that_asked_for_it(tmp_path):
    code = f"""
import os, signal, time
from pathlib import Path
from tests.scaling_law.test_fit_process import CONFIG, Fit, cut_history
fit = Fit(cut_history(), CONFIG, directory=Path({str(tmp_path)!r}))
while b"fit_process" not in Path(f"/proc/{{fit.pid}}/cmdline").read_bytes():
    time.sleep(0.01)
os.kill(fit.pid, signal.SIGSTOP)  # it would be through too soon
print(fit.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert asked.returncode == -signal.SIGKILL, asked.stderr
    with contextlib.suppress(psutil.NoSuchProcess):
        fit = psutil.Process(int(asked.stdout))
        fit.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + 30
        while fit.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.02)
        assert fit.status() == psutil.STATUS_ZOMBIE
    (left,) = tmp_path.iterdir()
    assert not (left / "laws.npz").exists()
    Fit(cut_history(), CONFIG, directory=tmp_path).cancel()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_a_reason(tmp_path):
    (tmp_path / "file").write_text("")
    fit = Fit(cut_history(), CONFIG, directory=tmp_path / "file" / "fits")
    assert fit.pid == 0
    outcome = fit.result(60)
    assert outcome.laws is None and "it could not start: NotADirectoryError" in outcome.reason
    fit.cancel()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize("options, error", [("ro", "Read-only file system"), ("size=20m", "No space left on device")])
def test_a_read_only_and_a_full_file_system_are_reasons(tmp_path, options, error):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        if "size" in options:
            with pytest.raises(OSError), open(tmp_path / "filler", "wb", buffering=0) as file:
                while file.write(bytes(1 << 20)):
                    pass
        outcome = Fit(cut_history(), CONFIG, directory=tmp_path).result(60)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert outcome.laws is None and error in outcome.reason


def test_a_directory_removed_in_mid_fit_is_a_reason(tmp_path):
    fit = Fit(cut_history(), CONFIG, directory=tmp_path)
    os.kill(fit.pid, signal.SIGSTOP)
    shutil.rmtree(fit._directory)
    os.kill(fit.pid, signal.SIGCONT)
    outcome = fit.result(60)
    assert outcome.laws is None and "status 1" in outcome.reason and is_gone(fit.pid)


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:300]),
                                  lambda path: path.write_bytes(b""), lambda path: np.savez(path, alpha_K=np.ones(2))])
def test_a_result_that_is_gone_cut_or_foreign_is_a_reason(tmp_path, harm):
    fit = Fit(cut_history(), CONFIG, directory=tmp_path)
    fit._process.wait(60)
    harm(fit._directory / "laws.npz")
    outcome = fit.result(60)
    assert outcome.laws is None and "cannot be read" in outcome.reason and list(tmp_path.iterdir()) == []


def test_a_process_that_cannot_start_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_process.sys, "executable", str(tmp_path / "no-such-python"))
    fit = Fit(cut_history(), CONFIG, directory=tmp_path)
    outcome = fit.result(60)
    assert outcome.laws is None and "it could not start: FileNotFoundError" in outcome.reason
    assert list(tmp_path.iterdir()) == []
