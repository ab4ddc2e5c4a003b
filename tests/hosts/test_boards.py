"""Weights and losses by domain where the host shows its own: TensorBoard, W&B, the log."""

import json
import re

import numpy as np
import pytest

from ado_megatron.hosts.boards import Boards
from tests.kit.host_runs import QUICK_ADO, tail, train, write_domains

host = pytest.mark.host
pytestmark = pytest.mark.timeout(300)

# Stands for the package: what is logged becomes a line of a file.
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


@host
@pytest.mark.parametrize("host", ["lm", "lm_main", "deepspeed", "deepspeed_flat"])
def test_weights_and_validation_losses_go_to_tensorboard_wandb_and_log(host, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "stubs" / "wandb").mkdir(parents=True)
    (tmp_path / "stubs" / "wandb" / "__init__.py").write_text(WANDB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stubs"))
    monkeypatch.setenv("WANDB_LINES", str(tmp_path / "wandb.jsonl"))
    options = ["--num-workers", 0, *QUICK_ADO, "--ado-validation", "--eval-interval", 3]
    options += ["--tensorboard-dir", tmp_path / "tensorboard", "--wandb-project", "mixtures", "--wandb-exp-name", "one"]
    data = ["--data-path", *write_domains(tmp_path)]
    run = train(host, tmp_path / "run", data, options, ranks=2, steps=6)
    assert run.status == 0, tail(run)

    started, *logged = map(json.loads, (tmp_path / "wandb.jsonl").read_text().splitlines())
    assert started == {"project": "mixtures", "name": "one"}
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()

    def curves(name):
        """(step, value) in TensorBoard, the same in W&B, both of float32."""
        board = [(point.step, pytest.approx(point.value, rel=1e-6)) for point in events.Scalars(name)]
        assert [(line["step"], line[name]) for line in logged if name in line] == board
        return board

    rows = [*run.metrics("validation"), *run.metrics("test")]
    assert [row["step"] for row in rows] == [3, 6, 6, 6]
    # the last rank writes, which knows the weights in force for the next batch as its shares
    shares = [np.divide(row["counts_K"], 8) for row in run.metrics("step")]
    for k, name in enumerate(["wiki", "code", "news", "law"]):
        expected = [(step, shares[min(step, 5)][k]) for step in range(1, 7)]
        assert expected == curves(f"ado/weight/{name}")
        for kind in ("validation", "test"):
            expected = [(r["step"], r["loss_K"][k]) for r in rows if r["type"] == kind and r["loss_K"][k] is not None]
            if expected:
                assert expected == curves(f"ado/{kind}/{name}")
    assert "ado: step 1 weights | wiki 0.4000 code 0.3000 news 0.2000 law 0.1000" in run.log
    assert re.search(r"ado: step 6 test loss \| wiki \d\.\d{4} ", run.log)


@host
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
    assert run.log.count("weights and losses for W&B: the server is gone; the run goes on without") == 1
    assert len(run.metrics("step")) == 6


def test_a_board_that_fails_is_told_once_and_the_other_goes_on(caplog):
    boards, written = Boards(), []

    def full(scalars, step):
        raise RuntimeError("disk full")

    both = {"TensorBoard": full, "W&B": lambda *line: written.append(line)}
    for step in (1, 2):
        boards.write(both, {"ado/weight/wiki": 0.5}, step)
    boards.write({}, {"ado/weight/wiki": 0.5}, 3)  # a rank that has none
    assert [record.getMessage() for record in caplog.records] == [
        "weights and losses for TensorBoard cannot be written, the training goes on: disk full"
    ]
    assert written == [({"ado/weight/wiki": 0.5}, 1), ({"ado/weight/wiki": 0.5}, 2)]
