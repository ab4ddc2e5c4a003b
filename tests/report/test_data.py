"""What follows from the arrays of a run: means, the n of the laws, thinning."""

import json

import numpy as np
import pytest

from ado_megatron.report import figures, table
from ado_megatron.report.data import token_mean
from ado_megatron.report.read import read_run
from tests.kit.runs import NAMES, make_run, steps_of, write_records


def test_the_last_loss_is_a_token_mean_of_the_last_twentieth(arms, run):
    tail = steps_of(arms[0][1])[-6:]  # 120 intervals
    for k in range(len(NAMES)):
        seen = [(r["loss_K"][k], r["tokens_K"][k]) for r in tail if r["loss_K"][k] is not None]
        expected = sum(loss * tokens for loss, tokens in seen) / sum(tokens for _, tokens in seen)
        assert run.last_loss_K()[k] == pytest.approx(expected, rel=1e-12)


def test_absent_domains_are_nan_and_fall_back_to_the_last_sight(tmp_path):
    make_run(tmp_path, prior=np.array([0.7, 0.3, 0.0]), names=["a", "b", "never"], steps=40, adaptive=False)
    path = tmp_path / "ado" / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in steps_of(records):
        record["counts_K"][2], record["tokens_K"][2], record["loss_K"][2] = 0, 0, None
    seen = steps_of(records)[3]["loss_K"][1]
    for record in steps_of(records)[4:]:
        record["tokens_K"][1], record["loss_K"][1] = 0, None
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    made = read_run(tmp_path)
    assert np.isnan(made.first_loss_K()[2]) and np.isnan(made.last_loss_K()[2])
    assert made.last_loss_K()[1] == seen
    assert dict(table.columns(made))["last"][2] == "–"
    assert "law ε + β·n^−α" not in dict(table.columns(made))  # nothing was fitted
    figures.overview(made, None)


def test_a_failed_refit_is_counted_and_changes_no_law(tmp_path):
    records = make_run(tmp_path, steps=300)
    before = read_run(tmp_path)
    records.append({"type": "fit", "step": 300, "applies_at_block": 310, "failed": "the process died", "seconds": 0.1,
                    "wait_seconds": 0.0})  # fmt: skip
    write_records(tmp_path, records)
    after = read_run(tmp_path)
    np.testing.assert_array_equal(after.laws().law_Kx3, before.laws().law_Kx3)
    assert len(after.fits) == len(before.fits) + 1


@pytest.mark.parametrize("own_n", [True, False])
def test_n_is_counted_as_the_run_counted_it(tmp_path, own_n):
    records = make_run(tmp_path, steps=50, config={"own_n": own_n})
    counts = np.cumsum([record["counts_K"] for record in steps_of(records)], axis=0)
    expected = counts if own_n else np.repeat(counts.sum(1, keepdims=True), len(NAMES), 1)
    np.testing.assert_array_equal(read_run(tmp_path).law_n_SxK, np.maximum(expected, 1))


@pytest.mark.parametrize("most", [1, 7, 119, 120, 500])
def test_thinning_keeps_every_sum_and_the_end(run, most):
    thin = run.thinned(most)
    assert len(thin.step_S) == min(most, len(run.step_S))
    np.testing.assert_array_equal(thin.counts_SxK.sum(0), run.counts_SxK.sum(0))
    np.testing.assert_array_equal(thin.weights_SxK[-1], run.weights_SxK[-1])
    everywhere = token_mean(run.loss_SxK, run.tokens_SxK)
    np.testing.assert_allclose(token_mean(thin.loss_SxK, thin.tokens_SxK), everywhere, rtol=1e-12)
