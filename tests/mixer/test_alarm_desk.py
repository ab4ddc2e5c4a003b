"""Rank zero's alarms: in the log and in metrics.jsonl, and nothing that goes wrong with them stops a run."""

import pytest

from ado_megatron.measure.metrics import read_metrics
from ado_megatron.mixer import rank_zero
from ado_megatron.scaling_law.fit_process import FitOutcome
from tests.kit import mixing
from tests.kit.mixing import Run, config

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


def test_what_goes_wrong_with_alarms_is_logged_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    def broken(self, refit):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("ado_megatron.alarms.Alarms.at_refit", broken)
    run = Run(tmp_path, steps=100).start().train(100)
    run.mixer.close()
    assert len(run.stream) == 1600 and alarms(tmp_path) == []
    assert "alarms cannot be written, the training goes on: division by zero" in caplog.text
