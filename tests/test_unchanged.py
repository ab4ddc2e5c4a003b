"""What a run computes stays what it was: the stream, the rows, the laws, a resume from an old file, the options.

The values in tests/data/before/ were written by the version before the package was divided into wings (0.1.0 at
2d0a8ec), by `python -m tests.test_unchanged write` there. They change only with a change that is meant to alter
results, and says so.

Legend: C datasets, K domains, S rows, n slots of a block.
"""

import hashlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ado_megatron.blend.domains import Domains
from ado_megatron.config import AdoConfig
from ado_megatron.measure.metrics import read_metrics
from ado_megatron.mixer.planner import Planner
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.stream.schedule import Schedule, apportion
from tests.kit import mixing
from tests.kit.ranks import run_ranks
from tests.kit.training import metrics, train_rank, write_data

DATA = pathlib.Path(__file__).parent / "data" / "before"
LENGTHS = (4000, 1500, 900, 333, 120, 57, 11)  # the small ones pass through many epochs
BLOCKS, BLOCK = 2000, 64


def digest(*arrays):
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return sha.hexdigest()


def moving_weights(block):
    """Weights that turn slowly, each dataset at its own pace; no random numbers, so any version makes the same."""
    phase_C = np.arange(1, 8)
    return 1.0 + np.cos(block * phase_C / 97.0) * 0.8 + phase_C / 7.0


def stream():
    """Digests of all rows and of every sample of 2,000 blocks under weights that change at each block."""
    schedule = Schedule(LENGTHS, BLOCK, BLOCKS, seed=7, stream_id_C=[3, 1, 4, 15, 9, 2, 6])
    credit_C, rows = np.zeros(7), []
    for block in range(BLOCKS):
        counts_C, credit_C = apportion(moving_weights(block), BLOCK, credit_C)
        rows.append(counts_C)
    schedule.publish(0, np.array(rows))
    samples = [np.stack(schedule.block(block)) for block in range(BLOCKS)]
    epochs_C = schedule.cumulative(BLOCKS * BLOCK) // LENGTHS
    return {"rows": digest(*rows), "samples": digest(*samples), "epochs_C": epochs_C.tolist()}


PLANS = {
    "ado": {"max_change": 1.0},  # which bounds changes by .2 since
    "released": {"profile": "released", "start_step": 20},
    "paper": {"profile": "paper", "start_step": 20},
    "caps": {"max_epochs": "4,c4=2", "max_change": 1.0},
    "shadow": {"shadow": True, "max_change": 1.0},
    "static": {"policy": "static"},
}


def plan(name):
    """Rows and weights of 300 blocks, in three calls with new laws before the second and the third."""
    weights = np.array([40.0, 20.0, 15.0, 10.0, 8.0, 4.0, 3.0])
    config = AdoConfig(**({"start_step": 20} | PLANS[name])).resolved()
    domains = Domains.build([f"c{c}_text_document" for c in range(7)], weights, LENGTHS, config)
    from ado_megatron.blend.epoch_caps import caps_from_config

    transfer = 0.0 if config.own_n else np.inf
    planner = Planner(config, domains, BLOCK, caps_from_config(config, domains))
    rows, shares = [], []
    for call, laws in enumerate((None, LAWS, LAWS * [1.0, 1.0, 0.8])):
        planner.laws = None if laws is None else Laws.given(laws, transfer)
        rows.append(planner.plan(100))
        shares.append(planner.weights_K(100 * call + 99))
    return {"rows": digest(*rows), "weights_SxK": np.array(shares).tolist()}


LAWS = np.array([[1.2, 0.3, 0.20], [1.0, 0.5, 0.35], [0.8, 0.1, 0.10], [1.5, 0.9, 0.50],
                 [0.5, -0.2, 0.15], [1.1, 0.7, 0.40], [0.9, 0.2, 0.25]])  # fmt: skip


def mixed(profile):
    """Laws and weights of a run of 100 steps with losses that follow what was drawn."""
    import tempfile

    config = mixing.config(fit_lag=3, profile=profile, smoothing="none" if profile == "released" else None)
    with tempfile.TemporaryDirectory() as folder:
        run = mixing.Run(folder, config, steps=100).start().train(100)
        run.mixer.close()
        fits = [r for r in read_metrics(pathlib.Path(folder) / "ado" / "metrics.jsonl") if r["type"] == "fit"]
    laws = [[fit[name] for name in ("log_beta_K", "log_epsilon_K", "alpha_K", "objective_K")] for fit in fits]
    return {"stream": digest(run.stream), "laws": laws, "weights_K": run.mixer.weights_K(1600).tolist()}


def embedded():
    """Weights, losses and laws of 40 steps of the embedded trainer on one rank."""
    import tempfile

    ado = dict(refit_interval=10, start_step=10, ignore_steps=0, fit_lag=1, smoothing="none", stride=1, gate_points=1)
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(pathlib.Path(folder) / "data")
        run = f"{folder}/run"
        run_ranks(train_rank, 1, run, str(data), {"steps": 40, "num_workers": 1}, ado, method="spawn")
        steps, fits = metrics(run, "step"), metrics(run, "fit")
    return {
        "weights": [step["weights_K"] for step in steps], "losses": [step["loss_K"] for step in steps],
        "counts": [step["counts_K"] for step in steps], "objective": [fit["objective_K"] for fit in fits],
    }  # fmt: skip


