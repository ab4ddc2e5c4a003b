"""The trainer in real gloo ranks: every layout computes what one process computes, on the same samples."""

import numpy as np
import pytest

from tests.kit.ranks import run_ranks
from tests.kit.training import metrics, train_rank, write_data

# Refits within the run, so that the weights the later steps draw by come from the measured losses.
# No bound on changes: a weight at its bound goes one way or the other by the last digit of a loss of bfloat16.
ADO = dict(refit_interval=4, start_step=3, ignore_steps=0, fit_lag=0, smoothing="none", stride=1, gate_points=1,
           max_change=1.0)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    import ado_megatron.trainer.loop  # noqa: F401  once, here: the ranks are forked

    return str(write_data(tmp_path_factory.mktemp("trainer") / "data"))


@pytest.fixture(scope="module")
def one_process(data, tmp_path_factory):
    run = str(tmp_path_factory.mktemp("one") / "run")
    return run_ranks(train_rank, 1, run, data, {}, ADO)[0] | {"run": run}


def stream(results: list[dict], stage: int) -> dict[int, tuple[int, int, int]]:
    """(step, key, sample) by global sample index, of a pipeline stage."""
    rows = [row for result in results if result["place"][0] == stage for row in result["drawn"]]
    return {row[1] >> 15: row for row in rows}


def floats(values: list) -> np.ndarray:
    """null is nan: a domain without samples in the step."""
    return np.array(values, dtype=np.float64)


def mean_loss(record: dict) -> float:
    """Σ domains of loss sums over Σ tokens."""
    return float(np.nansum(floats(record["loss_K"]) * record["tokens_K"]) / np.sum(record["tokens_K"]))


def check_against(one: dict, results: list[dict], run: str, stages: int) -> None:
    for result in results:
        np.testing.assert_allclose(result["losses"], one["losses"], rtol=0, atol=1e-4)
        if not np.isnan(result["grad_norms"]).all():  # ZeRO 0 keeps none
            np.testing.assert_allclose(result["grad_norms"], one["grad_norms"], rtol=1e-4)
    for stage in {0, stages - 1}:
        assert stream(results, stage) == stream([one], 0)
    ours, theirs = metrics(run, "step"), metrics(one["run"], "step")
    assert [step["counts_K"] for step in ours] == [step["counts_K"] for step in theirs]
    for mine, reference, loss in zip(ours, theirs, one["losses"], strict=True):
        np.testing.assert_allclose(floats(mine["loss_K"]), floats(reference["loss_K"]), rtol=1e-4)
        assert mean_loss(mine) == pytest.approx(loss, abs=1e-4)


def test_the_reference_learns_and_moves_its_weights(one_process):
    weights = [step["weights_K"] for step in metrics(one_process["run"], "step")]
    assert one_process["losses"][-1] < one_process["losses"][0] - 0.05
    assert weights[0] == pytest.approx([0.6, 0.3, 0.1]) and np.abs(np.subtract(weights[-1], weights[0])).max() > 1e-3


LAYOUTS = [
    ("dp2", 2, {}), ("tp2", 2, dict(tp=2)), ("pp2", 2, dict(pp=2)),
    pytest.param("tp2pp2", 4, dict(tp=2, pp=2), marks=pytest.mark.slow),
    pytest.param("dp2pp2", 4, dict(pp=2), marks=pytest.mark.slow),
    pytest.param("dp2tp2", 4, dict(tp=2), marks=pytest.mark.slow),
    pytest.param("dp2 zero0", 2, dict(zero=0), marks=pytest.mark.slow),
    pytest.param("dp2tp2pp2", 8, dict(tp=2, pp=2), marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize("name, ranks, layout", LAYOUTS)
def test_a_layout_equals_one_process(name, ranks, layout, one_process, data, tmp_path):
    run = str(tmp_path / "run")
    check_against(one_process, run_ranks(train_rank, ranks, run, data, layout, ADO), run, layout.get("pp", 1))


def test_workers_micro_batches_and_recomputed_activations_change_nothing(one_process, data, tmp_path):
    run = str(tmp_path / "run")
    changes = dict(num_workers=2, micro_batch=1, recompute=True, pp=2)
    check_against(one_process, run_ranks(train_rank, 2, run, data, changes, ADO), run, 2)


def test_validation_is_measured_by_domain_and_not_counted_as_training(one_process, data, tmp_path):
    losses = {}
    for name, ranks, layout in (("one", 1, {}), ("dp2", 2, {})):
        run = str(tmp_path / name)
        changes = dict(eval_interval=4, eval_samples=5) | layout  # 15 samples: padded in both layouts
        results = run_ranks(train_rank, ranks, run, data, changes, ADO)
        check_against(one_process, results, run, 1)
        losses[name] = [record["loss_K"] for record in metrics(run, "validation")]
        assert [record["step"] for record in metrics(run, "validation")] == [4, 8]
    np.testing.assert_allclose(floats(losses["one"]), floats(losses["dp2"]), rtol=1e-4)
    assert np.ptp(losses["one"][-1]) > 0.01 and np.mean(losses["one"][1]) < np.mean(losses["one"][0]) - 0.02


def test_a_batch_ramp_draws_consecutive_samples_and_keeps_the_sum(data, tmp_path):
    run = str(tmp_path / "run")
    ramp = dict(rampup_batch_size=(4, 2, 16), micro_batch=1)
    results = run_ranks(train_rank, 2, run, data, ramp, ADO | dict(fit_lag=1))
    drawn = stream(results, 0)
    sizes = [sum(row[0] == step for row in drawn.values()) for step in range(8)]
    assert sizes == [4, 4, 6, 6, 8, 8, 8, 8] and sorted(drawn) == list(range(52))
    for record, loss, size in zip(metrics(run, "step"), results[0]["losses"], sizes, strict=True):
        assert sum(record["counts_K"]) == size
        assert mean_loss(record) == pytest.approx(loss, abs=1e-4)


def test_bfloat16_trains_in_a_pipeline(one_process, data, tmp_path):
    results = run_ranks(train_rank, 2, str(tmp_path / "run"), data, dict(bf16=True, pp=2), ADO)
    np.testing.assert_allclose(results[0]["losses"], one_process["losses"], atol=0.02)


def test_dropout_is_used_in_training_only_and_is_the_same_twice(one_process, data, tmp_path):
    runs = [run_ranks(train_rank, 1, str(tmp_path / name), data, dict(dropout=0.2), ADO)[0]["losses"] for name in "ab"]
    assert runs[0] == runs[1] and np.abs(np.subtract(runs[0], one_process["losses"])).max() > 1e-3


def test_the_static_arm_keeps_its_weights(data, tmp_path):
    run = str(tmp_path / "run")
    run_ranks(train_rank, 1, run, data, {}, ADO | dict(policy="static"))
    assert all(step["weights_K"] == pytest.approx([0.6, 0.3, 0.1]) for step in metrics(run, "step"))
