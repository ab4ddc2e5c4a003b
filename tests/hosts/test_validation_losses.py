"""--ado-validation under real hosts: domains sum to the loss that the host prints, and nothing else changes."""

import re

import numpy as np
import pytest

from tests.kit.host_runs import QUICK_ADO, Run, tail, train, write_domains

pytestmark = [pytest.mark.host, pytest.mark.timeout(600)]

TP, PP, CP = "--tensor-model-parallel-size", "--pipeline-model-parallel-size", "--context-parallel-size"
LAYOUTS = {"dp2": [], "tp2": [TP, 2], "pp2": [PP, 2], "cp2": [CP, 2],
           "vpp2": [PP, 2, "--num-layers-per-virtual-pipeline-stage", 1]}  # fmt: skip
MODES = {"ado": QUICK_ADO, "shadow": ["--ado-shadow", *QUICK_ADO], "static": ["--ado-policy", "static"]}
CASES = [
    ("lm", "dp2", "ado"), ("lm", "tp2", "shadow"), ("lm", "cp2", "static"),
    ("lm_main", "pp2", "ado"), ("lm_main", "tp2", "static"), ("lm_main", "vpp2", "shadow"),
    ("deepspeed", "pp2", "ado"), ("deepspeed", "tp2", "shadow"), ("deepspeed", "dp2", "static"),
    ("deepspeed_flat", "dp2", "ado"), ("deepspeed_flat", "tp2", "shadow"),
]  # fmt: skip
STEPS, SAMPLES, TOKENS = 12, 8, 32
EVALUATIONS = ["--eval-interval", 6, "--eval-iters", 2]
NAMES = ["wiki", "code", "news", "law"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("host")
    return directory, write_domains(directory)


def printed(run: Run) -> list[tuple[int, float]]:
    """(iteration, loss) of every evaluation that the host printed, in order; the last is that of the test set."""
    lines = re.findall(r"validation(?:-\w+)? loss at iteration (\d+).*?\| lm loss value: (\S+)", run.log)
    return [(int(step), float(loss)) for step, loss in lines]


def reported(run: Run) -> list[dict]:
    return run.metrics("validation") + run.metrics("test")


def mean(row: dict) -> float:
    """Token-weighted, over domains and others."""
    parts = [*zip(row["loss_K"], row["tokens_K"], strict=True)]
    parts += [(other["loss"], other["tokens"]) for other in row.get("others", {}).values()]
    return sum((loss or 0) * tokens for loss, tokens in parts) / sum(tokens for _, tokens in parts)


def write_unseen(directory) -> str:
    """A domain of tokens that no train domain has."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix = str(directory / "unseen_text_document")
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for tokens in np.random.default_rng(1).integers(115, 127, (20, 100)):
        builder.add_document(torch.tensor(tokens), [100])
    builder.finalize(f"{prefix}.idx")
    return prefix


@pytest.mark.parametrize(("host", "layout", "mode"), CASES)
def test_domains_sum_to_the_printed_loss_and_nothing_else_changes(host, layout, mode, place):
    directory, blend = place
    data, options = ["--data-path", *blend], [*LAYOUTS[layout], *MODES[mode], *EVALUATIONS, "--num-workers", 1]
    run, plain = (
        train(host, directory / f"{host}_{layout}_{name}", data, [*options, *more], ranks=2, steps=STEPS)
        for name, more in (("validated", ["--ado-validation"]), ("plain", []))
    )
    for one in (run, plain):
        assert one.status == 0, tail(one)
    assert len(plain.curve) == STEPS and run.curve == plain.curve
    assert len(printed(plain)) == 4 and printed(run) == printed(plain)
    assert [step for step, _ in printed(run)] == [6, 12, 12, 12]
    rows = reported(run)
    assert [(row["type"], row["step"]) for row in rows] == [
        ("validation", 6), ("validation", 12), ("validation", 12), ("test", 12)
    ]  # fmt: skip
    for row, (_, loss) in zip(rows, printed(run), strict=True):
        assert mean(row) == pytest.approx(loss, abs=3e-6)
        assert sum(row["tokens_K"]) == 2 * SAMPLES * TOKENS and "others" not in row
        assert all(tokens % TOKENS == 0 for tokens in row["tokens_K"])
        assert row["tokens_K"][0] > row["tokens_K"][3]  # weights 0.4 and 0.1
    assert reported(plain) == []
    assert re.search(r"ado: step 6 validation loss \| wiki \d+\.\d{4} code ", run.log)


@pytest.mark.parametrize("host", ["lm", "lm_main", "deepspeed", "deepspeed_flat"])
def test_prefixes_of_other_blends_are_told_apart(host, place):
    directory, blend = place
    data = ["--train-data-path", *blend, "--valid-data-path", "0.5", write_unseen(directory), "0.5", blend[1],
            "--test-data-path", blend[7]]  # fmt: skip
    options = ["--ado-policy", "static", "--ado-validation", *EVALUATIONS, "--num-workers", 1]
    run = train(host, directory / f"{host}_others", data, options, ranks=2, steps=STEPS)
    assert run.status == 0, tail(run)
    losses = [loss for _, loss in printed(run)]
    *validations, test = reported(run)
    for row, loss in zip(validations, losses, strict=False):
        assert mean(row) == pytest.approx(loss, abs=3e-6)
        assert [loss is not None for loss in row["loss_K"]] == [True, False, False, False]
        assert list(row["others"]) == ["unseen"] and row["others"]["unseen"]["tokens"] == SAMPLES * TOKENS
    # log 127 = 4.84: below it what was trained on, above it what was not; were they confused, both would be near
    assert validations[-1]["loss_K"][0] < 4 and validations[-1]["others"]["unseen"]["loss"] > 4.9
    assert test["loss_K"][:3] == [None] * 3 and test["loss_K"][3] == pytest.approx(losses[-1], abs=3e-6)


@pytest.mark.parametrize("host", ["lm", "lm_main"])
def test_validation_sets_of_one_prefix_each_are_the_domains(host, place):
    directory, blend = place
    data = ["--train-data-path", *blend, "--valid-data-path", blend[3], blend[1]]
    options = ["--ado-validation", *QUICK_ADO, "--full-validation", "--multiple-validation-sets", "--eval-interval", 6]
    if host == "lm_main":
        options += ["--validation-set-names", "first", "second"]
    run = train(host, directory / f"{host}_sets", data, [*options, "--num-workers", 1], ranks=2, steps=6)
    assert run.status == 0, tail(run)
    row, (code, wiki) = run.metrics("validation")[0], [loss for _, loss in printed(run)][:2]
    assert row["loss_K"][2:] == [None, None]
    assert row["loss_K"][:2] == pytest.approx([wiki, code], abs=6e-6) and abs(wiki - code) > 1e-4  # five decimals


@pytest.mark.parametrize("host", ["lm", "deepspeed_flat"])
def test_an_evaluation_without_training(host, place):
    directory, blend = place
    options = ["--skip-train", "--ado-validation", *EVALUATIONS, "--num-workers", 1]
    run = train(host, directory / f"{host}_skip", ["--data-path", *blend], options, ranks=2, steps=STEPS)
    assert run.status == 0, tail(run)
    assert [row["type"] for row in reported(run)] == ["validation", "test"]
    for row, (step, loss) in zip(reported(run), printed(run), strict=True):
        assert row["step"] == step == 0 and mean(row) == pytest.approx(loss, abs=3e-6)
