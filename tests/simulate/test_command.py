"""`ado-megatron simulate`: the table, the JSON object, the picture, and bad input."""

import json

import numpy as np
import pytest

from ado_megatron.cli import main
from ado_megatron.config import AdoConfig
from ado_megatron.simulate import simulate
from ado_megatron.simulate.arms import arm_config
from ado_megatron.simulate.response import read_response

ARRAYS = dict(
    log_beta_M=np.log([3.0, 4.0, 2.0]), log_epsilon_M=np.log([1.0, 2.0, 0.5]), alpha_M=np.array([0.3, 0.2, 0.5]),
    gamma_MxK=np.eye(3) + 0.1, natural_K=np.array([0.5, 0.3, 0.2]), names_K=np.array(["web", "code", "news"]),
    steps=np.int64(80),
)  # fmt: skip
QUICK = ["--ado-start-step", "20", "--ado-refit-interval", "20", "--ado-ignore-steps", "2", "--ado-stride", "1"]


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "response_small.npz", **ARRAYS)
    return str(tmp_path / "response_small.npz")


def test_json_says_what_was_run(path, capsys):
    argv = ["simulate", path, "--arms", "ado,static,ado", "--seeds", "2", "--json", "--no-plot", "--target", "news=1",
            "--prior", "uniform", "--block-size", "32", *QUICK]  # fmt: skip
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert [arm["name"] for arm in found["arms"]] == ["ado", "static"]
    assert found["prior_K"] == pytest.approx([1 / 3] * 3) and found["target_K"] == [0.0, 0.0, 1.0]
    ado, static = found["arms"]
    assert static["gain"] == pytest.approx(0.0, abs=1e-3) and len(static["gain_R"]) == 1 and len(ado["gain_R"]) == 2
    config = AdoConfig(policy="ado", start_step=20, refit_interval=20, ignore_steps=2, stride=1)
    response = read_response(path).of_samples(32)
    again = simulate(response, np.ones(3), target_K=[0, 0, 1], config=config, steps=80, block_size=32, seed=1)
    prior_loss = response(np.full(3, 80 * 32 / 3))[2]
    assert found["prior_loss"] == pytest.approx(prior_loss)
    assert ado["gain_R"][1] == pytest.approx(prior_loss - again.target_loss)
    assert ado["regret"] == pytest.approx(found["prior_loss"] - ado["gain"] - found["best_loss"])
    assert found["best_K"][2] > 0.99 and found["best_loss"] < prior_loss


def test_table_and_picture(path, tmp_path, capsys):
    assert main(["simulate", path, "--arms", "released,plan,static", "--seeds", "1", *QUICK]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith("response_small.npz: 80 steps of 512 samples, target loss of the prior ")
    rows = {line.split("  ")[0]: line for line in lines[2:]}
    assert {"prior", "best fixed mixture", "released", "plan", "static", "target"} <= set(rows)
    assert rows["target"].split()[1:] == ["50.0%", "30.0%", "20.0%"]
    assert (tmp_path / "response_small.simulated.png").read_bytes()[:4] == b"\x89PNG"
    assert "response_small.simulated.png" in captured.err


@pytest.mark.parametrize("argv, words", [
    (["--arms", "ado,nonsense"], "--arms: there is no arm 'nonsense'; the arms are released, paper, ado, plan"),
    (["--arms", ","], "at least one arm"), (["--seeds", "0"], "one seed"),
    (["--target", "art=1"], "--target art=1: there is no domain 'art'"),
    (["--prior", "web=-1"], "--prior web=-1: domain 'web' has weight -1"),
    (["--prior", "web=0"], "--prior web=0: all weights are zero"), (["--prior", "prior"], "--prior prior"),
    (["--target", "nowhere.json"], "--target: nowhere.json is none of"),
    (["--steps", "0"], "--steps 0"), (["--noise", "nan"], "--noise nan"),
    (["--plot", "no/such/place.png", "--arms", "static"], "--plot no/such/place.png cannot be written"),
    (["--ado-min-share", "2"], "--ado-min-share must be at most"),
])  # fmt: skip
def test_bad_input_is_a_sentence(path, capsys, argv, words):
    assert main(["simulate", path, *argv]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_a_file_that_is_not_there(capsys):
    assert main(["simulate", "nowhere.npz"]) == 2
    assert "nowhere.npz cannot be read as an .npz of a response: No such file" in capsys.readouterr().err


def test_arms_are_profiles_and_policies():
    config = AdoConfig(min_share=0.02)
    released, plan, static = (arm_config(name, config) for name in ("released", "plan", "static"))
    assert (released.profile, released.policy, released.transfer, released.min_share) == ("released", "ado", None, 0.02)
    assert (plan.profile, plan.policy, plan.transfer) == ("ado", "plan", "estimate")
    assert static.policy == "static"
    assert arm_config("plan", AdoConfig(transfer="0.2")).transfer == "0.2"
    assert arm_config("ado", AdoConfig(policy="plan", profile="paper")).policy == "ado"