SIDECAR = {"fit_lag": 9}  # saved at step 25, while the fit of block 20 is under way


def old_run(folder, steps=80):
    return mixing.Run(folder, mixing.config(**SIDECAR), steps=steps)


COMMANDS = ("prepare", "pretrain", "report", "audit", "replay", "doctor", "patch")


def help_of(command):
    import os

    line = [sys.executable, "-m", "ado_megatron.cli", command, "--help"]
    if command == "run":
        line = [sys.executable, "-m", "ado_megatron.run", "--ado-help"]
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "120"})
    return done.stdout


def options_of(text):
    """{flags: help} of a --help text, in one form whatever the lines are broken at."""
    found, flags = {}, None
    for line in text.splitlines():
        words = line.strip()
        if line.startswith("  -") and not line.startswith("   "):
            words, _, rest = words.partition("  ")
            flags = ", ".join(word.strip(",") for word in words.split() if word.startswith("-"))
            found[flags] = rest.strip()
        elif flags is not None and line.startswith("      "):
            found[flags] = f"{found[flags]} {words}".strip()
        else:
            flags = None
    return {name: " ".join(help.split()) for name, help in found.items()}


def expected():
    return json.loads((DATA / "values.json").read_text())


# ---------------------------------------------------------------- tests


def test_the_stream_of_a_fixed_run_is_the_same_to_the_sample():
    assert stream() == expected()["stream"]


@pytest.mark.parametrize("name", PLANS)
def test_the_rows_under_fixed_laws_are_the_same(name):
    ours, theirs = plan(name), expected()["plans"][name]
    assert ours["rows"] == theirs["rows"]
    np.testing.assert_allclose(ours["weights_SxK"], theirs["weights_SxK"], rtol=1e-12)


@pytest.mark.parametrize("profile", ["ado", "released", "paper"])
def test_laws_weights_and_draws_of_a_run_are_the_same(profile):
    ours, theirs = mixed(profile), expected()["runs"][profile]
    np.testing.assert_allclose(np.array(ours["laws"], float), np.array(theirs["laws"], float), rtol=1e-9)
    np.testing.assert_allclose(ours["weights_K"], theirs["weights_K"], rtol=1e-9)
    assert ours["stream"] == theirs["stream"]


def test_an_embedded_run_is_the_same():
    """Within what another order of float32 sums changes: other processors and thread counts are to pass, too."""
    ours, theirs = embedded(), expected()["embedded"]
    assert ours["counts"][:12] == theirs["counts"][:12], "the prior alone decides these"
    for name, tolerance in (("losses", 1e-4), ("weights", 1e-3), ("objective", 1e-2)):
        mine, reference = np.array(ours[name], float), np.array(theirs[name], float)
        np.testing.assert_allclose(mine, reference, rtol=tolerance, err_msg=name)


def test_a_sidecar_of_the_version_before_resumes_to_the_sample(tmp_path):
    run = old_run(tmp_path).start(DATA / "state_25.ado").train(80)
    run.mixer.close()
    theirs = expected()["resumed"]
    assert digest(run.stream) == theirs["stream"]
    np.testing.assert_allclose(run.mixer.weights_K(80 * 16 - 1), theirs["weights_K"], rtol=1e-9)


@pytest.mark.parametrize("command", [*COMMANDS, "run"])
def test_every_option_of_the_version_before_is_there_and_says_the_same(command):
    ours, theirs = options_of(help_of(command)), json.loads((DATA / "help.json").read_text())[command]
    assert theirs
    missing = {flags: help for flags, help in theirs.items() if flags not in ours and flags not in REWORDED}
    assert missing == {}
    assert {f: h for f, h in ours.items() if f in theirs and h != theirs[f] and f not in REWORDED} == {}


# Flags whose text was changed on purpose since: --ado-policy knows more policies, the others now say their default
# where it is 0 or off.
REWORDED = {
    "--ado-policy",
    "--resume, --no-resume", "--bf16, --no-bf16", "--recompute, --no-recompute", "--dropout", "--exit-interval",
    "--num-workers", "--save-interval",
}  # fmt: skip


def test_the_stream_needs_no_other_library_than_before():
    code = "import sys, ado_megatron.stream.schedule, ado_megatron.stream.blended_dataset; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tops = {name.split(".")[0] for name in done.stdout.split()}
    assert tops & {"torch", "scipy", "yaml", "matplotlib", "deepspeed", "megatron", "pandas", "numba", "rich"} == set()


def write():
    """Write the data; only where results are meant to change."""
    import tempfile

    DATA.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        first = old_run(folder).start().train(25)
        first.save(DATA / "state_25.ado")
        first.mixer.close()
        second = old_run(folder).start(DATA / "state_25.ado").train(80)
        second.mixer.close()
        resumed = {"stream": digest(second.stream), "weights_K": second.mixer.weights_K(80 * 16 - 1).tolist()}
    values = {
        "stream": stream(), "plans": {name: plan(name) for name in PLANS},
        "runs": {profile: mixed(profile) for profile in ("ado", "released", "paper")}, "resumed": resumed,
        "embedded": embedded(),
    }  # fmt: skip
    (DATA / "values.json").write_text(json.dumps(values, indent=1) + "\n")
    texts = {command: options_of(help_of(command)) for command in (*COMMANDS, "run")}
    (DATA / "help.json").write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__" and sys.argv[1:] == ["write"]:
    write()
