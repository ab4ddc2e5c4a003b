"""The audit: what it accepts, and that each kind of fault is found and named. Legend: B samples of a micro-batch."""

import json
import os

import numpy as np
import pytest

from ado_megatron.audit import audit, main
from ado_megatron.errors import UserError
from ado_megatron.measure.draw_log import DrawFile, DrawLog, next_attempt
from ado_megatron.stream.sample_key import pack_key
from ado_megatron.stream.schedule import Schedule, apportion_rows

LENGTHS_C = [7, 5, 11]
BLOCK = 12


def make_schedule(num_blocks=20):
    schedule = Schedule(LENGTHS_C, BLOCK, num_blocks, seed=3)
    rows_SxC, _ = apportion_rows([0.5, 0.1, 0.4], BLOCK, num_blocks, np.zeros(3))
    schedule.publish(0, rows_SxC)
    return schedule


def log_run(run, schedule, *, attempt, first, last, dp=2, batches=None, close=True, peers=1, edit=None):
    """Write what dp × peers ranks would log for steps [first, last); peers read the same samples (pipeline ends)."""
    batches = batches or [BLOCK] * last
    at_S = np.concatenate([[0], np.cumsum(batches)])
    logs = {}
    for rank in range(dp * peers):
        logs[rank] = DrawLog(
            run / "ado" / "audit", rank, attempt=attempt, step=first, lengths_C=LENGTHS_C, seed=3, dp_rank=rank % dp,
            world_size=dp * peers,
        )  # fmt: skip
    for step in range(first, last):
        for rank, log in logs.items():
            mine = range(at_S[step] + rank % dp, at_S[step + 1], dp)
            draws = [(i, *schedule.draw(i)) for i in mine]
            if edit:
                draws = edit(step, rank, draws)
            key_B = np.array([pack_key(i, column) for i, column, _ in draws])
            log.drawn(step, key_B, np.array([sample for _, _, sample in draws]))
            if rank // dp == peers - 1:
                log.seen(step, key_B)
    for log in logs.values():
        log.close() if close else log.flush()
    return logs


def test_a_clean_run_is_proved_and_counted(tmp_path, capsys):
    log_run(tmp_path, make_schedule(), attempt=1, first=0, last=10, peers=2)
    verdict = audit(tmp_path)
    assert verdict.failure is None
    assert (verdict.samples, verdict.seen, verdict.steps, verdict.files) == (120, 120, 10, 4)
    assert verdict.epochs_C == [round(60 / 7, 4), round(12 / 5, 4), round(48 / 11, 4)]
    assert main([str(tmp_path)]) == 0
    assert "repeated = 0, skipped = 0, drawn = seen = 120" in capsys.readouterr().out
    assert main([str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 120


def test_a_batch_ramp_that_cuts_blocks_anywhere_is_proved(tmp_path):
    log_run(tmp_path, make_schedule(), attempt=1, first=0, last=8, batches=[2, 2, 4, 6, 8, 10, 12, 12])
    verdict = audit(tmp_path)
    assert (verdict.failure, verdict.samples) == (None, 56)


def test_a_resume_replaces_what_was_drawn_past_the_checkpoint_also_with_another_dp(tmp_path):
    schedule = make_schedule()
    log_run(tmp_path, schedule, attempt=1, first=0, last=9, dp=4, close=False)  # killed; checkpoint at step 6
    log_run(tmp_path, schedule, attempt=2, first=6, last=8, dp=1, close=False)  # killed again before a checkpoint
    log_run(tmp_path, schedule, attempt=3, first=6, last=12, dp=2)
    verdict = audit(tmp_path)
    assert (verdict.failure, verdict.samples, verdict.attempts) == (None, 144, 3)


def test_without_the_records_of_the_resumed_steps_the_gap_is_named(tmp_path):
    schedule = make_schedule()
    log_run(tmp_path, schedule, attempt=1, first=0, last=4)
    log_run(tmp_path, schedule, attempt=2, first=5, last=6)
    assert audit(tmp_path).failure == "skipped: step 5 drew index 60, but index 48 was never drawn"


def test_a_torn_last_record_of_a_killed_rank_is_ignored(tmp_path):
    logs = log_run(tmp_path, make_schedule(), attempt=1, first=0, last=4, close=False)
    whole = logs[0].path.read_bytes()
    key_B = np.array([pack_key(48, 0)])
    logs[0].drawn(4, key_B, np.array([1]))
    logs[0].flush()
    assert len(logs[0].path.read_bytes()) > len(whole) + 30
    logs[0].path.write_bytes(logs[0].path.read_bytes()[:-3])
    verdict = audit(tmp_path)
    assert (verdict.failure, verdict.samples, verdict.torn_files) == (None, 48, 1)


def test_ranks_killed_at_different_steps_are_compared_up_to_the_last_common_one(tmp_path):
    logs = log_run(tmp_path, make_schedule(), attempt=1, first=0, last=4, close=False)
    logs[1].drawn(4, [pack_key(48, 0)], [1])
    logs[1].flush()
    verdict = audit(tmp_path)
    assert (verdict.failure, verdict.samples, verdict.unflushed_steps) == (None, 48, 1)


def test_a_file_torn_in_its_header_holds_nothing(tmp_path):
    log_run(tmp_path, make_schedule(), attempt=1, first=0, last=4)
    (tmp_path / "ado" / "audit" / "rank00009-1.draws").write_bytes(b'{"format": "ado-dra')
    verdict = audit(tmp_path)
    assert (verdict.failure, verdict.torn_files) == (None, 1)


def swap(at, new):
    """Replace, on rank 0 at step 3, the draw number `at` by new(i, column, sample)."""

    def edit(step, rank, draws):
        if (step, rank) == (3, 0):
            draws = list(draws)
            draws[at] = new(*draws[at])
        return draws

    return edit


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (swap(2, lambda i, c, s: (i, c, (s + 1) % LENGTHS_C[c])), "repeated: index"),
        (swap(2, lambda i, c, s: (i + 500, c, s)), "but index 40 was never drawn"),
        (swap(2, lambda i, c, s: (i - 2, c, s)), "drew twice: repeated index 38"),
        (swap(2, lambda i, c, s: (i, c, 99)), "read sample 99 of column"),
        (swap(2, lambda i, c, s: (i, 7, 0)), "column 7, but there are 3"),
        (
            swap(0, lambda i, c, s: (i + 1, *DRAWS(i + 1))),
            "are of different data-parallel ranks and both drew index 37",
        ),
    ],
)
def test_each_fault_is_named_and_exits_with_one(tmp_path, capsys, edit, named):
    log_run(tmp_path, make_schedule(), attempt=1, first=0, last=10, edit=edit)
    assert main([str(tmp_path)]) == 1
    assert named in capsys.readouterr().out


