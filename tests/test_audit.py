"""The audit: what it accepts, and that each kind of fault is found, counted and named.

Legend: B samples of a micro-batch.
"""

import json
import os

import numpy as np
import pytest

from ado_megatron.audit import audit, main
from ado_megatron.errors import UserError
from ado_megatron.measure import DrawLog
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
            key_B = np.array([pack_key(i, dataset_id) for i, dataset_id, _ in draws])
            log.drawn(step, key_B, np.array([sample for _, _, sample in draws]))
            if rank // dp == peers - 1:
                log.seen(step, key_B)
    for log in logs.values():
        log.close() if close else log.flush()
    return logs


def test_a_clean_run_is_proved_and_counted(tmp_path, capsys):
    log_run(tmp_path, make_schedule(), attempt=1, first=0, last=10, peers=2)
    result = audit(tmp_path)
    assert result.failure is None
    assert (result.samples, result.seen, result.steps, result.files) == (120, 120, 10, 4)
    assert result.epochs_C == [round(60 / 7, 4), round(12 / 5, 4), round(48 / 11, 4)]
    assert main([str(tmp_path)]) == 0
    assert "repeated = 0, skipped = 0, drawn = seen = 120" in capsys.readouterr().out
    assert main([str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 120


def test_a_batch_ramp_that_cuts_blocks_anywhere_is_proved(tmp_path):
    log_run(tmp_path, make_schedule(), attempt=1, first=0, last=8, batches=[2, 2, 4, 6, 8, 10, 12, 12])
    result = audit(tmp_path)
    assert (result.failure, result.samples) == (None, 56)


def test_a_resume_replaces_what_was_drawn_past_the_checkpoint_also_with_another_dp(tmp_path):
    schedule = make_schedule()
    log_run(tmp_path, schedule, attempt=1, first=0, last=9, dp=4, close=False)  # killed; checkpoint at step 6
    log_run(tmp_path, schedule, attempt=2, first=6, last=8, dp=1, close=False)  # killed again before a checkpoint
    log_run(tmp_path, schedule, attempt=3, first=6, last=12, dp=2)
    result = audit(tmp_path)
    assert (result.failure, result.samples, result.attempts) == (None, 144, 3)


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
    result = audit(tmp_path)
    assert (result.failure, result.samples, result.torn_files) == (None, 48, 1)


def test_ranks_killed_at_different_steps_are_compared_up_to_the_last_common_one(tmp_path):
    logs = log_run(tmp_path, make_schedule(), attempt=1, first=0, last=4, close=False)
    logs[1].drawn(4, [pack_key(48, 0)], [1])
    logs[1].flush()
    result = audit(tmp_path)
    assert (result.failure, result.samples, result.unflushed_steps) == (None, 48, 1)


def test_a_file_torn_in_its_header_holds_nothing(tmp_path):
    log_run(tmp_path, make_schedule(), attempt=1, first=0, last=4)
    (tmp_path / "ado" / "audit" / "rank00009-1.draws").write_bytes(b'{"format": "ado-dra')
    result = audit(tmp_path)
    assert (result.failure, result.torn_files) == (None, 1)


def swap(at, new):
    """Replace, on rank 0 at step 3, the draw number `at` by new(i, dataset, sample)."""

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
        (swap(2, lambda i, c, s: (i, c, 99)), "read sample 99 of dataset"),
        (swap(2, lambda i, c, s: (i, 7, 0)), "dataset 7, but there are 3"),
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
    assert "index 1 (dataset 0) was drawn, but no loss" in run_with_one_seen(tmp_path / "a", [0])
    assert "index 2 (dataset 0) has a loss" in run_with_one_seen(tmp_path / "b", [0, pack_key(1, 0), pack_key(2, 0)])
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


def test_a_log_that_begins_in_mid_run_knows_how_far_each_dataset_was(tmp_path):
    schedule = make_schedule()
    log = DrawLog(
        tmp_path / "ado" / "audit", 0, attempt=1, step=4, lengths_C=LENGTHS_C, seed=3, start_C=schedule.cumulative(48)
    )
    draws = [(i, *schedule.draw(i)) for i in range(48, 120)]
    log.drawn(4, [pack_key(i, c) for i, c, _ in draws], [s for _, _, s in draws])
    log.close()
    result = audit(tmp_path)
    assert (result.failure, result.samples) == (None, 72)


def test_a_directory_without_logs_and_a_foreign_file_are_refused_with_a_sentence(tmp_path):
    with pytest.raises(UserError, match="--ado-audit"):
        audit(tmp_path)
    (tmp_path / "ado" / "audit").mkdir(parents=True)
    (tmp_path / "ado" / "audit" / "x.draws").write_text("hello\n")
    with pytest.raises(UserError, match="not a draw log"):
        audit(tmp_path)


# ---------------------------------------------------------------- the two numbers


FAULTS = [  # an edit of what rank 0 draws at step 3 (indices 36, 38, …), and (kind, repeated, skipped, ranks_differ)
    (None, (None, 0, 0, 0)),
    (swap(2, lambda i, c, s: (i, c, (s + 1) % LENGTHS_C[c])), ("repeated", 1, 1, 0)),
    (swap(2, lambda i, c, s: (i + 500, c, s)), ("skipped", 0, 1, 0)),  # 40 is missing; 41 was drawn
    (swap(2, lambda i, c, s: (i - 2, c, s)), ("repeated", 1, 0, 0)),
    (swap(2, lambda i, c, s: (i, c, 99)), ("draws", 0, 0, 0)),
]


@pytest.mark.parametrize(("edit", "numbers"), FAULTS)
def test_both_numbers_are_those_of_the_finding_and_are_printed_whatever_it_is(tmp_path, capsys, edit, numbers):
    log_run(tmp_path, make_schedule(), attempt=1, first=0, last=10, edit=edit)
    result = audit(tmp_path)
    assert (result.kind, result.repeated, result.skipped, result.ranks_differ) == numbers
    assert main([str(tmp_path)]) == (1 if numbers[0] else 0)
    assert f"repeated = {numbers[1]}, skipped = {numbers[2]}" in capsys.readouterr().out
    main([str(tmp_path), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert (printed["repeated"], printed["skipped"]) == numbers[1:3]


def test_a_step_that_comes_again_counts_its_samples_and_a_missing_one_too(tmp_path):
    schedule = make_schedule()
    log_run(tmp_path / "a", schedule, attempt=1, first=0, last=4)
    log_run(tmp_path / "a", schedule, attempt=2, first=5, last=6)
    assert (audit(tmp_path / "a").repeated, audit(tmp_path / "a").skipped) == (0, BLOCK)
    log_run(tmp_path / "b", schedule, attempt=1, first=0, last=4)
    log_run(tmp_path / "b", schedule, attempt=2, first=4, last=5, batches=[BLOCK] * 3 + [0, BLOCK])  # step 3 again
    assert (audit(tmp_path / "b").repeated, audit(tmp_path / "b").skipped) == (BLOCK, 0)


def test_ranks_that_differ_are_reported_as_such(tmp_path, capsys):
    def edit(step, rank, draws):
        return [(i, c, (s + 1) % LENGTHS_C[c]) if (step, rank) == (5, 2) else (i, c, s) for i, c, s in draws]

    log_run(tmp_path, make_schedule(), attempt=1, first=0, last=10, peers=2, edit=edit)
    result = audit(tmp_path)
    assert (result.kind, result.ranks_differ, result.steps, result.samples) == ("ranks", BLOCK // 2, 5, 60)
    assert main([str(tmp_path)]) == 1
    words = "repeated = unknown, skipped = unknown, ranks differ on 6 samples of the step; nothing after that"
    assert words in capsys.readouterr().out
    assert main([str(tmp_path), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["repeated"] is None and printed["skipped"] is None and printed["ranks_differ"] == 6


# ---------------------------------------------------------------- files that are none


@pytest.mark.parametrize("kind", ["a named pipe", "a device", "a directory"])
def test_what_is_no_regular_file_is_refused_and_not_read(tmp_path, capsys, kind):
    log_run(tmp_path, make_schedule(), attempt=1, first=0, last=4)
    odd = tmp_path / "ado" / "audit" / "rank00001-1.draws"
    odd.unlink()
    make = {"a named pipe": os.mkfifo, "a device": lambda path: os.symlink("/dev/zero", path), "a directory": os.mkdir}
    make[kind](odd)
    with pytest.raises(UserError, match=f"rank00001-1.draws is {kind}, not a regular file"):
        audit(tmp_path)
