"""Rows planned beside the training are those that rank zero would have planned: byte for byte, wherever it happens."""

import json

import numpy as np
import pytest

from ado_megatron.blend.epoch_caps import caps_from_config
from ado_megatron.mixer import rank_zero, refit_process
from ado_megatron.mixer.planner import Planner
from ado_megatron.mixer.sidecar import read_sidecar
from ado_megatron.scaling_law.laws import Laws
from tests.kit.mixing import FitInPlace, Run, config, domains, stop_fits

LAWS = np.array([[1.2, 0.3, 0.2], [1.0, 0.5, 0.35], [0.8, 0.1, 0.1]])
CASES = {
    "ado": {}, "released": {"profile": "released"}, "paper": {"profile": "paper"},
    "capped": {"max_epochs": "4,maths=3"},
    "plan": {"policy": "plan", "plan_gate": 0.0, "plan_kl": 0.0, "target": "uniform"}, "shadow": {"shadow": True},
    "probing": {"probe": 20.0, "probe_length": 7},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_fit_is_left():
    yield
    stop_fits()


def planner(case):
    conf = config(**CASES[case]).resolved()
    doms = domains(conf, lengths=(4000, 900, 200))
    made = Planner(conf, doms, 16, caps_from_config(conf, doms), 400)
    made.plan(60)
    made.laws = Laws.given(LAWS, 0.0 if conf.own_n else np.inf)
    made.plan(33)
    return made


def through_a_file(arrays, path):
    np.savez(path, **arrays)
    with np.load(path, allow_pickle=False) as npz:
        return {name: npz[name] for name in npz.files}


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_what_is_adopted_is_what_would_have_been_planned(tmp_path, case):
    here, beside = planner(case), planner(case)
    laws = Laws.given(LAWS * [1.0, 1.0, 0.7], 0.0 if here.config.own_n else np.inf)
    child = refit_process.planner_of(through_a_file(refit_process.request(beside, 50), tmp_path / "request.npz"))
    for one in (here, beside, child):
        one.laws = laws.merged(one.laws)
    arrays = through_a_file(child.plan_for(50), tmp_path / "result.npz")
    np.testing.assert_array_equal(beside.adopt(arrays, 50), here.plan(50))
    assert beside.take_notes() == here.take_notes()
    for block in (60, 93, 101, 143):
        same(beside.to_arrays(block), here.to_arrays(block))
    np.testing.assert_array_equal(beside.plan(20), here.plan(20))
    np.testing.assert_array_equal(beside.shadow_K(120), here.shadow_K(120))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda arrays: arrays | {"rows_SxC": arrays["rows_SxC"][:-1]},
        lambda arrays: arrays | {"rows_SxC": arrays["rows_SxC"] + np.array([1, 0, 0], np.int32)},
        lambda arrays: arrays | {"rows_SxC": arrays["rows_SxC"] * 0},
        lambda arrays: arrays | {"weights_Sx2xK": arrays["weights_Sx2xK"] * np.nan},
        lambda arrays: arrays | {"end.block": arrays["end.block"] + 1},
    ],
)
def test_rows_that_cannot_be_right_are_not_adopted_and_change_nothing(spoil):
    here, beside = planner("capped"), planner("capped")
    arrays = refit_process.planner_of(refit_process.request(beside, 50)).plan_for(50)
    assert beside.adopt(spoil(arrays), 50) is None and beside.adopt(arrays, 49) is None
    np.testing.assert_array_equal(beside.plan(50), here.plan(50))


def without_identity(path):
    """A sidecar's content but the number of the save; times of fits stand in metrics.jsonl alone."""
    meta, arrays = read_sidecar(path)
    assert len(meta.pop("save")) == 16
    return json.dumps(meta, sort_keys=True), arrays


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_is_the_same_with_planning_in_place_beside_and_after_a_resume(tmp_path, monkeypatch, resumed):
    """Interval 20, lag 9: the checkpoint at 25 lies between the snapshot after block 20 and its publication."""
    conf, planned_here = config(fit_lag=9), []
    plan = Planner.plan

    def counted(self, num_rows):
        planned_here.append(num_rows)
        return plan(self, num_rows)

    monkeypatch.setattr(rank_zero, "Fit", FitInPlace)
    place = Run(tmp_path / "place", conf, steps=80).start().train(25)
    place.save(tmp_path / "mid.ado")
    place.train(80)
    place.save(tmp_path / "place.ado")
    monkeypatch.undo()
    monkeypatch.setattr(Planner, "plan", counted)
    if resumed:
        run = Run(tmp_path / "beside", conf, steps=80).start(tmp_path / "mid.ado")
    else:
        run = Run(tmp_path / "beside", conf, steps=80).start().train(25)
    run.save(tmp_path / "again.ado")
    run.train(80)
    run.save(tmp_path / "beside.ado")
    assert run.stream == place.stream[-len(run.stream) :]
    ours, theirs = without_identity(tmp_path / "beside.ado"), without_identity(tmp_path / "place.ado")
    assert ours[0] == theirs[0]
    same(ours[1], theirs[1])
    assert planned_here == ([] if resumed else [30]), "all but the first rows were planned beside"


def test_a_process_that_cannot_plan_leaves_the_planning_to_rank_zero(tmp_path, monkeypatch):
    place = Run(tmp_path / "a", config(fit_lag=9), steps=60).start().train(60)
    monkeypatch.setattr(rank_zero, "request", lambda planner, rows: {"nothing": np.zeros(1)})
    run = Run(tmp_path / "b", config(fit_lag=9), steps=60).start().train(60)
    assert run.stream == place.stream and not any("failed" in message for message in run.messages)


def test_a_fit_that_fails_leaves_rows_under_the_old_laws(tmp_path, monkeypatch):
    class Killed(rank_zero.Fit):
        def result(self, deadline):
            self._process.kill()
            return super().result(deadline)

    static = Run(tmp_path / "a", config(policy="static"), steps=60).start().train(60)
    monkeypatch.setattr(rank_zero, "Fit", Killed)
    run = Run(tmp_path / "b", config(fit_lag=9), steps=60).start().train(60)
    assert run.stream == static.stream, "there were no old laws, so the prior decides"
    assert sum("the old laws stay in force" in message for message in run.messages) == 2
