"""Every way in which a host takes its data, and runs that do not take a whole batch a step."""

import json
from pathlib import Path

import pytest

from ado_megatron.audit import audit
from ado_megatron.mixer.sidecar import read_sidecar
from tests.kit.host_runs import DOMAINS, QUICK_ADO, tail, train, write_domains

pytestmark = [pytest.mark.host, pytest.mark.timeout(300)]


def forms(directory):
    """Name → options, each the same four domains for training."""
    blend = write_domains(directory)
    (directory / "blend.txt").write_text(" ".join(blend))
    splits = {"train": blend, "valid": blend[:4], "test": blend[4:]}
    (directory / "splits.json").write_text(json.dumps(splits))
    documents = {prefix: DOMAINS[Path(prefix).name.split("_")[0]][1] for prefix in blend[1::2]}
    # a document is a sequence; of document boundaries there is one more
    sequences = {prefix: [number, number + 1] for prefix, number in documents.items()}
    (directory / "sequences.json").write_text(json.dumps(sequences))
    return {
        "data_path": ["--data-path", *blend],
        "no_weights": ["--data-path", *blend[1::2]],
        "train_data_path": [
            "--train-data-path", *blend, "--valid-data-path", *blend[:4], "--test-data-path", *blend[4:],
        ],
        "data_args_path": ["--data-args-path", directory / "blend.txt"],
        "sequences": ["--data-path", *blend, "--per-dataset-sequences-path", directory / "sequences.json"],
        "per_split": ["--per-split-data-args-path", directory / "splits.json"],
    }  # fmt: skip


CASES = [(host, form) for host in ("lm", "lm_main") for form in
         ("no_weights", "train_data_path", "data_args_path", "per_split", "sequences")]  # fmt: skip
CASES += [(host, "train_data_path") for host in ("deepspeed", "deepspeed_flat")]


@pytest.mark.parametrize(("host", "form"), CASES)
def test_data_in_the_form_that_the_host_reads(host, form, tmp_path):
    data = [str(option) for option in forms(tmp_path)[form]]
    run = train(host, tmp_path / "run", data, ["--num-workers", 1, *QUICK_ADO, "--ado-audit"], steps=6)
    assert run.status == 0, tail(run)
    assert "validation loss at iteration 6 on validation set" in run.log or "draw from validation set" in run.log
    head = run.metrics("run")[0]
    assert head["domains"] == ["wiki", "code", "news", "law"]
    lengths = head["lengths_C"]
    expected = [n / sum(lengths) for n in lengths] if form == "no_weights" else [0.4, 0.3, 0.2, 0.1]
    assert head["prior_K"] == pytest.approx(expected)
    verdict = audit(run.directory)
    assert verdict.failure is None and verdict.samples == 48


@pytest.mark.parametrize("host", ["lm", "lm_main"])
def test_iterations_to_skip_draw_and_are_not_measured(host, tmp_path):
    options = ["--num-workers", 1, *QUICK_ADO, "--ado-audit", "--iterations-to-skip", 3, 4]
    run = train(host, tmp_path / "run", forms(tmp_path)["data_path"], options, steps=8)
    assert run.status == 0, tail(run)
    verdict = audit(run.directory)
    assert verdict.failure is None and (verdict.samples, verdict.seen) == (64, 48)
    tokens = {row["step"]: sum(row["tokens_K"]) for row in run.metrics("step")}
    left_out = (4, 5) if host == "lm" else (3, 4)  # 0.16.1 counts iterations from 0, main from 1
    assert tokens == {step: 0 if step in left_out else 8 * 32 for step in range(1, 9)}


@pytest.mark.parametrize("host", ["lm", "lm_main", "deepspeed", "deepspeed_flat"])
def test_a_batch_ramp_keeps_blocks_of_the_final_batch(host, tmp_path):
    # main ignores the ramp and has a schedule instead, by tokens: 32 samples of 32
    ramp = ["--step-batch-size-schedule", "0:4 1K:8"] if host == "lm_main" else ["--rampup-batch-size", 4, 4, 32]
    options = [*ramp, "--train-samples", 96, "--num-workers", 1, *QUICK_ADO, "--ado-audit"]
    run = train(host, tmp_path / "run", forms(tmp_path)["data_path"], options, steps=None)
    assert run.status == 0, tail(run)
    rows = run.metrics("step")
    sidecars = list((run.directory / "ado").glob("state_*.ado"))
    assert sidecars and all(read_sidecar(path)[0]["block_size"] == 8 for path in sidecars)
    sizes = [sum(row["counts_K"]) for row in rows]
    assert set(sizes) == {4, 8} and sizes == sorted(sizes)
    verdict = audit(run.directory)
    assert verdict.failure is None and verdict.samples == verdict.seen == sum(sizes) == rows[-1]["consumed_samples"]
    printed = run.curve
    for step, loss in run.mixture_losses().items():
        if step != 2:
            assert loss == pytest.approx(float(printed[step][0]), abs=2e-6)
