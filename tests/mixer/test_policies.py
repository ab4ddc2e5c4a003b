"""Policies in the loop: plan, probing and a class of the user's own, from rows to sidecar."""

import numpy as np
import pytest

from tests.kit.mixing import Run, assert_nothing_repeated_or_skipped, config, content_of
from tests.kit.policies import OWN, install_policies

PLAN = {"policy": "plan", "plan_gate": 0.0, "plan_kl": 0.0, "plan_max_change": 0.1}
PROBE = {"probe": 20.0, "probe_length": 7}


pytestmark = pytest.mark.usefixtures("fits_in_place")


def weights(run, blocks):
    return np.array([run.mixer.rank_zero.planner.weights_K(block) for block in blocks])


def test_a_plan_holds_between_refits_and_moves_no_more_than_its_bound(tmp_path):
    run = Run(tmp_path, config(fit_lag=9, **PLAN | {"plan_max_change": 0.03}), steps=100).start().train(75)
    exact_SxK = weights(run, range(75, 85))
    assert (exact_SxK == exact_SxK[0]).all()
    said = [message for message in run.messages if "plan:" in message]
    assert said[0].startswith("ado: from block 30 on, plan: ") and "predicted gain" in said[0]
    assert len(said) == 3
    run.train(90)
    # laws of the cut after block 20 apply at block 30, and so on; 320 samples in 20 rows, each end known to one sample
    shares = [run.rows()[first : first + 20].sum(0) / 320 for first in (10, 30, 50, 70)]
    np.testing.assert_allclose(shares[0], [0.5, 0.3, 0.2], atol=1 / 160)
    changes = 0.5 * np.abs(np.diff(shares, axis=0)).sum(1)
    assert changes[0] == pytest.approx(0.03, abs=0.01) and changes.max() <= 0.04


@pytest.mark.parametrize("options", [PLAN, PROBE, PLAN | PROBE])
@pytest.mark.parametrize("stop", [33, 41])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, stop, options):
    conf = config(fit_lag=9, **options)
    whole = Run(tmp_path / "whole", conf, steps=80).start().train(stop)
    whole.save(tmp_path / "whole.ado")
    whole.train(80)
    first = Run(tmp_path / "parts", conf, steps=80).start().train(stop)
    first.save(tmp_path / "s.ado")
    second = Run(tmp_path / "parts", conf, steps=80).start(tmp_path / "s.ado").train(80)
    assert whole.stream == first.stream + second.stream
    whole.save(tmp_path / "a.ado"), second.save(tmp_path / "b.ado")
    assert content_of(tmp_path / "a.ado") == content_of(tmp_path / "b.ado")


def test_a_pair_of_probing_sums_to_the_prior_in_whole_samples(tmp_path):
    conf = config(probe=25.0, probe_length=5, start_step=1000)
    run = Run(tmp_path, conf, steps=60, batch=40).start().train(20)
    rows_SxK = run.rows()[:20]
    halves = rows_SxK.reshape(4, 5, 3).sum(1)  # 200 samples each
    assert (halves[0] != halves[1]).any()
    np.testing.assert_allclose(halves.reshape(2, 2, 3).sum(1), [[200, 120, 80]] * 2, atol=1.0)
    other = Run(tmp_path / "other", config(probe=25.0, probe_length=5, start_step=1000), steps=60, batch=40).start()
    other.train(15)
    assert (other.rows()[:15] == rows_SxK[:15]).all()


def test_options_of_the_plan_may_change_on_resume_and_act_at_once(tmp_path):
    first = Run(tmp_path, config(**PLAN), steps=120).start().train(55)
    first.save(tmp_path / "s.ado")
    second = Run(tmp_path, config(**PLAN | {"target": "maths=1"}), steps=120).start(tmp_path / "s.ado")
    assert "--ado-target prior" in second.messages[0]
    before, after = first.mixer.weights_K(55 * 16), second.train(57).mixer.weights_K(56 * 16)
    assert after[2] > before[2]
    assert_nothing_repeated_or_skipped(first.stream + second.train(120).stream)


def test_a_policy_of_ones_own_that_fails_is_named_and_the_run_goes_on(tmp_path, monkeypatch):
    install_policies(tmp_path, monkeypatch, OWN, mine="Failing")
    run = Run(tmp_path / "run", config(policy="mine"), steps=60).start().train(60)
    shares = np.bincount([dataset_id for dataset_id, _ in run.stream[-640:]], minlength=3) / 640
    np.testing.assert_allclose(shares, [0.2, 0.2, 0.6], atol=0.01)
    said = [message for message in run.messages if "mine" in message]
    why = "policy mine failed, its last good weights stay (RuntimeError in step: no idea)"
    assert said == [f"ado: from block 21 on, {why}"]
    run.save(tmp_path / "s.ado")
    assert Run(tmp_path / "run", config(policy="mine"), steps=80).start(tmp_path / "s.ado").train(80).step == 80


def test_the_first_laws_do_not_jerk_the_mixture(tmp_path):
    run = Run(tmp_path, config(max_change=0.1), steps=100).start().train(90)
    moves = 0.5 * np.abs(np.diff(weights(run, range(80, 90)), axis=0)).sum(1)
    assert moves.max() <= 0.2  # at most there and back within one refit
    first = 0.5 * np.abs(run.rows()[22:40].mean(0) / 16 - [0.5, 0.3, 0.2]).sum()
    assert 0.05 < first <= 0.1 + 0.01
