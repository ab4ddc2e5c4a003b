"""Checkpoints when the disk fails or a file is damaged, on real ranks: one whole one at least, and a sentence."""

import json
import os
import resource
import shutil
from pathlib import Path

import pytest

from ado_megatron.errors import UserError
from ado_megatron.trainer.checkpoint_files import steps_of
from tests.kit.ranks import RankFailed, run_ranks
from tests.kit.training import metrics, train_rank, write_data
from tests.trainer.test_parallel import ADO, stream


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    import ado_megatron.trainer.loop  # noqa: F401  once, here: the ranks are forked

    return str(write_data(tmp_path_factory.mktemp("checkpoints") / "data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run of one rank with whole checkpoints after steps 2, 4, 6 and 8."""
    run = tmp_path_factory.mktemp("trained") / "run"
    run_ranks(train_rank, 1, str(run), data, dict(save_interval=2, keep=0), ADO)
    return run


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def _told(rank: int, full: int, *arguments) -> str | dict:
    """What a rank is told; rank `full` can write no file of more than 20 kB from its third step on."""
    from ado_megatron.trainer import loop

    before = loop.Trainer._train_step

    def step(self, number):
        if rank == full and number == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        return before(self, number)

    loop.Trainer._train_step = step
    try:
        return train_rank(rank, *arguments)
    except UserError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


@pytest.mark.parametrize("full", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_cannot_write_is_named_on_all_and_the_last_whole_checkpoint_too(full, data, tmp_path):
    run = tmp_path / "run"
    told = run_ranks(_told, 2, full, str(run), data, dict(pp=2, save_interval=2, keep=1), ADO)
    assert told[0] == told[1] and f"rank {full}: {run}/checkpoints/step_4/" in told[0], told
    assert "could not be written" in told[0] and "the last whole checkpoint is of step 2" in told[0]
    assert "\n" not in told[0] and (run / "checkpoints" / "latest").read_text() == "step_2\n"
    resumed = run_ranks(train_rank, 2, str(run), data, dict(pp=2, keep=1, resume=True), ADO)
    assert resumed[0]["first_step"] == 2 and (run / "checkpoints" / "latest").read_text() == "step_8\n"
    assert [path.name for path in (run / "checkpoints").glob("step_*")] == ["step_8"]


def _events(rank: int, *arguments) -> list[str]:
    """What happens to the files of a run, in order."""
    from ado_megatron.trainer import checkpoints

    events, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        events.append("sync " + os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def replaced(source, target):
        replace(source, target)
        events.append(f"replace {target}")

    os.fsync, os.replace = synced, replaced
    removed = shutil.rmtree
    checkpoints.shutil.rmtree = lambda path, **more: (events.append(f"remove {path}"), removed(path, **more))
    train_rank(rank, *arguments)
    return events


def test_model_files_are_on_the_disk_before_latest_and_old_ones_go_after(data, tmp_path):
    """With --keep 1 a crash at any moment finds one whole checkpoint."""
    run = tmp_path / "run"
    ranks = run_ranks(_events, 2, str(run), data, dict(pp=2, save_interval=4, keep=1), ADO)
    named = ranks[0].index(f"replace {run}/checkpoints/latest", ranks[0].index(f"replace {run}/ado/state_8.ado"))
    removed = ranks[0].index(f"remove {run}/checkpoints/step_4")
    assert named < removed
    folder = run / "checkpoints" / "step_8"
    synced = set()
    for events in ranks:
        mine = [event[5:] for event in events if event.startswith(f"sync {folder}/") and event.endswith(".pt")]
        assert mine and f"sync {folder}" in events[events.index(f"sync {mine[-1]}") :]  # the directory after them
        synced |= set(mine)
    before = ranks[0][:named]
    assert synced == {str(path) for path in folder.glob("*.pt")}
    assert f"replace {folder}/files.json" in before and f"replace {run}/ado/state_8.ado" in before
    listed = json.loads((folder / "files.json").read_text())["files"]
    assert listed == {path.name: path.stat().st_size for path in folder.glob("*.pt")}


def test_torn_checkpoints_do_not_count_as_kept(run, data):
    """Two whole ones are asked for: 4 is torn, so 2 stays beside 6 until another whole one is there."""
    (run / "ado" / "state_4.ado").unlink()
    from ado_megatron.trainer.checkpoints import _prune

    _prune(run, 6, 2)
    assert steps_of(run) == [2, 4, 6, 8]
    _prune(run, 8, 2)
    assert steps_of(run) == [6, 8]


def test_an_old_checkpoint_that_cannot_be_removed_stops_nothing(run, data, monkeypatch, caplog):
    from ado_megatron.trainer import checkpoints

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoints.shutil, "rmtree", refuse)
    checkpoints._prune(run, 8, 1)
    assert sum("could not be removed" in record.message for record in caplog.records) == 3


def cut_layer(run):
    path = next((run / "checkpoints" / "step_8").glob("layer_*"))
    os.truncate(path, path.stat().st_size // 2)


def flip_zip(run):
    path = max((run / "checkpoints" / "step_8").glob("*.pt"), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


DAMAGES = {
    "a cut layer": (cut_layer, r"latest names 'step_8' but its files are not all there: .*layer_.* has \d+ of"),
    "a missing layer": (lambda run: next((run / "checkpoints" / "step_8").glob("layer_*")).unlink(), "is missing"),
    "a broken zip": (flip_zip, r"latest names 'step_8' but .*\.pt is damaged"),
    "no sidecar": (lambda run: (run / "ado" / "state_8.ado").unlink(), "state_8.ado is missing"),
}  # fmt: skip


SLOW = [pytest.param(case, marks=[] if case == "a broken zip" else pytest.mark.slow) for case in DAMAGES]


@pytest.mark.parametrize("case", SLOW)
def test_a_damaged_checkpoint_is_named_with_the_newest_whole_one_and_the_way_on(case, run, data):
    damage, words = DAMAGES[case]
    damage(run)
    with pytest.raises(RankFailed, match=words) as caught:
        run_ranks(train_rank, 1, str(run), data, dict(resume=True), ADO)
    said = str(caught.value)
    assert "UserError: " in said and "zip" not in said.split("UserError: ")[1]
    assert "the newest whole checkpoint is step_6: go on from it with --resume=newest-whole" in said
    assert (run / "checkpoints" / "latest").read_text() == "step_8\n"
    if case == "a broken zip":  # found by whichever rank reads it
        (resumed,) = run_ranks(train_rank, 1, str(run), data, dict(resume="newest-whole"), ADO)
        assert resumed["first_step"] == 6 and resumed["last_step"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", b"step_", b"", b"../../elsewhere"])
def test_a_latest_that_names_nothing_is_damaged(content, run, data):
    (run / "checkpoints" / "latest").write_bytes(content)
    with pytest.raises(RankFailed, match=r"latest is damaged: .*newest whole checkpoint is step_8"):
        run_ranks(train_rank, 1, str(run), data, dict(resume=True), ADO)


@pytest.mark.slow
def test_when_nothing_is_whole_the_sentence_says_so(run, data):
    for path in (run / "ado").glob("state_*.ado"):
        path.unlink()
    for resume in (True, "newest-whole"):
        with pytest.raises(RankFailed, match="no (other )?checkpoint (is|in .* is) whole"):
            run_ranks(train_rank, 1, str(run), data, dict(resume=resume), ADO)


@pytest.mark.slow
def test_a_sidecar_of_another_run_is_refused(run, data, tmp_path):
    other = tmp_path / "other"
    run_ranks(train_rank, 1, str(other), data, dict(seed=7), ADO | dict(seed=7))
    shutil.copy(other / "ado" / "state_8.ado", run / "ado" / "state_8.ado")
    with pytest.raises(RankFailed, match="was not written with this checkpoint.*newest whole checkpoint is step_6"):
        run_ranks(train_rank, 1, str(run), data, dict(resume=True), ADO)


def test_a_first_start_that_failed_may_be_corrected_without_resume(data, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(RankFailed, match="UserError"):
        run_ranks(train_rank, 1, str(run), data, {}, ADO | dict(lead=1))  # the mixer refuses it, after config.json
    assert json.loads((run / "config.json").read_text())["trained"] is False
    (result,) = run_ranks(train_rank, 1, str(run), data, dict(lr=0.01), ADO)
    assert result["first_step"] == 0 and json.loads((run / "config.json").read_text())["trained"] is True


LENGTHS = [pytest.param(6, 8, id="longer"), pytest.param(8, 5, id="shorter", marks=pytest.mark.slow)]


@pytest.mark.parametrize("first, then", LENGTHS)
def test_a_resumed_run_may_be_longer_or_shorter_and_the_common_part_is_the_same(first, then, data, trained, tmp_path):
    """Planned rows stay; those past a new end are cut, those up to it are planned as they would have been."""
    run, steady = str(tmp_path / "run"), dict(lr_decay="constant")
    whole_run = str(tmp_path / "whole")
    (whole,) = run_ranks(train_rank, 1, whole_run, data, steady, ADO)
    lookahead = ADO | dict(fit_lag=2)
    if first < then:
        (part,) = run_ranks(train_rank, 1, run, data, steady | dict(steps=first), ADO)
        (rest,) = run_ranks(train_rank, 1, run, data, steady | dict(steps=then, resume=True), ADO)
    else:
        (whole,) = run_ranks(train_rank, 1, str(tmp_path / "ahead"), data, steady, lookahead)
        (part,) = run_ranks(train_rank, 1, run, data, steady | dict(steps=first, exit_interval=3), lookahead)
        (rest,) = run_ranks(train_rank, 1, run, data, steady | dict(steps=then, resume=True), lookahead)
    assert rest["last_step"] == then
    common = {index: row for index, row in stream([whole], 0).items() if index < 8 * then}
    assert stream([part], 0) | stream([rest], 0) == common and len(common) == 8 * then
    assert part["losses"] + rest["losses"] == whole["losses"][:then]
    assert [step["step"] for step in metrics(run, "step")] == list(range(1, then + 1))


def test_a_run_that_ends_before_its_checkpoint_is_refused(run, data):
    with pytest.raises(RankFailed, match="checkpoint to resume from is of step 8, after the end of a run of --steps 5"):
        run_ranks(train_rank, 1, str(run), data, dict(resume=True, steps=5), ADO)


@pytest.mark.slow
def test_files_of_another_model_are_a_sentence(run, data):
    """What no look at the files can show: they are whole, but of another shape."""
    config = json.loads((run / "config.json").read_text())
    config["options"]["hidden"] = 64
    Path(run / "config.json").write_text(json.dumps(config))
    with pytest.raises(RankFailed, match="UserError: the checkpoint .*step_8 cannot be loaded: RuntimeError"):
        run_ranks(train_rank, 1, str(run), data, dict(resume=True, hidden=64), ADO)


@pytest.mark.slow
def test_damaged_metrics_do_not_stop_a_resume(run, data):
    """Cut to the checkpoint of step 6, with a line that is none."""
    path = run / "ado" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], '{"type": "step", "st\n', *lines[3:]]))
    (run / "checkpoints" / "latest").write_text("step_6\n")
    (resumed,) = run_ranks(train_rank, 1, str(run), data, dict(resume=True), ADO)
    assert (resumed["first_step"], resumed["last_step"]) == (6, 8)
    assert (run / "ado" / "metrics.jsonl.damaged-1").read_text().count("\n") == len(lines) + 1
    assert [record["step"] for record in metrics(run, "step")] == list(range(1, 9))
    assert len(metrics(run, "gap")) == 1
