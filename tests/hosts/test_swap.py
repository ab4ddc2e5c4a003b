"""Changing over in mid-run: between the host's own blend, ours and fixed weights, and refused where that cannot be."""

import json

import numpy as np
import pytest

from ado_megatron.audit import audit
from tests.kit.draws import draws
from tests.kit.host_runs import QUICK_ADO, tail, train, write_domains

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]

HOSTS = ["lm", "lm_main", "deepspeed", "deepspeed_flat"]
# ranks and options of the longest test: one process, DP2, and both halves of a pipeline
LAYOUTS = {
    "lm": (1, []), "lm_main": (2, []), "deepspeed": (2, ["--pipeline-model-parallel-size", 2]),
    "deepspeed_flat": (2, []),
}  # fmt: skip
LAW = 87  # about as many samples as law, the smallest domain, has in its train split


def blend_of(tmp_path, law=0.4) -> list[str]:
    """The tiny domains, the smallest of which gets the share `law` of the run."""
    prefixes = write_domains(tmp_path)[1::2]
    rest = [(1 - law) * share for share in (0.5, 0.3, 0.2)]
    pairs = zip((*rest, law), prefixes, strict=True)
    return ["--data-path", *(word for weight, prefix in pairs for word in (f"{weight:.6f}", prefix))]


def late_law(tmp_path) -> list[str]:
    """Weights from block 12 on that take law beyond the end of its epoch: 39 samples by stock, then six of eight."""
    path = tmp_path / "stages.json"
    path.write_text(json.dumps([{"block": 0, "weights": [0.1, 0.1, 0.05, 0.75]}]))
    return ["--ado-policy", "stages", "--ado-stages", path]


def assert_each_epoch_once(drawn, lengths_C):
    """Of each dataset, in the order of the run: no sample twice in an epoch, every sample in a whole one."""
    for dataset_id, length in enumerate(lengths_C):
        samples = [sample for _, c, sample in drawn if c == dataset_id]
        for at in range(0, len(samples), length):
            epoch = samples[at : at + length]
            assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(length))


@pytest.mark.parametrize("host", HOSTS)
def test_stock_then_adaptive_then_stock_draws_every_sample_once(host, tmp_path):
    """From a checkpoint of the stock blend, from shadow mode, and back to the stock blend with the exported weights."""
    ranks, layout = LAYOUTS[host]
    data, common = blend_of(tmp_path), ["--num-workers", 2, *QUICK_ADO, *layout]
    stock, shadow = tmp_path / "stock", tmp_path / "shadow"
    for save, mode in ((stock, ["--ado-off"]), (shadow, ["--ado-shadow", "--ado-audit"])):
        first = train(host, save, data, [*common, *mode, "--exit-interval", 12], ranks=ranks)
        assert first.status == 0, tail(first)
    assert not (stock / "ado").exists()

    # stock → ours: six of eight samples are law's, whose epoch so ends in the middle of our part
    options = [*common, "--ado-audit", "--load", stock, *late_law(tmp_path)]
    second = train(host, stock, data, [*options, "--exit-interval", 18], ranks=ranks)
    assert second.status == 0, tail(second)
    second = train(host, stock, data, options, ranks=ranks)
    assert second.status == 0, tail(second)
    verdict = audit(stock)
    assert verdict.failure is None and verdict.samples == 12 * 8 and verdict.attempts == 2
    lengths_C = second.metrics("run")[-1]["lengths_C"]
    by_stock, ours = draws(shadow), draws(stock)
    assert [i for i, _, _ in by_stock + ours] == list(range(24 * 8))
    assert_each_epoch_once(by_stock + ours, lengths_C)
    assert sum(c == 3 for _, c, _ in by_stock + ours) > lengths_C[3], "no epoch ended"

    # shadow → ours → stock
    exported = tmp_path / "exported.txt"
    second = train(
        host, shadow, data,
        [*common, "--ado-audit", "--load", shadow, "--exit-interval", 18, "--ado-export-static", exported],
        ranks=ranks,
    )  # fmt: skip
    assert second.status == 0, tail(second)
    assert "goes on from the checkpoint at 144 samples and" in second.log
    words = exported.read_text().split()
    assert sum(map(int, words[::2])) == 18 * 8 and words[1::2] == data[2::2]
    options = [*common, "--ado-shadow", "--ado-audit", "--load", shadow]
    third = train(host, shadow, ["--data-path", *words], options, ranks=ranks)
    assert third.status == 0 and max(third.curve) == 24, tail(third)
    verdict = audit(shadow)
    assert verdict.failure is None and verdict.samples == 24 * 8 and verdict.attempts == 3
    assert_each_epoch_once(draws(shadow), lengths_C)


