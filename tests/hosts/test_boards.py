"""Weights and losses by domain where the host shows its own: TensorBoard, W&B, the log."""

import importlib.util
import re

import numpy as np
import pytest

from ado_megatron.measure.board_names import TABLE
from tests.kit.board_files import tensorboard_curves, wandb_curves, wandb_files, wandb_offline, wandb_start
from tests.kit.host_runs import QUICK_ADO, tail, train, write_domains

pytestmark = [pytest.mark.host, pytest.mark.timeout(300)]


def ours(name: str) -> bool:
    return name.startswith("ado/")


# Stands for a package whose server is gone: what is logged becomes a line of a file.
WANDB = """
import json, os

class Anything:
    def __init__(self, *args, **kwargs): pass
    def __getattr__(self, name): return lambda *args, **kwargs: None

config, run, Artifact = Anything(), Anything(), Anything
run.entity = run.project = "none"
define_metric = finish = lambda *args, **kwargs: None

def init(project, name, **rest):
    write({"project": project, "name": name})

def log(values, step=None):
    if os.environ.get("WANDB_FAILS") and any(name.startswith("ado/") for name in values):
        raise ConnectionError("the server is gone")
    write({"step": step} | {name: float(value) for name, value in values.items()})

def write(line):
    with open(os.environ["WANDB_LINES"], "a") as file:
        file.write(json.dumps(line) + "\\n")
"""


@pytest.mark.parametrize("host", ["lm", "lm_main", "deepspeed", "deepspeed_flat"])
def test_weights_and_validation_losses_go_to_tensorboard_wandb_and_log(host, tmp_path, monkeypatch):
    """The real wandb package, offline. The last step is evaluated twice; a board shows the first."""
    wandb_offline(monkeypatch)
    options = ["--num-workers", 0, *QUICK_ADO, "--ado-validation", "--eval-interval", 3]
    options += ["--tensorboard-dir", tmp_path / "tensorboard", "--wandb-project", "mixtures", "--wandb-exp-name", "one"]
    data = ["--data-path", *write_domains(tmp_path)]
    run = train(host, tmp_path / "run", data, options, ranks=2, steps=6)
    assert run.status == 0, tail(run)

    (file,) = wandb_files(tmp_path / "run")
    started = wandb_start(file)
    assert (started["project"], started["name"]) == ("mixtures", "one")
    tensorboard = {name: curve for name, curve in tensorboard_curves(tmp_path / "tensorboard").items() if ours(name)}
    wandb = {name: curve for name, curve in wandb_curves(file).items() if ours(name)}

    rows = [*run.metrics("validation"), *run.metrics("test")]
    assert [row["step"] for row in rows] == [3, 6, 6, 6]
    del rows[2]  # of the evaluation after the last step
    # the last rank writes, which knows the weights in force for the next batch as its shares
    shares = [np.divide(row["counts_K"], 8) for row in run.metrics("step")]
    expected = {}
    for k, name in enumerate(["wiki", "code", "news", "law"]):
        expected[f"ado/weight/{name}"] = [(step, shares[min(step, 5)][k]) for step in range(1, 7)]
        for row in rows:
            if row["loss_K"][k] is not None:
                expected.setdefault(f"ado/{row['type']}/{name}", []).append((row["step"], row["loss_K"][k]))
    for board in (tensorboard, wandb):  # both may hold float32
        assert board == {name: pytest.approx(np.array(curve), rel=1e-6) for name, curve in expected.items()}
    at_once = {row.name for row in TABLE if re.match("ado/(weight|validation|test)/", row.name)}
    assert {re.sub("(wiki|code|news|law)$", "DOMAIN", name) for name in wandb} == at_once
    assert "ado: step 1 weights | wiki 0.4000 code 0.3000 news 0.2000 law 0.1000" in run.log
    assert re.search(r"ado: step 6 test loss \| wiki \d\.\d{4} ", run.log)


@pytest.mark.parametrize("host", ["lm", "deepspeed_flat"])
def test_what_rank_zero_measures_is_on_the_boards_of_the_last_rank(host, tmp_path):
    """Sums are reduced, and laws fitted, after step 7; they are on the board by step 14."""
    options = ["--num-workers", 0, *QUICK_ADO, "--tensorboard-dir", tmp_path / "tensorboard"]
    for_prometheus = tmp_path / "ado.prom" if importlib.util.find_spec("prometheus_client") else None
    options += ["--ado-prometheus", for_prometheus] if for_prometheus else []
    run = train(host, tmp_path / "run", ["--data-path", *write_domains(tmp_path)], options, ranks=2, steps=14)
    assert run.status == 0, tail(run)
    if for_prometheus:  # rank zero, which knows the weights themselves
        weight = re.search(r'ado_weight{domain="law",run="run"} (\S+)', for_prometheus.read_text())
        assert float(weight[1]) == pytest.approx(run.metrics("step")[-1]["weights_K"][3])
    curves = {name: curve for name, curve in tensorboard_curves(tmp_path / "tensorboard").items() if ours(name)}
    rows = run.metrics("step")
    for k, name in enumerate(["wiki", "code", "news", "law"]):
        step, tokens = curves[f"ado/tokens/{name}"][0]
        assert tokens == sum(row["tokens_K"][k] for row in rows[:7]) and 7 <= step <= 14
        assert len(curves[f"ado/loss/{name}"]) >= 1
    assert curves["ado/target_loss"][0][1] > 0 and curves["ado/changes"][0][1] == 0


@pytest.mark.parametrize("host", ["lm", "deepspeed_flat"])
def test_a_board_that_raises_does_not_stop_the_training(host, tmp_path, monkeypatch):
    (tmp_path / "stubs" / "wandb").mkdir(parents=True)
    (tmp_path / "stubs" / "wandb" / "__init__.py").write_text(WANDB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stubs"))
    monkeypatch.setenv("WANDB_LINES", str(tmp_path / "wandb.jsonl"))
    monkeypatch.setenv("WANDB_FAILS", "1")
    options = ["--num-workers", 0, *QUICK_ADO, "--wandb-project", "mixtures", "--wandb-exp-name", "one"]
    options += ["--tensorboard-dir", tmp_path / "tensorboard"]
    run = train(host, tmp_path / "run", ["--data-path", *write_domains(tmp_path)], options, ranks=2, steps=6)
    assert run.status == 0 and set(run.curve) == set(range(1, 7)), tail(run)
    assert run.log.count("weights and losses for W&B cannot be written, the training goes on: the server is gone") == 1
    assert len(run.metrics("step")) == 6
