"""Megatron-Bridge's own ways: blends in its configuration, options in the environment, refusals, from stock to ours.

What it has in common with the other hosts is in the files of these, under the name `bridge`.
"""

import re

import numpy as np
import pytest

from ado_megatron.audit import audit
from tests.hosts.test_swap import assert_each_epoch_once, draws
from tests.kit.board_files import mlflow_curves, mlflow_files, tensorboard_curves
from tests.kit.host_runs import QUICK_ADO, tail, train, write_domains

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]


@pytest.mark.parametrize("form", ["blend", "blend_per_split", "recipe"])
def test_a_blend_of_the_configuration_with_options_in_the_environment(form, tmp_path, monkeypatch):
    blend = write_domains(tmp_path)
    data = ["--blend", *blend, "--split", "90,5,5"]
    if form == "recipe":
        data = ["--data-path", *blend, "--recipe"]
    if form == "blend_per_split":
        data = ["--train-data-path", *blend, "--valid-data-path", *blend[:4]]
    monkeypatch.setenv("ADO_OPTIONS", " ".join([*QUICK_ADO, "--ado-audit", "--ado-validation"]))
    run = train("bridge", tmp_path / "run", data, ["--num-workers", 1, "--iterations-to-skip", 3], steps=6)
    assert run.status == 0, tail(run)
    head = run.metrics("run")[0]
    assert head["domains"] == ["wiki", "code", "news", "law"] and head["prior_K"] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    verdict = audit(run.directory)
    assert verdict.failure is None and (verdict.samples, verdict.seen) == (48, 40)
    tokens = {row["step"]: sum(row["tokens_K"]) for row in run.metrics("step")}
    assert tokens == {step: 0 if step == 3 else 8 * 32 for step in range(1, 7)}
    (row,) = run.metrics("validation")
    mean = sum((loss or 0) * n for loss, n in zip(row["loss_K"], row["tokens_K"], strict=True)) / sum(row["tokens_K"])
    printed = re.search(r"validation loss at iteration 6 on validation set \| lm loss value: (\S+)", run.log)[1]
    assert mean == pytest.approx(float(printed), abs=2e-6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--dataloader-type", "cyclic"], "dataset.dataloader_type cyclic does not draw sample indices in order"),
        ([], "the train data is a single prefix, so there is nothing to mix"),
    ],
)
def test_what_cannot_be_served_ends_with_one_sentence(change, sentence, tmp_path):
    blend = write_domains(tmp_path)
    data = ["--data-path", *(blend if change else blend[1:2])]
    run = train("bridge", tmp_path / "run", data, ["--num-workers", 0, *change], ranks=2, steps=4)
    assert run.status != 0 and not run.curve
    assert run.log.count(f"error: {sentence}") == 1, tail(run)
    assert f"UserError: {sentence}" not in run.log and "exitcode  : 2" in run.log


def test_ours_goes_on_from_a_checkpoint_of_the_stock_blend_and_of_shadow_mode(tmp_path):
    data, common = ["--data-path", *write_domains(tmp_path)], ["--num-workers", 2, *QUICK_ADO]
    stock, shadow = tmp_path / "stock", tmp_path / "shadow"
    for save, mode in ((stock, ["--ado-off"]), (shadow, ["--ado-shadow", "--ado-audit"])):
        first = train("bridge", save, data, [*common, *mode, "--exit-interval", 6], steps=12)
        assert first.status == 0, tail(first)
    assert not (stock / "ado").exists()
    by_stock = draws(shadow)
    for save in (stock, shadow):
        second = train("bridge", save, data, [*common, "--ado-audit", "--load", save], steps=12)
        assert second.status == 0, tail(second)
        assert audit(save).failure is None
        drawn = by_stock + draws(save, first=6)
        assert [i for i, _, _ in drawn] == list(range(12 * 8))
        assert_each_epoch_once(drawn, second.metrics("run")[-1]["lengths_C"])


def test_its_mlflow_gets_what_its_tensorboard_gets(tmp_path, monkeypatch):
    """The package must be importable from both interpreters: that of the tests and MEGATRON_BRIDGE_PYTHON."""
    mlflow_files(monkeypatch, tmp_path / "store")
    options = ["--num-workers", 0, *QUICK_ADO, "--ado-validation", "--eval-interval", 3]
    options += ["--mlflow-experiment", "mixtures", "--tensorboard-dir", tmp_path / "tensorboard"]
    run = train("bridge", tmp_path / "run", ["--data-path", *write_domains(tmp_path)], options, steps=6)
    assert run.status == 0, tail(run)
    curves = mlflow_curves(tmp_path / "store", "mixtures")[1]
    shown = tensorboard_curves(tmp_path / "tensorboard")
    ours = {name: curve for name, curve in curves.items() if name.startswith("ado/")}
    assert ours == {name: pytest.approx(np.array(curve)) for name, curve in shown.items() if name.startswith("ado/")}
    weights = [row["weights_K"][0] for row in run.metrics("step")]
    assert ours["ado/weight/wiki"] == [(step, pytest.approx(weights[step - 1])) for step in range(1, 7)]
    assert [step for step, _ in ours["ado/validation/wiki"]] == [3, 6]
