"""Rank zero's alarms: in the log and in metrics.jsonl, and nothing that goes wrong with them stops a run."""

import pytest
import torch

from ado_megatron.measure.metrics import read_metrics
from ado_megatron.mixer import rank_zero
from ado_megatron.mixer.sidecar import read_sidecar, write_sidecar
from ado_megatron.mixer.world import World
from ado_megatron.scaling_law.fit_process import FitOutcome
from tests.kit import mixing
from tests.kit.mixing import Run, config
from tests.kit.ranks import run_ranks

pytestmark = pytest.mark.usefixtures("fits_in_place")


def alarms(path):
    return [record for record in read_metrics(path / "ado" / "metrics.jsonl") if record["type"] == "alarm"]


class NoFit(mixing.FitInPlace):
    def result(self, deadline):
        return FitOutcome(None, "its process ended with status -9", 0.0, 0.0)


def test_fits_that_fail_are_an_alarm_in_log_and_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero, "Fit", NoFit)
    run = Run(tmp_path, steps=100).start().train(100)
    run.mixer.close()
    record, = alarms(tmp_path)
    assert (record["alarm"], record["domain"], record["step"]) == ("fits", None, 41)
    assert f"ado: alarm, step 41: {record['text']}" in run.messages


@pytest.mark.parametrize("policy", ["ado", "static"])
def test_a_cap_that_is_near_is_an_alarm_with_and_without_laws(tmp_path, policy):
    run = Run(tmp_path, config(policy=policy, max_epochs="maths=3"), steps=100).start().train(100)
    run.mixer.close()
    record, = [one for one in alarms(tmp_path) if one["alarm"] == "runs_out"]
    assert record["domain"] == "maths" and "cap of 3.00" in record["text"]


def _with_a_lazy_rank(rank, path):
    run = Run(path, steps=100, batch=15, world=World.detect(contributes=True), dp=3, dp_rank=rank).start()
    add = run.mixer.meter.add
    if rank == 1:  # every other token of its samples is lost
        run.mixer.meter.add = lambda loss, mask, key: add(loss, mask * torch.tensor([[1, 0, 1, 0]]), key)
    run.train(100)
    run.mixer.close()


def test_a_rank_that_trains_on_less_is_named(tmp_path):
    run_ranks(_with_a_lazy_rank, 3, tmp_path)
    record = next(one for one in alarms(tmp_path) if one["alarm"] == "draws")
    assert record["domain"] is None and record["text"].startswith("all domains: rank 1 has ")
    assert "fewer tokens than others have trained on" in record["text"]


@pytest.mark.parametrize("stop", [35, 41, 45, 55, 61])
def test_a_resumed_run_goes_on_counting(tmp_path, monkeypatch, stop):
    """Two failed fits are an alarm also where the run was stopped between them, or while the second was under way, and
    it is not said again."""
    monkeypatch.setattr(rank_zero, "Fit", NoFit)
    run = Run(tmp_path, config(fit_lag=9), steps=100).start().train(stop)
    run.save(tmp_path / "s.ado")
    run.mixer.close()
    run = Run(tmp_path, config(fit_lag=9), steps=100).start(tmp_path / "s.ado").train(100)
    run.mixer.close()
    assert [(one["alarm"], one["step"]) for one in alarms(tmp_path)] == [("fits", 41)]


def test_a_sidecar_of_before_alarms_were_kept_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero, "Fit", NoFit)
    run = Run(tmp_path, steps=100).start().train(41)
    run.save(tmp_path / "s.ado")
    run.mixer.close()
    meta, arrays = read_sidecar(tmp_path / "s.ado")
    assert any(name.startswith("alarms/") for name in arrays)
    write_sidecar(tmp_path / "s.ado", meta, {n: a for n, a in arrays.items() if not n.startswith("alarms/")})
    run = Run(tmp_path, steps=100).start(tmp_path / "s.ado").train(100)
    run.mixer.close()
    assert [one["step"] for one in alarms(tmp_path)] == [41, 81]


def test_what_goes_wrong_with_alarms_is_logged_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    def broken(self, refit):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("ado_megatron.alarms.Alarms.at_refit", broken)
    run = Run(tmp_path, steps=100).start().train(100)
    run.mixer.close()
    assert len(run.stream) == 1600 and alarms(tmp_path) == []
    assert "alarms cannot be written, the training goes on: division by zero" in caplog.text
