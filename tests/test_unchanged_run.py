"""A replay, a training run and a resume from an old sidecar come to what they came to (tests/kit/before.py).

Legend: K domains, C datasets, T steps, R refits, 3 = (log β, log ε, α).
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from ado_megatron.blend.domains import Domains
from ado_megatron.config import AdoConfig
from ado_megatron.replay.command import replay
from ado_megatron.replay.trace import read_trace
from tests.kit.before import DATA, arithmetic, digest, numbers, stored, within, write_json
from tests.kit.mixing import Run, stop_fits
from tests.kit.ranks import run_ranks
from tests.kit.training import metrics, train_rank, write_data

GOLDEN = DATA.parent / "released_k3.npz"

# -------------------------------------------------------------------- the recorded trace


def replays() -> dict[str, np.ndarray]:
    """Weights and laws by variant: with the laws of the trace, and with laws fitted anew."""
    trace = read_trace(str(GOLDEN))
    lawless = dataclasses.replace(trace, law_steps_R=None, laws_RxKx3=None)
    short = {"start_step": 100, "refit_interval": 50, "ignore_steps": 20}
    variants = {
        "given": (trace, AdoConfig(profile="released", **trace.options)),
        "given_ado": (trace, AdoConfig(start_step=100, max_change=1.0)),
        "fitted": (lawless, AdoConfig(profile="released", **short)),
        "fitted_ado": (lawless, AdoConfig(profile="ado", **short, stride=2, max_change=1.0)),
    }
    arrays = {}
    for name, variant in variants.items():
        result = replay(*variant)
        for array in ("weights_TxK", "law_steps_R", "laws_RxKx3"):
            arrays[f"{name}_{array}"] = getattr(result, array)
    return arrays


def test_the_replay_of_the_recorded_trace_is_as_it_was():
    now = replays()
    with np.load(DATA / "replay.npz") as then:
        assert now.keys() == set(then.files)
        for name, array in then.items():
            tolerance = within(1e-12, 1e-6) if name.startswith("fitted") else 1e-12
            np.testing.assert_allclose(now[name], array, rtol=0, atol=tolerance, err_msg=name)


# -------------------------------------------------------------------- a training run

TRAINER = dict(steps=60, num_workers=1)
ADO = dict(refit_interval=12, start_step=12, ignore_steps=2, stride=1, gate_points=5, early_refits=False, fit_lag=4,
           max_change=1.0)  # fmt: skip
TIMINGS = {"seconds", "wait_seconds"}


def trained() -> dict:
    """What a run of the trainer in one rank wrote of its steps and fits."""
    with tempfile.TemporaryDirectory() as directory:
        run, data = f"{directory}/run", str(write_data(Path(directory) / "data"))
        run_ranks(train_rank, 1, run, data, TRAINER, ADO)
        steps = [{name: step[name] for name in ("step", "loss_K", "weights_K", "counts_K")}
                 for step in metrics(run, "step")]  # fmt: skip
        fits = [{name: value for name, value in fit.items() if is_numeric(value) and name not in TIMINGS}
                for fit in metrics(run, "fit")]  # fmt: skip
    return {"steps": steps, "fits": fits}


def is_numeric(value) -> bool:
    try:
        return numbers(value).size > 0
    except (TypeError, ValueError):
        return False


def test_a_training_run_measures_fits_and_draws_as_it_did():
    """Losses are float32 sums, whose last digits are the machine's: they are compared to 1e-5. Weights and laws are
    float64 and a function of these losses alone, so equal losses give them to 1e-9; and counts are integers."""
    then, now = stored("training.json"), trained()
    assert [step["step"] for step in now["steps"]] == list(range(1, 61))
    assert len(now["fits"]) == len(then["fits"]) == 4
    for ours, theirs in zip(now["steps"], then["steps"], strict=True):
        np.testing.assert_allclose(numbers(ours["loss_K"]), numbers(theirs["loss_K"]), rtol=0, atol=1e-5)
        np.testing.assert_allclose(ours["weights_K"], theirs["weights_K"], rtol=within(1e-9, 1e-4))
        assert ours["counts_K"] == theirs["counts_K"]
    for ours, theirs in zip(now["fits"], then["fits"], strict=True):
        for name, value in theirs.items():
            tolerance = within(1e-9, 1e-3)
            np.testing.assert_allclose(numbers(ours[name]), numbers(value), rtol=tolerance, err_msg=name)


# -------------------------------------------------------------------- a sidecar of this version

# Three prefixes in two domains. The batch grows after eleven steps, so the checkpoint lies inside a block, and it lies
# between a cut and the block from which the laws of this cut decide: their fit is under way.
SETTING = {
    "prefixes": ["data/code_text_document", "data/wiki_text_document", "data/maths_text_document"],
    "weights": [5.0, 3.0, 2.0], "lengths": [1000, 300, 70], "batch": 16,
    "ramp": [[8, 11], [16, 109]],  # (samples of a step, steps)
    "save_at": 48,
}  # fmt: skip
SIDECAR_OPTIONS = dict(policy="ado", refit_interval=20, start_step=20, ignore_steps=2, stride=1, early_refits=False,
                       fit_lag=12, log_interval=5, wait_deadline=60.0, groups="groups.json")  # fmt: skip


def begin(directory: Path, setting: dict, sidecar: Path | None = None) -> Run:
    """A run of the setting, at its beginning or at the sidecar. Needs DATA as the working directory: the setting names
    its file of groups without a path."""
    config = AdoConfig.from_dict(setting["config"])
    domains = Domains.build(setting["prefixes"], setting["weights"], setting["lengths"], config)
    sizes = [samples for samples, steps in setting["ramp"] for _ in range(steps)]
    run = Run(directory, config, doms=domains, batch=setting["batch"], steps=len(sizes), sizes=sizes)
    return run.start(sidecar)


def after(run: Run, consumed: int) -> dict:
    """What the rest of a run came to, from sample `consumed` on."""
    run.train(len(run.sizes))
    drawn = [run.mixer.schedule.draw(i) for i in range(consumed, run.consumed)]
    planner = run.mixer.rank_zero.planner
    return {
        "samples": len(drawn), "stream": digest(drawn), "weights_K": planner.state.weights_K.tolist(),
        "laws_Kx3": planner.laws.params().tolist(), "drawn_C": run.mixer.schedule.cumulative(run.consumed).tolist(),
    }  # fmt: skip


def check_after(ours: dict, theirs: dict) -> None:
    np.testing.assert_allclose(ours["weights_K"], theirs["weights_K"], rtol=within(1e-9, 1e-6))
    np.testing.assert_allclose(ours["laws_Kx3"], theirs["laws_Kx3"], rtol=within(1e-9, 1e-6))
    assert all(ours[name] == theirs[name] for name in ("samples", "drawn_C", "stream"))


def write_sidecar_and_what_follows() -> None:
    (DATA / "groups.json").write_text('{"text": ["wiki", "maths"], "code": "code"}\n')
    setting = SETTING | {"config": AdoConfig(**SIDECAR_OPTIONS).to_dict()}
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.chdir(DATA)
        run = begin(Path(directory), setting).train(setting["save_at"])
        assert run.mixer.refits.pending and run.consumed % setting["batch"]
        run.save(DATA / "mid_run.ado")
        setting["consumed"] = run.consumed
        setting["after"] = after(run, setting["consumed"])
        stop_fits()
        with tempfile.TemporaryDirectory() as other:
            resumed = begin(Path(other), setting, DATA / "mid_run.ado")
            check_after(after(resumed, setting["consumed"]), setting["after"])
            stop_fits()
    write_json("mid_run.json", setting)


def test_a_sidecar_of_before_goes_on_as_it_did(tmp_path, monkeypatch):
    setting = stored("mid_run.json")
    monkeypatch.chdir(DATA)
    try:
        run = begin(tmp_path, setting, DATA / "mid_run.ado")
        assert (run.step, run.consumed) == (setting["save_at"], setting["consumed"])
        assert not any("goes on with other options" in message for message in run.messages)
        check_after(after(run, setting["consumed"]), setting["after"])
    finally:
        stop_fits()


# -------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["scaling_law.fit_laws", "mixer.Mixer"])
def test_what_others_import_keeps_its_name(name):
    module, _, attribute = name.partition(".")
    assert callable(getattr(importlib.import_module(f"ado_megatron.{module}"), attribute))


if __name__ == "__main__" and sys.argv[1:] == ["write"]:
    write_json("arithmetic.json", arithmetic())
    np.savez_compressed(DATA / "replay.npz", **replays())
    write_json("training.json", trained())
    write_sidecar_and_what_follows()
