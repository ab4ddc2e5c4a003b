"""Boards of `pretrain`: what arrives in the files of the real packages is what the table of names says."""

import importlib.util
import re

import pytest

from ado_megatron.errors import UserError
from ado_megatron.measure.board_names import TABLE
from ado_megatron.trainer.boards import check_boards
from ado_megatron.trainer.options import TrainerOptions
from tests.kit.board_files import tensorboard_curves, wandb_curves, wandb_files, wandb_offline, wandb_start
from tests.kit.ranks import run_ranks
from tests.kit.training import metrics, train_rank, write_data


def test_wandb_that_is_not_installed_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_boards(TrainerOptions(run_dir=str(tmp_path), data="d"))
    with pytest.raises(UserError, match="--wandb-project needs the package wandb; `pip install wandb`"):
        check_boards(TrainerOptions(run_dir=str(tmp_path), data="d", wandb_project="mixtures"))


@pytest.mark.slow
def test_both_boards_hold_what_metrics_jsonl_holds_and_a_resumed_run_keeps_its_id(tmp_path, monkeypatch):
    wandb_offline(monkeypatch)
    data, run = write_data(tmp_path / "data"), tmp_path / "first"
    boards = dict(tensorboard=True, wandb_project="mixtures", eval_interval=3, eval_samples=2, steps=6, save_interval=3)
    run_ranks(train_rank, 1, str(run), str(data), boards | dict(exit_interval=3))
    run_ranks(train_rank, 1, str(run), str(data), boards | dict(resume=True))

    first, second = wandb_files(run)
    started = wandb_start(first)
    assert (started["project"], started["name"]) == ("mixtures", "first")
    assert started["config"]["pretrain"]["steps"] == 6 and started["config"]["ado"]["policy"] == "ado"
    assert wandb_start(second)["id"] == started["id"]
    (before, after), events = map(wandb_curves, (first, second)), tensorboard_curves(run / "tensorboard")

    expected = {}
    for row in metrics(run, "progress"):
        for name in ("loss", "lr", "grad_norm"):
            expected.setdefault(f"train/{name}", []).append((row["step"], row[name]))
    for k in range(3):
        expected[f"ado/validation/domain{k}"] = [(row["step"], row["loss_K"][k]) for row in metrics(run, "validation")]
        # the weights of the next batch; they stand still in a run this short
        expected[f"ado/weight/domain{k}"] = [(row["step"], row["weights_K"][k]) for row in metrics(run, "step")]
    # sums are reduced at the checkpoint after step 3; the next time that the boards are written is step 4
    fed, rows = {name for name in events if name not in expected}, metrics(run, "step")[:3]
    for k in range(3):
        tokens = sum(row["tokens_K"][k] for row in rows)
        loss = sum((row["loss_K"][k] or 0) * row["tokens_K"][k] for row in rows) / tokens
        for name, value in (("loss", loss), ("tokens", tokens), ("epochs", rows[-1]["epochs_C"][k])):
            fed.remove(f"ado/{name}/domain{k}")
            for board in (events, after):
                assert board[f"ado/{name}/domain{k}"] == [(4, pytest.approx(value, rel=1e-6))]
    assert fed == {"ado/target_loss", "ado/changes", "ado/alarms"}
    for name, curve in expected.items():
        assert [step for step, _ in curve] == ([3, 6] if "validation" in name else [1, 2, 3, 4, 5, 6])
        for board in (before[name] + after[name], events[name]):
            assert board == [(step, pytest.approx(value, rel=1e-6)) for step, value in curve]
    documented = {row.name for row in TABLE if row.by != "frameworks" and "forecast" not in row.name}  # no fit yet
    assert {re.sub(r"domain\d$", "DOMAIN", name) for name in events} == documented


@pytest.mark.slow
def test_the_file_for_prometheus_holds_what_boards_hold(tmp_path):
    pytest.importorskip("prometheus_client")
    data, run, file = write_data(tmp_path / "data"), tmp_path / "first", tmp_path / "ado.prom"
    run_ranks(train_rank, 1, str(run), str(data), dict(steps=4), dict(prometheus=str(file)))
    lines = dict(line.rsplit(" ", 1) for line in file.read_text().splitlines() if not line.startswith("#"))
    assert float(lines['ado_step{run="first"}']) == 4
    for k in range(3):
        weight = float(lines[f'ado_weight{{domain="domain{k}",run="first"}}'])
        assert weight == pytest.approx(metrics(run, "step")[-1]["weights_K"][k])
    assert float(lines['train_loss{run="first"}']) == pytest.approx(metrics(run, "progress")[-1]["loss"])
