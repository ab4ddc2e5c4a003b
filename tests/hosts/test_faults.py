"""A run told to end, or resumed with what is not its own, or without room: the checkpoint is whole, or a sentence says
why not."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from ado_megatron.audit import audit
from ado_megatron.hosts.takeover import sidecar_path
from tests.kit.host_runs import QUICK_ADO, signal_a_rank, tail, train, write_domains
from tests.kit.small_disks import moved_to_a_full_disk, shared_memory_of

pytestmark = [pytest.mark.host, pytest.mark.timeout(600)]
STEPS = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("host")
    return directory, ["--data-path", *write_domains(directory)]


def assert_ends_with_two(run, sentence: str) -> None:
    """The sentence stands in the log once, and the ranks ended with 2, as launchers tell it."""
    assert run.status not in (0, None), tail(run)
    assert run.log.count(sentence) == 1 and "ado: ado:" not in run.log, tail(run)
    assert re.search(r"exitcode\s*: 2|exits with return code = 2", run.log), tail(run)


@pytest.mark.parametrize("host", ["lm", "lm_main", "deepspeed", "deepspeed_flat"])
def test_a_termination_signal_saves_with_our_state_and_the_run_goes_on(host, place, tmp_path, monkeypatch):
    """The framework's --exit-signal-handler: the signal reaches rank 1 alone, all ranks end after the same step, and
    their loaders' workers with them."""
    directory, data = place
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    save = directory / f"{host}_terminated"
    pipeline = ["--pipeline-model-parallel-size", 2] if host == "deepspeed" else []
    options = ["--exit-signal-handler", "--num-workers", 2, *pipeline, *QUICK_ADO, "--ado-audit"]
    first = train(host, save, data, options, ranks=2, steps=STEPS, during=signal_a_rank(signal.SIGTERM, 1, step=8))
    assert first.status == 0 and "exiting program after receiving SIGTERM" in first.log, tail(first)
    iteration = int((save / "latest_checkpointed_iteration.txt").read_text())
    assert 8 <= iteration < STEPS and max(first.curve) == iteration
    assert [path.name for path in (save / "ado").glob("state_*")] == [f"state_{iteration}.ado"]

    second = train(host, save, data, [*options, "--load", save], ranks=2, steps=STEPS)
    assert second.status == 0 and min(second.curve) == iteration + 1 and max(second.curve) == STEPS, tail(second)
    verdict = audit(save)
    assert verdict.failure is None and verdict.samples == STEPS * 8 and verdict.attempts == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(("ado-", "pymp-"))] == []


@pytest.mark.parametrize("host", ["lm", "deepspeed", "deepspeed_flat"])
def test_a_sidecar_of_another_run_is_refused_in_one_sentence_by_all_ranks(host, place):
    directory, data = place
    mine, other = directory / f"{host}_mine", directory / f"{host}_other"
    options = ["--num-workers", 0, *QUICK_ADO, "--ado-audit"]
    for save in (mine, other):
        run = train(host, save, data, [*options, "--exit-interval", 6], ranks=2, steps=12)
        assert run.status == 0, tail(run)
    kept = shutil.copy(sidecar_path(mine, 6), directory / f"{host}.ado")
    shutil.copy(sidecar_path(other, 6), sidecar_path(mine, 6))
    refused = train(host, mine, data, [*options, "--load", mine], ranks=2, steps=12)
    assert not refused.curve
    assert_ends_with_two(refused, "state_6.ado was not written with this checkpoint")
    shutil.copy(kept, sidecar_path(mine, 6))
    resumed = train(host, mine, data, [*options, "--load", mine], ranks=2, steps=12)
    assert resumed.status == 0 and max(resumed.curve) == 12, tail(resumed)
    verdict = audit(mine)
    assert verdict.failure is None and verdict.samples == 12 * 8