def DRAWS(i):
    return make_schedule().draw(i)


def test_pipeline_ends_that_differ_are_named_with_both_ranks(tmp_path):
    def edit(step, rank, draws):
        return [(i, c, (s + 1) % LENGTHS_C[c]) if (step, rank, i) == (5, 2, 62) else (i, c, s) for i, c, s in draws]

    log_run(tmp_path, make_schedule(), attempt=1, first=0, last=10, peers=2, edit=edit)
    text = audit(tmp_path).failure
    assert "rank 0" in text and "rank 2" in text and text.endswith("differ on index 62")


def run_with_one_seen(tmp_path, seen_keys):
    log = DrawLog(tmp_path / "ado" / "audit", 0, attempt=1, step=0, lengths_C=[4], seed=0)
    log.drawn(0, [0, pack_key(1, 0)], [3, 1])
    log.seen(0, seen_keys)
    log.close()
    return audit(tmp_path).failure


def test_drawn_without_a_loss_and_a_loss_without_a_draw_are_named(tmp_path):
    assert "index 1 (column 0) was drawn, but no loss" in run_with_one_seen(tmp_path / "a", [0])
    assert "index 2 (column 0) has a loss" in run_with_one_seen(tmp_path / "b", [0, pack_key(1, 0), pack_key(2, 0)])
    assert "index 0 2 times, on others 1 times" in run_with_one_seen(tmp_path / "c", [0, 0, pack_key(1, 0)])


def test_a_replayed_step_and_a_skipped_step_are_no_differences(tmp_path):
    log = DrawLog(tmp_path / "ado" / "audit", 0, attempt=1, step=0, lengths_C=[4], seed=0)
    log.drawn(0, [0, pack_key(1, 0)], [3, 1])
    log.seen(0, [0, pack_key(1, 0)])
    log.seen(0, [0, pack_key(1, 0)])
    log.drawn(1, [pack_key(2, 0)], [0])
    log.skipped(1)
    log.close()
    assert audit(tmp_path).failure is None


def test_a_log_that_begins_in_mid_run_knows_how_far_each_column_was(tmp_path):
    schedule = make_schedule()
    log = DrawLog(
        tmp_path / "ado" / "audit", 0, attempt=1, step=4, lengths_C=LENGTHS_C, seed=3, start_C=schedule.cumulative(48)
    )
    draws = [(i, *schedule.draw(i)) for i in range(48, 120)]
    log.drawn(4, [pack_key(i, c) for i, c, _ in draws], [s for _, _, s in draws])
    log.close()
    verdict = audit(tmp_path)
    assert (verdict.failure, verdict.samples) == (None, 72)


