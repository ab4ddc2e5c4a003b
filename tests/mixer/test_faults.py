"""What fails around the mixer, on real ranks: every rank says the same sentence, or the run goes on."""

import errno
import json
import os
import signal
import time

import pytest
import torch.distributed as dist

from ado_megatron.errors import SidecarError, UserError
from ado_megatron.measure.draw_log import DrawLog
from ado_megatron.measure.metrics import read_metrics
from ado_megatron.mixer import loader, stop_notice
from ado_megatron.mixer.loader import LoaderSettings, check_shared_memory
from ado_megatron.mixer.mixer import Mixer
from ado_megatron.mixer.refit_schedule import fit_deadline_of
from ado_megatron.mixer.world import World
from tests.kit.mixing import Run, config, domains, stop_fits
from tests.kit.ranks import run_ranks


@pytest.fixture(autouse=True)
def _no_fit_is_left():
    yield
    stop_fits()


def world_of(rank):
    return World(rank, dist.get_world_size(), True, World.single().device)


def sentence_of(action):
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


# ---------------------------------------------------------------- what only rank zero builds


def _build(rank, path, conf):
    run = Run(path, conf, world=world_of(rank), dp=2, dp_rank=rank)
    began = time.monotonic()
    return sentence_of(run.start), time.monotonic() - began


def test_a_stages_file_that_is_wrong_is_told_by_every_rank_at_once(tmp_path):
    (tmp_path / "stages.json").write_text('[{"block": 0, "weights": {"code": 1, "law": 1}}]')
    conf = config(policy="stages", stages=str(tmp_path / "stages.json"))
    (first, one), (second, other) = run_ranks(_build, 2, tmp_path, conf)
    assert first == second and "unknown domain law" in first and max(one, other) < 10


def _full(rank, path):
    """A directory of rank zero's that is a file: nothing can be made in it."""
    (path / "ado").write_text("in the way") if rank == 0 else None
    dist.barrier()
    return sentence_of(Run(path, world=world_of(rank), dp=2, dp_rank=rank).start)


def test_a_run_directory_that_cannot_be_written_is_told_by_every_rank(tmp_path):
    first, second = run_ranks(_full, 2, tmp_path)
    assert first == second and f"{tmp_path / 'ado'} cannot be written: " in first


# ---------------------------------------------------------------- one owner


def _start_twice(rank, path):
    """Two runs of one rank each, at once, as two resumes of one job would be."""
    run = Run(path, world=World.single())
    dist.barrier()
    try:
        run.start()
    except UserError as error:
        dist.barrier()
        return str(error)
    dist.barrier()
    run.train(5)
    run.mixer.close()
    return ""


def test_of_two_runs_that_start_at_once_one_is_refused(tmp_path):
    said = run_ranks(_start_twice, 2, tmp_path)
    assert sorted(map(bool, said)) == [False, True]
    assert "two runs cannot share a run directory" in max(said)


# ---------------------------------------------------------------- proof that cannot be written


def _audited(rank, path):
    stop_notice.LOOK_EVERY = 0.3
    run = Run(path, config(audit=True), steps=2000, world=world_of(rank), dp=2, dp_rank=rank).start()
    run.train(3)
    run.save(path / "s.ado")
    run.mixer.last_saved = "of step 3"
    if rank == 1:

        def full(log):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(log.path))

        DrawLog.flush = full
        DrawLog._buffered = property(lambda log: 1 << 30, lambda log, value: None)
    began = time.monotonic()

    def go_on():
        for step in range(3, 2000):
            run.train(step + 1)
            run.mixer.draw_log.seen(step + 1, [run.consumed])
            time.sleep(0.01)

    return sentence_of(go_on), run.step, time.monotonic() - began


def test_rank_ones_draw_log_ends_both_ranks_after_the_same_step(tmp_path):
    (first, step, seconds), (second, other_step, _) = run_ranks(_audited, 2, tmp_path)
    assert first == second and step == other_step and seconds < 60
    assert first.startswith("rank 1: the draw log ") and "rank00001" in first and "No space left" in first
    assert "resume from the last whole checkpoint, of step 3" in first


def _no_flush(rank, path):
    run = Run(path, config(audit=True), world=world_of(rank), dp=2, dp_rank=rank).start().train(5)
    if rank == 1:
        run.mixer.draw_log.drawn(5, [1], [1])
        run.mixer.draw_log.path = path / "gone" / "x.draws"
    return sentence_of(lambda: run.save(path / "s.ado"))


def test_a_checkpoint_without_rank_ones_draw_log_is_no_checkpoint(tmp_path):
    first, second = run_ranks(_no_flush, 2, tmp_path)
    assert first == second and first.startswith("rank 1: ") and "gone/x.draws could not be written" in first


def _no_end(rank, path):
    conf = config(audit=True, fit_lag=20)
    run = Run(path, conf, world=world_of(rank), dp=2, dp_rank=rank).start().train(25)
    fits = [fit.pid for _, fit in run.mixer.rank_zero._fits.values()] if rank == 0 else []
    if rank == 1:
        run.mixer.draw_log.drawn(25, [1], [1])
        run.mixer.draw_log.path = path / "gone" / "x.draws"
    return sentence_of(run.mixer.close), fits