@pytest.mark.parametrize("host", ["lm", "deepspeed_flat"])
def test_adaptive_then_static_then_adaptive_draws_every_sample_once(host, tmp_path):
    data = ["--data-path", *write_domains(tmp_path)]
    save = tmp_path / "run"
    options = ["--num-workers", 0, *QUICK_ADO, "--ado-audit", "--load", save]
    stages = [["--exit-interval", 12], ["--exit-interval", 16, "--ado-policy", "static"], []]
    for stage in stages:
        run = train(host, save, data, [*options, *stage])
        assert run.status == 0, tail(run)
    verdict = audit(save)
    assert verdict.failure is None and verdict.samples == 24 * 8 and verdict.attempts == 3
    rows = {row["step"]: row["weights_K"] for row in run.metrics("step")}
    assert rows[16] == pytest.approx([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize("host", HOSTS)
def test_a_domain_of_which_stock_laid_out_several_epochs_is_read_to_the_end_of_its_order(host, tmp_path):
    """Stock makes one order of two epochs of law; after a resume with other weights and a longer run it is the same."""
    data, common = blend_of(tmp_path, law=1.5 * LAW / (24 * 8)), ["--num-workers", 0, *QUICK_ADO, "--ado-audit"]
    save = tmp_path / "run"
    first = train(host, save, data, [*common, "--ado-shadow", "--exit-interval", 12])
    assert first.status == 0, tail(first)
    second = train(host, save, data, [*common, "--load", save, "--exit-interval", 16])
    assert second.status == 0, tail(second)
    equal = ["--data-path", *(word for prefix in data[2::2] for word in ("1", prefix))]
    options = [*common, "--load", save, *late_law(tmp_path)]
    third = train(host, save, equal, [*options, "--override-opt_param-scheduler"], steps=36)
    assert third.status == 0, tail(third)
    verdict = audit(save)
    assert verdict.failure is None and verdict.samples == 36 * 8 and verdict.attempts == 3
    law = third.metrics("run")[-1]["lengths_C"][3]
    samples = [sample for _, dataset_id, sample in draws(save) if dataset_id == 3]
    assert max(samples) > law, "stock laid out one epoch only"
    assert len(samples) > 2 * law + 1 and sorted(samples[: max(samples) + 1]) == list(range(max(samples) + 1))


@pytest.mark.parametrize("host", ["lm", "deepspeed_flat"])
def test_what_cannot_be_continued_is_refused_with_a_sentence(host, tmp_path):
    data = blend_of(tmp_path)
    save = tmp_path / "run"
    options = ["--num-workers", 0, "--load", save]
    first = train(host, save, data, [*options, "--exit-interval", 4, "--ado-off"])
    assert first.status == 0, tail(first)
    other = [*data[:1], "0.7", *data[2:]]
    refused = train(host, save, other, options)
    assert refused.status != 0 and "trained by the framework's own blend with data_path" in refused.log, tail(refused)
    again = train(host, save, data, [*options, "--ado-off", "--exit-interval", 6])
    assert again.status == 0 and max(again.curve) == 6, tail(again)


@pytest.mark.parametrize("host", ["lm", "deepspeed_flat"])
def test_stock_after_an_adaptive_run_is_told_what_it_repeats(host, tmp_path):
    data = blend_of(tmp_path)
    save = tmp_path / "run"
    options = ["--num-workers", 0, *QUICK_ADO, "--load", save]
    first = train(host, save, data, [*options, "--exit-interval", 8])
    assert first.status == 0, tail(first)
    for mode, sentence in (("--ado-off", "the stock blend reads samples"), ("--ado-shadow", "does not go on where")):
        stock = train(host, tmp_path / mode.strip("-"), data, [*options, "--exit-interval", 10, mode])
        assert stock.status == 0 and sentence in stock.log and max(stock.curve) == 10, tail(stock)
    np.testing.assert_equal((tmp_path / "ado-off" / "ado").exists(), False)
