"""Changing over in mid-run: to fixed weights and back with nothing repeated, refused where that cannot be."""

import pytest
from host_runs import QUICK_ADO, tail, train, write_domains

from ado_megatron.audit import audit

pytestmark = [pytest.mark.host, pytest.mark.timeout(600)]


@pytest.mark.parametrize("host", ["lm", "deepspeed_flat"])
def test_adaptive_then_static_then_adaptive_draws_every_sample_once(host, tmp_path):
    data = ["--data-path", *write_domains(tmp_path)]
    save = tmp_path / "run"
    options = ["--num-workers", 0, *QUICK_ADO, "--ado-audit", "--load", save]
    exported = tmp_path / "blend.txt"
    stages = [
        ["--exit-interval", 12, "--ado-export-static", exported],
        ["--exit-interval", 16, "--ado-policy", "static"],
        [],
    ]
    for stage in stages:
        run = train(host, save, data, [*options, *stage])
        assert run.status == 0, tail(run)
    verdict = audit(save)
    assert verdict.difference is None and verdict.samples == 24 * 8 and verdict.attempts == 3
    weights = exported.read_text().split()
    assert weights[1::2] == data[2::2] and sum(map(float, weights[::2])) == pytest.approx(1, abs=1e-6)
    rows = {row["step"]: row["weights_K"] for row in run.metrics("step")}
    assert rows[16] == pytest.approx([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize("host", ["lm", "deepspeed_flat"])
def test_a_checkpoint_of_which_the_draws_are_not_known_is_refused(host, tmp_path):
    data = ["--data-path", *write_domains(tmp_path)]
    sentences = {"--ado-off": "was not trained with ado_megatron", "--ado-shadow": "written in shadow mode"}
    for mode, sentence in sentences.items():
        save = tmp_path / mode.strip("-")
        options = ["--num-workers", 0, "--load", save]
        first = train(host, save, data, [*options, "--exit-interval", 4, mode], steps=8)
        assert first.status == 0, tail(first)
        refused = train(host, save, data, options, steps=8)
        assert refused.status != 0 and sentence in refused.log, tail(refused)
        again = train(host, save, data, [*options, mode], steps=8)
        assert again.status == 0 and max(again.curve) == 8, tail(again)
