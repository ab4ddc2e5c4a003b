"""A run stopped and resumed is the run that was never stopped."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.kit.ranks import RankFailed, run_ranks
from tests.kit.training import metrics, train_rank, write_data
from tests.trainer.test_parallel import ADO, stream

STOP = dict(exit_interval=5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    import ado_megatron.trainer.loop  # noqa: F401  once, here: the ranks are forked

    return str(write_data(tmp_path_factory.mktemp("resume") / "data"))


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    run = str(tmp_path_factory.mktemp("unbroken") / "run")
    return run_ranks(train_rank, 2, run, data, dict(pp=2), ADO), run


def both(data, run, first: dict, then: dict, ado=ADO, ranks=2) -> list[list[dict]]:
    return [
        run_ranks(train_rank, ranks, run, data, changes, ado) for changes in (first | STOP, then | dict(resume=True))
    ]


@pytest.mark.parametrize("later", [dict(), dict(num_workers=2, micro_batch=1)], ids=["as it was", "other loader"])
def test_resume_equals_an_uninterrupted_run(later, unbroken, data, tmp_path):
    run = str(tmp_path / "run")
    first, then = both(data, run, dict(pp=2, dropout=0.0), dict(pp=2) | later)
    assert (first[0]["last_step"], then[0]["first_step"], then[0]["last_step"]) == (5, 5, 8)
    whole, reference_run = unbroken
    exact = dict(rtol=0, atol=0 if not later else 1e-5)
    np.testing.assert_allclose(first[0]["losses"] + then[0]["losses"], whole[0]["losses"], **exact)
    np.testing.assert_allclose(first[0]["grad_norms"] + then[0]["grad_norms"], whole[0]["grad_norms"], **exact)
    for stage in (0, 1):
        assert stream(first, stage) | stream(then, stage) == stream(whole, stage)
    ours, theirs = (metrics(r, "step") for r in (run, reference_run))
    assert [s["weights_K"] for s in ours] == [s["weights_K"] for s in theirs]
    assert [f["log_beta_K"] for f in metrics(run, "fit")] == [f["log_beta_K"] for f in metrics(reference_run, "fit")]


def test_resume_with_dropout_drops_the_same_units(data, tmp_path):
    whole = run_ranks(train_rank, 1, str(tmp_path / "whole"), data, dict(dropout=0.1), ADO)
    first, then = both(data, str(tmp_path / "run"), dict(dropout=0.1), dict(dropout=0.1), ranks=1)
    assert first[0]["losses"] + then[0]["losses"] == whole[0]["losses"]


def test_a_half_written_checkpoint_is_never_resumed(data, tmp_path):
    run = tmp_path / "run"
    run_ranks(train_rank, 1, str(run), data, STOP, ADO)
    torn = run / "checkpoints" / "step_7"
    shutil.copytree(run / "checkpoints" / "step_5", torn)
    next(torn.glob("layer_*")).write_bytes(b"half")  # killed while it wrote: `latest` still names step_5
    resumed = run_ranks(train_rank, 1, str(run), data, dict(resume=True), ADO)
    assert resumed[0]["first_step"] == 5 and (run / "checkpoints" / "latest").read_text() == "step_8\n"


def test_resume_without_a_checkpoint_starts_from_zero_and_without_resume_is_refused(data, tmp_path):
    run = tmp_path / "run"
    run_ranks(train_rank, 1, str(run), data, dict(steps=8) | STOP, ADO)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    with pytest.raises(RankFailed, match="already holds this run; add --resume"):
        run_ranks(train_rank, 1, str(run), data, {}, ADO)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    (run / "checkpoints" / "latest").unlink()
    assert run_ranks(train_rank, 1, str(run), data, dict(resume=True), ADO)[0]["first_step"] == 0


def test_latest_that_names_nothing_is_said(data, tmp_path):
    run = tmp_path / "run"
    run_ranks(train_rank, 1, str(run), data, STOP, ADO)
    (run / "ado" / "state_5.ado").unlink()
    with pytest.raises(RankFailed, match="names 'step_5' but its files are not all there"):
        run_ranks(train_rank, 1, str(run), data, dict(resume=True), ADO)


def test_old_checkpoints_are_removed_as_asked(data, tmp_path):
    for keep, kept in ((0, [2, 4, 6, 8]), (2, [6, 8])):
        run = tmp_path / f"run{keep}"
        run_ranks(train_rank, 1, str(run), data, dict(save_interval=2, keep=keep), ADO)
        assert sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*")) == kept
        assert sorted(int(path.stem[6:]) for path in (run / "ado").glob("state_*.ado")) == kept


def test_zero_0_resumes_on_another_number_of_ranks(data, tmp_path):
    """Without a partitioned optimizer nothing in the checkpoint depends on it, and the stream never does."""
    whole = run_ranks(train_rank, 1, str(tmp_path / "whole"), data, dict(zero=0), ADO)
    run = str(tmp_path / "run")
    first = run_ranks(train_rank, 1, run, data, dict(zero=0) | STOP, ADO)
    then = run_ranks(train_rank, 2, run, data, dict(zero=0, resume=True), ADO)
    np.testing.assert_allclose(first[0]["losses"] + then[0]["losses"], whole[0]["losses"], atol=1e-4)
    assert stream(first, 0) | stream(then, 0) == stream(whole, 0)
    assert json.loads((Path(run) / "config.json").read_text())["layout"]["dp"] == 2


def test_from_static_to_adaptive_and_back_repeats_and_skips_nothing(data, tmp_path):
    run = str(tmp_path / "run")
    parts = []
    for stop, policy in ((3, "static"), (6, "ado"), (8, "static")):
        changes = dict(resume=bool(parts), exit_interval=stop)
        parts.append(run_ranks(train_rank, 1, run, data, changes, ADO | dict(policy=policy))[0])
    drawn = [row for part in parts for row in part["drawn"]]
    assert [key >> 15 for _, key, _ in drawn] == list(range(64))
    for dataset_id, length in enumerate((374, 187, 124)):
        samples = [sample for _, key, sample in drawn if key & 32767 == dataset_id]
        assert len(set(samples)) == len(samples) <= length