@pytest.mark.parametrize("host", ["lm", "deepspeed"])
def test_a_bin_of_the_same_size_with_other_content_is_refused_on_a_resume(host, tmp_path):
    blend, save = write_domains(tmp_path), tmp_path / "run"
    options = ["--num-workers", 0, *QUICK_ADO]
    run = train(host, save, ["--data-path", *blend], [*options, "--exit-interval", 6], steps=12)
    assert run.status == 0, tail(run)
    tokens = np.memmap(tmp_path / "code_text_document.bin", dtype=np.uint16, mode="r+")
    tokens[:] = np.roll(tokens, 1)
    tokens.flush()
    refused = train(host, save, ["--data-path", *blend], [*options, "--load", save], steps=12)
    assert not refused.curve
    assert_ends_with_two(refused, f"the data {tmp_path}/code_text_document of other contents (or it has grown")


@pytest.mark.parametrize("host", ["lm", "deepspeed"])
def test_one_file_by_two_paths_is_refused(host, tmp_path):
    blend = write_domains(tmp_path)
    for kind in (".bin", ".idx"):
        (tmp_path / f"alias{kind}").symlink_to(blend[1] + kind)
    data = ["--data-path", *blend, "0.5", str(tmp_path / "alias")]
    refused = train(host, tmp_path / "run", data, QUICK_ADO, steps=6)
    assert_ends_with_two(refused, "the train blend names one domain twice: ")


LARGE = ["--micro-batch-size", 128, "--global-batch-size", 2048, "--eval-interval", 1000]
TINY = ["--hidden-size", 8, "--num-attention-heads", 1, "--num-layers", 2]


@pytest.mark.parametrize("host", ["lm", "deepspeed_flat"])
def test_too_little_shared_memory_is_said_before_the_first_step_with_the_numbers(host, place):
    directory, data = place
    run = train(
        host, directory / f"{host}_shm", data, [*LARGE, "--num-workers", 2, *QUICK_ADO], ranks=2, steps=6,
        within=shared_memory_of("1m"),
    )  # fmt: skip
    assert not run.curve
    assert_ends_with_two(run, "in /dev/shm (2 ranks that read × 6 workers), but 1.0 MB are free there; enlarge it")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize("host", ["lm", "deepspeed"])
def test_a_full_disk_under_rank_ones_draw_log_ends_all_ranks_with_one_sentence(host, place):
    """Between two checkpoints, under each framework's launcher, within a minute after rank 1 has noticed."""
    directory, data = place
    save = directory / f"{host}_full"
    options = [*LARGE, *TINY, "--num-workers", 1, *QUICK_ADO, "--ado-audit"]
    first = train(host, save, data, [*options, "--exit-interval", 2], ranks=2, steps=1000)
    assert first.status == 0, tail(first)
    full = save / "ado" / "audit" / "rank00001-2.draws"

    def fill(process, log: Path) -> None:
        deadline = time.monotonic() + 240
        while not re.search(r"iteration\s+3/", log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.05)
        with moved_to_a_full_disk(full, directory / f"{host}_mount"):
            process.wait(120)

    ended = train(host, save, data, [*options, "--load", save], ranks=2, steps=1000, during=fill)
    assert_ends_with_two(ended, f"rank 1: the draw log {full} cannot be written: No space left on device")
    assert "mend it and resume from the last whole checkpoint, of step 2" in ended.log
    assert list((save / "ado" / "fits").glob("*")) == []


@pytest.mark.parametrize("host", ["lm", "deepspeed_flat"])
def test_of_two_resumes_of_one_run_the_second_is_refused(host, place):
    directory, data = place
    save = directory / f"{host}_twice"
    options = ["--num-workers", 0, *QUICK_ADO, "--ado-audit"]
    first = train(host, save, data, [*options, "--exit-interval", 6], ranks=1, steps=STEPS)
    assert first.status == 0, tail(first)
    second = []

    def resume_again(process, log: Path) -> None:
        signal_a_rank(signal.SIGSTOP, 0, step=7)(process, log)  # so that it is not through before the second begins
        second.append(train(host, save, data, [*options, "--load", save], ranks=1, steps=STEPS))
        signal_a_rank(signal.SIGCONT, 0, step=7)(process, log)

    resumed = train(host, save, data, [*options, "--load", save], ranks=1, steps=STEPS, during=resume_again)
    assert resumed.status == 0 and max(resumed.curve) == STEPS, tail(resumed)
    assert not second[0].curve
    assert_ends_with_two(second[0], f"{save}/ado is being written by another process (process ")
    assert audit(save).failure is None
