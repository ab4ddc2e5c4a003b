"""`ado-megatron pretrain` under the real deepspeed launcher: results, exit codes, and nobody left behind."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from ado_megatron import audit
from tests.kit.ranks import run_ranks
from tests.kit.small_disks import moved_to_a_full_disk, shared_memory_of
from tests.kit.training import SMALL, metrics, train_rank, write_data
from tests.trainer.test_parallel import ADO, mean_loss


def command(run, data, *extra: str) -> list[str]:
    flags = {name: value for name, value in SMALL.items() if not isinstance(value, bool)}
    flags |= {f"ado_{name}": value for name, value in ({"policy": "ado"} | ADO).items()}
    words = [word for name, value in flags.items() for word in ("--" + name.replace("_", "-"), str(value))]
    pretrain = [sys.executable, "-m", "ado_megatron.cli", "pretrain"]
    return [*pretrain, "--run-dir", str(run), "--data", str(data), *words, *extra]


def environment() -> dict[str, str]:
    """This process's, without what a launcher puts there."""
    ours = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return ours | {"OMP_NUM_THREADS": "1"}


def start(*arguments, **options) -> subprocess.Popen:
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) | options
    return subprocess.Popen(command(*arguments), env=environment(), **pipes)


def left_over(run) -> list[int]:
    """Processes whose command line names the run directory."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if str(run) in (p.info["cmdline"] or [])]


def wait_until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(condition())


def test_a_stopped_and_resumed_run_is_audited_and_equals_one_process(tmp_path):
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    for extra in (["--exit-interval", "5"], ["--resume", "--num-workers", "1"]):
        process = start(
            run, data, "--num-processes", "2", "--ado-audit", "--ado-log-interval", "1", "--no-progress", *extra
        )
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    assert "optimizer: torch AdamW" in output and "resumed after step 5" in output
    assert "Traceback" not in errors and left_over(run) == []
    assert audit.main([str(run)]) == 0
    one = run_ranks(train_rank, 1, str(tmp_path / "one"), str(data), {}, ADO)[0]
    steps, progress = metrics(run, "step"), metrics(run, "progress")
    np.testing.assert_allclose([record["loss"] for record in progress], one["losses"], atol=1e-4)
    np.testing.assert_allclose([record["grad_norm"] for record in progress], one["grad_norms"], rtol=1e-4)
    np.testing.assert_allclose([mean_loss(record) for record in steps], one["losses"], atol=1e-4)
    assert list((run / "tensorboard").glob("events.*"))


def test_bad_input_that_only_a_rank_finds_is_one_sentence_and_exit_code_2(tmp_path):
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    arguments = (run, data, "--num-processes", "2", "--no-progress", "--resume")
    from ado_megatron.trainer.check_data import check_data
    from ado_megatron.trainer.options import parse
    from ado_megatron.trainer.run_dir import run_identity

    options, config = parse(command(*arguments)[4:])
    (run / "config.json").write_text(json.dumps(run_identity(options, config, check_data(options), 2)))
    (run / "checkpoints" / "latest").write_text("step_3\n")
    process = start(*arguments)
    _, errors = process.communicate(timeout=240)
    said = [line for line in errors.splitlines() if "ado-megatron: error" in line]
    assert process.returncode == 2 and len(said) == 1 and "names 'step_3' but its files are not all there" in said[0]
    assert "Traceback" not in errors and left_over(run) == []


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["a rank", "the launcher", "the parent", "asked to stop"])
def test_whoever_dies_nobody_is_left_and_the_exit_code_says_so(victim, tmp_path, monkeypatch):
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    endless = ["--num-processes", "2", "--steps", "100000", "--lr-decay", "constant", "--save-interval", "10"]
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    process = start(run, data, *endless, "--no-progress", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert wait_until((run / "checkpoints" / "latest").exists, 120)
    family = psutil.Process(process.pid).children(recursive=True)
    ranks = [p for p in family if p.cmdline()[1:4] == ["-u", "-m", "ado_megatron.trainer.launch"]]
    launcher = next(p for p in family if "deepspeed.launcher.launch" in p.cmdline())
    if victim == "asked to stop":
        process.terminate()
    else:
        os.kill(
            {"a rank": ranks[-1].pid, "the launcher": launcher.pid, "the parent": process.pid}[victim], signal.SIGKILL
        )
    assert wait_until(lambda: process.poll() is not None, 60)
    assert wait_until(lambda: left_over(run) == [], 30), left_over(run)
    assert process.returncode == {"the parent": -9, "asked to stop": 143}.get(victim, process.returncode) != 0
    assert folders(temporary) == []


ENDLESS = ["--num-processes", "2", "--steps", "100000", "--lr-decay", "constant", "--no-progress"]


def trains(run) -> bool:
    """Whether steps are being done: metrics.jsonl grows by them."""
    path = run / "ado" / "metrics.jsonl"
    return path.exists() and path.read_text().count('"progress"') >= 2


def folders(temporary) -> list[str]:
    """What a run left in its temporary directory."""
    return [path.name for path in temporary.iterdir() if path.name.startswith(("ado-", "pymp-"))]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "SIGUSR1", "SIGINT", "to one rank"])
def test_a_signal_ends_the_step_on_all_ranks_and_saves(how, tmp_path, monkeypatch):
    data, run, temporary = write_data(tmp_path / "data"), tmp_path / "run", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    extra = [*ENDLESS, "--ado-log-interval", "5", "--exit-signal", "USR1", "--num-workers", "1", "--ado-audit"]
    process = start(run, data, *extra)
    assert wait_until(lambda: trains(run), 120)
    assert len(list(temporary.glob("ado-megatron-*"))) == 1
    number = signal.SIGTERM if how == "to one rank" else getattr(signal, how)
    if how == "to one rank":
        (path,) = temporary.glob("ado-megatron-*/rank_1")
        os.kill(int(path.read_text()), number)
    else:
        process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors and left_over(run) == [] and folders(temporary) == []
    said = [line for line in errors.splitlines() if line.startswith("ado-megatron:")]
    assert len(said) == (0 if how == "to one rank" else 1), errors
    step = int((run / "checkpoints" / "latest").read_text()[5:])
    assert "ended by SIG" in output and f"{step} of 100000 steps done" in output
    assert metrics(run, "step")[-1]["step"] == step
    process = start(run, data, *extra, "--resume", "--steps", str(step + 3))
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0 and f"resumed after step {step}" in output, errors
    assert audit.main([str(run)]) == 0


@pytest.mark.slow
def test_a_second_signal_ends_the_run_at_once(tmp_path):
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    process = start(run, data, *ENDLESS, "--ado-log-interval", "5")
    assert wait_until(lambda: trains(run), 120)
    ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if "-u" in p.cmdline()[1:2]]
    for rank in ranks:
        rank.suspend()  # no step will end any more
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 137 and "Traceback" not in errors and left_over(run) == []
    assert not (run / "checkpoints" / "latest").exists()


@pytest.mark.slow
def test_a_killed_parent_that_nobody_reaps_does_not_leave_the_run_training(tmp_path):
    """Its process id lives on as a zombie's."""
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    line = command(run, data, *ENDLESS, "--ado-log-interval", "5")
    careless = f"import subprocess, time; print(subprocess.Popen({line!r}).pid, flush=True); time.sleep(300)"
    process = subprocess.Popen([sys.executable, "-c", careless], stdout=subprocess.PIPE, text=True)
    parent = psutil.Process(int(process.stdout.readline()))
    try:
        assert wait_until(lambda: trains(run), 120)
        parent.kill()
        assert wait_until(lambda: parent.status() == psutil.STATUS_ZOMBIE, 20)
        of_us = lambda: [pid for pid in left_over(run) if pid != process.pid]  # noqa: E731
        assert wait_until(lambda: of_us() == [], 30), of_us()
        assert parent.status() == psutil.STATUS_ZOMBIE
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_closed_stdout_and_a_full_board_stop_nothing(tmp_path):
    """The reader of the run's lines goes away, as `| head -1` does, and so does the directory of its events."""
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    process = start(run, data, "--num-processes", "2", "--steps", "100", "--ado-log-interval", "1")
    process.stdout.close()
    process.stderr.close()
    assert wait_until(lambda: list((run / "tensorboard").glob("events.*")), 120)
    for path in (run / "tensorboard").iterdir():
        path.unlink()
    (run / "tensorboard").rmdir()
    assert process.wait(240) == 0
    assert [record["step"] for record in metrics(run, "progress")] == list(range(1, 101))
    assert (run / "checkpoints" / "latest").read_text() == "step_100\n"