def test_records_survive_the_file_bit_for_bit_and_cost_few_bytes(tmp_path):
    rng = np.random.default_rng(0)
    log = DrawLog(tmp_path, 3, attempt=1, step=0, lengths_C=[1 << 40], seed=0)
    key_SxB = pack_key(np.arange(40 * 1024).reshape(40, 1024), rng.integers(0, 22, (40, 1024)))
    sample_SxB = rng.integers(0, 1 << 20, (40, 1024))
    for step in range(40):
        log.drawn(step, key_SxB[step], sample_SxB[step])
    log.close()
    steps = list(DrawFile.open(log.path).steps())
    assert [step.step for step in steps] == list(range(40))
    assert np.array_equal([step.key_N for step in steps], key_SxB)
    assert np.array_equal([step.sample_N for step in steps], sample_SxB)
    assert log.path.stat().st_size < 5 * key_SxB.size


def test_a_directory_without_logs_and_a_foreign_file_are_refused_with_a_sentence(tmp_path):
    with pytest.raises(UserError, match="--ado-audit"):
        audit(tmp_path)
    (tmp_path / "ado" / "audit").mkdir(parents=True)
    (tmp_path / "ado" / "audit" / "x.draws").write_text("hello\n")
    with pytest.raises(UserError, match="not a draw log"):
        audit(tmp_path)


@pytest.mark.parametrize(
    ("edit", "repeated", "skipped"),
    [
        (swap(2, lambda i, c, s: (i, c, (s + 1) % LENGTHS_C[c])), 1, 1),
        (swap(2, lambda i, c, s: (i - 2, c, s)), 1, 0),
        (swap(5, lambda i, c, s: (i + 500, c, s)), 0, None),
    ],
)
def test_both_numbers_are_printed_on_failure_and_come_from_what_was_found(tmp_path, capsys, edit, repeated, skipped):
    log_run(tmp_path, make_schedule(), attempt=1, first=0, last=10, edit=edit)
    result = audit(tmp_path)
    assert result.repeated == repeated and (skipped is None or result.skipped == skipped)
    assert (result.repeated or result.skipped) > 0
    assert main([str(tmp_path)]) == 1
    assert f"repeated = {result.repeated}, skipped = {result.skipped}" in capsys.readouterr().out


def test_ranks_that_differ_leave_both_numbers_open(tmp_path, capsys):
    def edit(step, rank, draws):
        return [(i, c, (s + 1) % LENGTHS_C[c]) if (step, rank, i) == (5, 2, 62) else (i, c, s) for i, c, s in draws]

    log_run(tmp_path, make_schedule(), attempt=1, first=0, last=10, peers=2, edit=edit)
    assert main([str(tmp_path)]) == 1
    assert "repeated = unknown, skipped = unknown" in capsys.readouterr().out
    assert main([str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["repeated"] is None


def log_one(run, attempt, step, lengths, ids, start, draws):
    log = DrawLog(run / "ado" / "audit", 0, attempt=attempt, step=step, lengths_C=lengths, stream_id_C=ids, seed=0,
                  start_C=start)  # fmt: skip
    for n, (i, dataset, sample) in enumerate(draws):
        log.drawn(step + n, [pack_key(i, dataset)], [sample])
    log.close()


def test_datasets_are_followed_by_identity_when_a_resume_reorders_or_drops_them(tmp_path):
    """Dataset 70 of 3 samples is number 0 at first and number 1 later; 80 is dropped, 90 comes."""
    log_one(tmp_path, 1, 0, [3, 5], [70, 80], [0, 0], [(0, 0, 2), (1, 1, 4), (2, 0, 0)])
    log_one(tmp_path, 2, 3, [4, 3], [90, 70], [0, 2], [(3, 1, 1), (4, 0, 3), (5, 1, 0)])
    result = audit(tmp_path)
    assert (result.failure, result.samples, result.epochs_C) == (None, 6, [0.25, round(4 / 3, 4)])


def test_a_sample_repeated_across_such_a_resume_is_found(tmp_path):
    log_one(tmp_path, 1, 0, [3, 5], [70, 80], [0, 0], [(0, 0, 2), (1, 1, 4), (2, 0, 0)])
    log_one(tmp_path, 2, 3, [4, 3], [90, 70], [0, 2], [(3, 1, 2)])
    assert audit(tmp_path).failure.startswith("repeated: index 3 read sample 2")


def test_attempts_are_counted_and_a_clock_that_was_set_back_changes_nothing(tmp_path):
    directory = tmp_path / "ado" / "audit"
    assert next_attempt(directory) == 1
    log_run(tmp_path, make_schedule(), attempt=next_attempt(directory), first=0, last=5)
    assert next_attempt(directory) == 2
    (directory / "rank00003-41.draws").write_text("")
    assert next_attempt(directory) == 42


def test_a_pipe_or_a_device_in_the_directory_is_said_and_not_read(tmp_path):
    log_run(tmp_path, make_schedule(), attempt=1, first=0, last=2)
    pipe = tmp_path / "ado" / "audit" / "rank00009-1.draws"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="rank00009-1.draws is not a regular file"):
        audit(tmp_path)
    pipe.unlink()
    pipe.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="rank00009-1.draws is not a regular file"):
        audit(tmp_path)
