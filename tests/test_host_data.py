"""Every way in which a host takes its data."""

import json

import pytest
from host_runs import QUICK_ADO, tail, train, write_domains

from ado_megatron.audit import audit

pytestmark = [pytest.mark.host, pytest.mark.timeout(300)]


def forms(directory):
    """Name → options, each the same four domains for training."""
    blend = write_domains(directory)
    (directory / "blend.txt").write_text(" ".join(blend))
    splits = {"train": blend, "valid": blend[:4], "test": blend[4:]}
    (directory / "splits.json").write_text(json.dumps(splits))
    return {
        "data_path": ["--data-path", *blend],
        "no_weights": ["--data-path", *blend[1::2]],
        "train_data_path": [
            "--train-data-path", *blend, "--valid-data-path", *blend[:4], "--test-data-path", *blend[4:],
        ],
        "data_args_path": ["--data-args-path", directory / "blend.txt"],
        "per_split": ["--per-split-data-args-path", directory / "splits.json"],
    }  # fmt: skip


CASES = [(host, form) for host in ("lm", "lm_main") for form in
         ("no_weights", "train_data_path", "data_args_path", "per_split")]  # fmt: skip
CASES += [("deepspeed_flat", "train_data_path")]


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
    assert verdict.difference is None and verdict.samples == 48
