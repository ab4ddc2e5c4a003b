"""MLflow of `pretrain`: what arrives in the files of the real package; and a server that is slow or gone."""

import sys
import threading
from types import SimpleNamespace

import pytest

from ado_megatron.measure.board_names import mlflow_name
from ado_megatron.trainer import mlflow_board
from ado_megatron.trainer.mlflow_board import MlflowBoard
from tests.kit.board_files import mlflow_curves, mlflow_files
from tests.kit.ranks import run_ranks
from tests.kit.training import metrics, train_rank, write_data


def stand_in(monkeypatch, log_metrics):
    """A package of which only the writing of metrics does something. Returns the calls of the others."""
    calls = []
    run = SimpleNamespace(info=SimpleNamespace(run_id="r1"))
    names = ("set_experiment", "start_run", "log_params", "end_run")
    package = {name: lambda *_, _name=name, **__: (calls.append(_name), run)[1] for name in names}
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(log_metrics=log_metrics, **package))
    return calls


def test_a_name_is_what_mlflow_takes():
    assert mlflow_name("ado/weight/wiki en-2") == "ado/weight/wiki en-2"
    assert mlflow_name("ado/weight//data/a@b") == "ado/weight/_data_a_b"
    assert (mlflow_name("train/loss"), mlflow_name("ado/alarms")) == ("train/loss", "ado/alarms")


def test_a_server_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    answers, sent = threading.Event(), []
    calls = stand_in(monkeypatch, lambda values, step: answers.wait(60) and sent.append((step, values)))
    board = MlflowBoard("mixtures", tmp_path, False, {"ado": {"policy": "plan"}})
    for step in range(1, 65):
        board.write({"train/loss": float(step)}, step)
    with pytest.raises(TimeoutError, match="more than 64 writes behind"):
        board.write({"train/loss": 0.0}, 65)
    answers.set()
    board.close()
    assert sent == [(step, {"train/loss": float(step)}) for step in range(1, 65)]
    assert calls == ["set_experiment", "start_run", "log_params", "end_run"]
    assert (tmp_path / "mlflow-run-id").read_text() == "r1"


def test_what_a_write_met_with_is_raised_by_a_later_call_and_at_the_end_what_did_not_arrive(tmp_path, monkeypatch):
    def refused(values, step):
        raise ConnectionError("refused")

    stand_in(monkeypatch, refused)
    board = MlflowBoard("mixtures", tmp_path, False, {})
    board.write({"train/loss": 1.0}, 1)
    with pytest.raises(ConnectionError, match="refused"):
        board.close()
    answers = threading.Event()
    stand_in(monkeypatch, lambda values, step: answers.wait(60))
    monkeypatch.setattr(mlflow_board, "_LAST_SECONDS", 0.1)
    board = MlflowBoard("mixtures", tmp_path, False, {})
    board.write({"train/loss": 1.0}, 1)
    with pytest.raises(TimeoutError, match="writes did not arrive in 0 s"):
        board.close()
    answers.set()


@pytest.mark.slow
def test_mlflow_holds_what_metrics_jsonl_holds_and_a_resumed_run_keeps_its_id(tmp_path, monkeypatch):
    mlflow_files(monkeypatch, tmp_path / "store")
    data, run = write_data(tmp_path / "data"), tmp_path / "first"
    boards = dict(tensorboard=False, mlflow_experiment="mixtures", eval_interval=3, eval_samples=2, steps=6)
    run_ranks(train_rank, 1, str(run), str(data), boards | dict(save_interval=3, exit_interval=3))
    run_ranks(train_rank, 1, str(run), str(data), boards | dict(resume=True))
    parameters, curves = mlflow_curves(tmp_path / "store", "mixtures")
    assert (parameters["pretrain.steps"], parameters["ado.policy"]) == ("6", "ado")
    progress, steps, validations = (metrics(run, kind) for kind in ("progress", "step", "validation"))
    assert curves["train/loss"] == [(row["step"], pytest.approx(row["loss"])) for row in progress]
    for k in range(3):
        assert curves[f"ado/weight/domain{k}"] == [(row["step"], pytest.approx(row["weights_K"][k])) for row in steps]
        expected = [(row["step"], pytest.approx(row["loss_K"][k])) for row in validations]
        assert curves[f"ado/validation/domain{k}"] == expected and [step for step, _ in expected] == [3, 6]
    assert curves["ado/alarms"] == [(4, 0.0), (5, 0.0), (6, 0.0)]