@pytest.mark.slow
def test_ctrl_c_before_the_first_step_is_one_line(tmp_path):
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    process = start(run, data, *ENDLESS)
    assert wait_until(lambda: len(psutil.Process(process.pid).children(recursive=True)) >= 2, 60)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.count("\n") == 1 and "Traceback" not in output, errors
    assert left_over(run) == []


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_one_sentence_and_exit_code_2(tmp_path):
    """A limit on the size of files stands for it; the layers of the model do not fit under it."""
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # noqa: E731
    process = start(run, data, "--num-processes", "2", "--pp", "2", "--no-progress", preexec_fn=limit)
    _, errors = process.communicate(timeout=240)
    said = [line for line in errors.splitlines() if "ado-megatron: error" in line]
    assert process.returncode == 2 and len(said) == 1, errors
    for words in ("checkpoints/step_8/", "could not be written", "no whole checkpoint yet"):
        assert words in said[0]
    assert "Traceback" not in errors and left_over(run) == []


@pytest.mark.slow
def test_too_little_shared_memory_is_said_before_the_first_step_with_the_numbers(tmp_path):
    """A tmpfs of 200 kB for two ranks whose loaders may hold 143 kB each."""
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    words = ["--num-processes", "2", "--num-workers", "2", "--seq-length", "512", "--no-progress"]
    line = [*shared_memory_of("200k"), *command(run, data, *words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, env=environment())
    said = [text for text in done.stderr.splitlines() if "ado-megatron: error" in text]
    assert done.returncode == 2 and len(said) == 1 and "Traceback" not in done.stderr, done.stderr
    assert "may hold 0.3 MB in /dev/shm (2 ranks that read × 2 workers), but 0.2 MB are free there" in said[0]
    assert not (run / "ado" / "metrics.jsonl").exists() and left_over(run) == []


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk_under_rank_ones_draw_log_ends_all_ranks_with_one_sentence_and_exit_code_2(tmp_path):
    """Between two checkpoints: rank 1 notices when it next writes, and all leave after the same step."""
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    words = ["--num-processes", "2", "--lr-decay", "constant", "--no-progress", "--ado-audit"]
    words += ["--global-batch", "4096", "--micro-batch", "256"]  # what a rank keeps until it writes is soon reached
    process = start(run, data, *words, "--steps", "2")
    assert process.communicate(timeout=240) and process.returncode == 0
    process = start(run, data, *words, "--steps", "100000", "--resume")
    log = run / "ado" / "audit" / "rank00001-2.draws"
    assert wait_until(log.exists, 120)
    with moved_to_a_full_disk(log, tmp_path / "full"):
        _, errors = process.communicate(timeout=90)
    said = [line for line in errors.splitlines() if "ado-megatron: error" in line]
    assert process.returncode == 2 and len(said) == 1 and "Traceback" not in errors, errors
    assert f"rank 1: the draw log {log} cannot be written: No space left on device" in said[0]
    assert said[0].endswith("mend it and resume from the last whole checkpoint, of step 2")
    assert left_over(run) == [] and list((run / "ado" / "fits").glob("*")) == []


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk_under_metrics_stops_nothing_and_loses_nothing_that_can_wait(tmp_path):
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    with open(tmp_path / "errors.txt", "w+") as errors:
        process = start(run, data, *ENDLESS, "--ado-log-interval", "1", stdout=subprocess.DEVNULL, stderr=errors)
        said = lambda words: words in (tmp_path / "errors.txt").read_text()  # noqa: E731
        path = run / "ado" / "metrics.jsonl"
        assert wait_until(lambda: trains(run), 120)
        with moved_to_a_full_disk(path, tmp_path / "full"):
            assert wait_until(lambda: said("metrics.jsonl cannot be written, the training goes on: "), 60)
            assert process.poll() is None
            (tmp_path / "full" / "filler").unlink()
            assert wait_until(lambda: said("metrics.jsonl can be written again, after "), 90)
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 143
            steps = [record["step"] for record in metrics(run, "progress")]
        assert not said("Traceback") and said("No space left on device")
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 2
