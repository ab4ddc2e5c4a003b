"""The audit over several attempts: resumes, changed datasets, logs of earlier versions."""

import pytest

from ado_megatron.audit import audit
from ado_megatron.errors import UserError
from ado_megatron.measure import DrawLog
from ado_megatron.measure.draw_log import next_attempt
from ado_megatron.stream.sample_key import pack_key
from tests.kit.draws import as_version
from tests.kit.mixing import Run, config, domains

# ---------------------------------------------------------------- attempts


def test_attempts_are_counted_from_the_files_that_are_there(tmp_path):
    assert next_attempt(tmp_path / "nothing") == 1
    for name in ("rank00000-1.draws", "rank00003-2.draws", "rank00001-2.draws", "notes-9.draws", "rank00000-7.draws.x"):
        (tmp_path / name).touch()
    assert next_attempt(tmp_path) == 3
    (tmp_path / "rank00000-1700000000000000000.draws").touch()  # version 1 took the clock
    assert next_attempt(tmp_path) == 1700000000000000001


def logged(run, until):
    """Train, and log what is drawn, as a host would."""
    while run.step < until:
        first, size = run.consumed, run.sizes[run.step]
        draws = [(i, *run.mixer.schedule.draw(i)) for i in range(first, first + size)]
        key_B = [pack_key(i, c) for i, c, _ in draws]
        run.mixer.draw_log.drawn(run.step, key_B, [sample for _, _, sample in draws])
        run.mixer.draw_log.seen(run.step, key_B)
        run.train(run.step + 1)
    return run


@pytest.mark.parametrize(
    ("names", "lengths", "weights"),
    [
        (("maths", "code", "wiki"), (70, 1000, 300), (2.0, 5.0, 3.0)),  # in another order
        (("maths", "code"), (70, 1000), (2.0, 5.0)),  # one dropped
        (("new", "maths", "code"), (50, 70, 1000), (1.0, 2.0, 5.0)),  # and one added
        (("code", "wiki", "maths"), (1000, 400, 70), (5.0, 3.0, 2.0)),  # one has grown
    ],
)
def test_a_resume_on_changed_datasets_is_proved_whatever_the_clock_says(tmp_path, monkeypatch, names, lengths, weights):
    conf = config(audit=True, accept_changes=True, start_step=1000)  # fits would change nothing here
    first = logged(Run(tmp_path, conf).start(), 30)
    first.save(tmp_path / "state.ado")
    logged(first, 33)  # and is killed
    first.mixer.draw_log.flush()
    first.mixer._lock.release()
    monkeypatch.setattr("time.time_ns", lambda: 1)  # a clock that went back
    doms = domains(conf, names, lengths, weights)
    second = logged(Run(tmp_path, conf, doms=doms).start(tmp_path / "state.ado"), 60)
    second.mixer.close()
    assert sorted(path.name for path in (tmp_path / "ado" / "audit").iterdir()) == [
        "rank00000-1.draws", "rank00000-2.draws",
    ]  # fmt: skip
    result = audit(tmp_path)
    assert (result.failure, result.samples, result.attempts) == (None, 60 * 16, 2)
    drawn_C = second.mixer.schedule.cumulative(60 * 16)
    assert result.epochs_C == [round(n / length, 4) for n, length in zip(drawn_C, lengths, strict=True)]


def attempt_of(run, attempt, first, draws, lengths_C, ids=None, start_C=None):
    """One rank's draws (index, dataset, sample) from step `first` on, a step each."""
    log = DrawLog(run / "ado" / "audit", 0, attempt=attempt, step=first, lengths_C=lengths_C, seed=0, stream_id_C=ids,
                  start_C=start_C)  # fmt: skip
    for step, (i, c, sample) in enumerate(draws, first):
        log.drawn(step, [pack_key(i, c)], [sample])
    log.close()
    return log.path


def test_a_dataset_that_moved_is_known_by_its_stream_id(tmp_path):
    attempt_of(tmp_path / "a", 1, 0, [(0, 0, 2), (1, 1, 2)], [4, 3], ids=[70, 80])
    attempt_of(tmp_path / "a", 2, 2, [(2, 0, 0), (3, 1, 3)], [3, 4], ids=[80, 70])
    assert audit(tmp_path / "a").failure is None
    attempt_of(tmp_path / "a", 3, 4, [(4, 0, 3)], [4], ids=[70])  # sample 3 of stream 70 again, which is alone now
    assert "index 4 read sample 3 of dataset 0 again in epoch 0" in audit(tmp_path / "a").failure
    attempt_of(tmp_path / "b", 1, 0, [(0, 0, 2)], [4], ids=[70])
    attempt_of(tmp_path / "b", 2, 1, [(1, 0, 2)], [5], ids=[70])
    assert "was written with different lengths: it has 5 samples of dataset 0" in audit(tmp_path / "b").failure
    assert audit(tmp_path / "b").kind == "files"


def test_logs_of_version_1_are_read_also_before_later_ones(tmp_path):
    as_version(attempt_of(tmp_path, 1, 0, [(0, 0, 2), (1, 1, 2)], [4, 3]), 1)
    as_version(attempt_of(tmp_path, 17 * 10**17, 2, [(2, 0, 0)], [4, 3]), 1)
    assert (audit(tmp_path).failure, audit(tmp_path).samples) == (None, 3)
    number = next_attempt(tmp_path / "ado" / "audit")
    path = attempt_of(tmp_path, number, 3, [(3, 0, 3), (4, 1, 2)], [4, 3], ids=[70, 80])
    assert "index 4 read sample 2 of dataset 1 again" in audit(tmp_path).failure
    path.unlink()
    attempt_of(tmp_path, number, 3, [(3, 0, 1)], [9], ids=[70])
    with pytest.raises(UserError, match="version 1, which does not name its datasets"):
        audit(tmp_path)


def test_an_audit_that_began_after_a_dataset_was_dropped_knows_the_first_index(tmp_path):
    log = DrawLog(tmp_path / "ado" / "audit", 0, attempt=1, step=9, lengths_C=[4], seed=0, start_C=[1], first_sample=30)
    log.drawn(9, [pack_key(30, 0)], [2])
    log.close()
    assert (audit(tmp_path).failure, audit(tmp_path).samples) == (None, 1)