def test_an_end_without_rank_ones_draw_log_is_a_sentence_and_no_fit_goes_on(tmp_path):
    (first, fits), (second, _) = run_ranks(_no_end, 2, tmp_path)
    assert first == second and first.startswith("rank 1: ") and "gone/x.draws could not be written" in first
    assert fits and not any(os.path.exists(f"/proc/{pid}") for pid in fits)
    assert list((tmp_path / "ado" / "fits").iterdir()) == []


# ---------------------------------------------------------------- sidecar and checkpoint belong together


def test_a_sidecar_of_another_save_is_refused_by_its_token(tmp_path):
    run = Run(tmp_path / "a", steps=40).start().train(10)
    token = run.mixer.save(tmp_path / "s.ado", 10, run.consumed)
    other = Run(tmp_path / "b", steps=40).start().train(10)  # the same in all, but another run
    theirs = other.mixer.save(tmp_path / "theirs.ado", 10, other.consumed)
    assert token != theirs and len(token) == 16
    Run(tmp_path / "c", steps=40).mixer.load(tmp_path / "s.ado", token)
    with pytest.raises(SidecarError, match=f"is {theirs}, the checkpoint names {token}"):
        Run(tmp_path / "c", steps=40).mixer.load(tmp_path / "theirs.ado", token)


# ---------------------------------------------------------------- memory and time


def _shared_memory(rank, free):
    """Four ranks on two machines. One of each reads nothing, and a reader's loader may hold 8.5 MB."""
    reads = rank % 2 == 0
    settings = LoaderSettings(num_workers=4, micro_batch=8, sample_bytes=20 * 4096 if reads else 0)
    loader._memory_of = lambda directory: rank // 3  # the first machine has two readers, of three ranks
    loader.os.statvfs = lambda path: os.statvfs_result((4096, 4096, 4096, 4096, free // 4096, 0, 0, 0, 0, 255))
    try:
        check_shared_memory(settings, World.detect(True))
    except UserError as error:
        return str(error)
    return ""


def test_too_little_shared_memory_on_a_node_is_said_with_the_numbers_by_every_rank(tmp_path):
    said = run_ranks(_shared_memory, 4, 17 << 20)
    assert said == [""] * 4
    (sentence,) = set(run_ranks(_shared_memory, 4, 16 << 20))
    assert sentence.startswith("rank 0 (and 2 more ranks): the loader workers of this node may hold 17.0 MB in ")
    assert "(2 ranks that read × 4 workers), but 16.8 MB are free there; enlarge it (docker: --shm-size" in sentence


def test_memory_that_this_system_has_not_is_not_asked_about(tmp_path):
    settings = LoaderSettings(num_workers=4, micro_batch=8, sample_bytes=1 << 40)
    check_shared_memory(settings, World.single(), str(tmp_path / "none"))
    with pytest.raises(UserError, match=f"in {tmp_path} "):
        check_shared_memory(settings, World.single(), str(tmp_path))


def _stuck(rank, path):
    """Rank zero's fit is stopped, as one that waits for a disk for ever would be. It is the only one."""
    conf = config(fit_deadline=1.0, fit_lag=5, refit_interval=50)
    run = Run(path, conf, world=world_of(rank), dp=2, dp_rank=rank).start().train(53)
    if rank == 0:
        ((_, fit),) = run.mixer.rank_zero._fits.values()
        os.kill(fit.pid, signal.SIGSTOP)
    run.train(70)
    fits = [record["step"] for record in read_metrics(path / "ado" / "metrics.jsonl") if record["type"] == "fit"]
    run.mixer.close()
    return run.rows().tolist(), run.messages, fits


def test_a_stuck_fit_costs_its_deadline_and_the_training_goes_on_under_the_old_laws(tmp_path):
    (rows, said, fits), (others, _, _) = run_ranks(_stuck, 2, tmp_path)
    assert rows == others and len(rows) >= 70
    failed = [line for line in said if "the old laws stay in force" in line]
    assert len(failed) == 1 and failed[0].endswith("it took longer than 1 s") and len(fits) == 1


def _deadline(rank, path):
    world = world_of(rank)
    mixer = Mixer(
        config(fit_deadline=1000.0), domains(), total_samples=160, block_size=16, world=world, run_dir=path
    )  # fmt: skip
    return world.timeout(), fit_deadline_of(mixer.config, world.timeout())


def test_the_deadline_of_a_fit_stays_below_the_process_groups(tmp_path):
    for timeout, deadline in run_ranks(_deadline, 2, tmp_path, timeout=100.0):
        assert timeout == 100.0 and deadline == 40.0


def test_the_lock_is_given_back_at_the_end(tmp_path):
    run = Run(tmp_path, steps=10).start()
    assert json.loads((tmp_path / "ado" / "owner.json").read_text())["pid"] == os.getpid()
    run.train(10)
    run.mixer.close()
    assert not (tmp_path / "ado" / "owner.json").exists()
