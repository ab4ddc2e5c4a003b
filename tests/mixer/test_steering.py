"""A run that is changed by hand while it goes on, killed and resumed."""

import pytest

from ado_megatron.mixer import rank_zero
from ado_megatron.steer.journal import read_journal
from tests.kit.steering import QuickFit, QuickRun, assert_audit_is_clean, steered_run


@pytest.fixture(autouse=True)
def _fits(monkeypatch):
    monkeypatch.setattr(rank_zero, "Fit", QuickFit)


def check_sequence(tmp_path, seed):
    """The stream of a steered, killed and resumed run is that of one that is never killed and has the same journal."""
    run, stream, refused = steered_run(tmp_path / "steered", seed)
    assert len(stream) == run.steps and all("cannot be understood" not in sentence for sentence in refused), refused
    assert_audit_is_clean(tmp_path / "steered")
    entries = read_journal(tmp_path / "steered" / "ado" / "journal.json")
    other = QuickRun(tmp_path / "other", run.mixer.config, run.steps, journal=entries).start().train(run.steps)
    other.kill()
    assert other.stream == stream
    return entries


@pytest.mark.parametrize("seed", range(12))
def test_random_sequences_of_changes_kills_and_resumes(tmp_path, seed):
    check_sequence(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 2000, 100))
def test_a_thousand_random_sequences(tmp_path, first):
    kinds = set()
    for seed in range(first, first + 100):
        for entry in check_sequence(tmp_path / str(seed), seed):
            kinds |= entry.what.keys()
    assert kinds == {"pins", "floor", "ceiling", "max_epochs", "policy", "target", "hold", "undo", "refit_after"}
