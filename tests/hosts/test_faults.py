"""A run told to end, or resumed with what is not its own: the checkpoint is whole, or a sentence says why not."""

import re
import shutil
import signal

import pytest

from ado_megatron.audit import audit
from ado_megatron.hosts.takeover import sidecar_path
from tests.kit.host_runs import QUICK_ADO, signal_a_rank, tail, train, write_domains

pytestmark = [pytest.mark.host, pytest.mark.timeout(600)]
STEPS = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("host")
    return directory, ["--data-path", *write_domains(directory)]


@pytest.mark.parametrize("host", ["lm", "lm_main"])
def test_a_termination_signal_saves_with_our_state_and_the_run_goes_on(host, place):
    """Megatron-LM's --exit-signal-handler: the signal reaches rank 1 alone, all ranks end after the same step."""
    directory, data = place
    save = directory / f"{host}_terminated"
    options = ["--exit-signal-handler", "--num-workers", 2, *QUICK_ADO, "--ado-audit"]
    first = train(host, save, data, options, ranks=2, steps=STEPS, during=signal_a_rank(signal.SIGTERM, 1, step=8))
    assert first.status == 0 and "exiting program after receiving SIGTERM" in first.log, tail(first)
    iteration = int((save / "latest_checkpointed_iteration.txt").read_text())
    assert 8 <= iteration < STEPS and max(first.curve) == iteration
    assert [path.name for path in (save / "ado").glob("state_*")] == [f"state_{iteration}.ado"]

    second = train(host, save, data, [*options, "--load", save], ranks=2, steps=STEPS)
    assert second.status == 0 and min(second.curve) == iteration + 1 and max(second.curve) == STEPS, tail(second)
    verdict = audit(save)
    assert verdict.failure is None and verdict.samples == STEPS * 8 and verdict.attempts == 2


@pytest.mark.parametrize("host", ["lm", "deepspeed", "deepspeed_flat"])
def test_a_sidecar_of_another_run_is_refused_in_one_sentence_by_all_ranks(host, place):
    directory, data = place
    mine, other = directory / f"{host}_mine", directory / f"{host}_other"
    options = ["--num-workers", 0, *QUICK_ADO, "--ado-audit"]
    for save in (mine, other):
        run = train(host, save, data, [*options, "--exit-interval", 6], ranks=2, steps=12)
        assert run.status == 0, tail(run)
    kept = shutil.copy(sidecar_path(mine, 6), directory / f"{host}.ado")
    shutil.copy(sidecar_path(other, 6), sidecar_path(mine, 6))
    refused = train(host, mine, data, [*options, "--load", mine], ranks=2, steps=12)
    assert refused.status not in (0, None) and not refused.curve, tail(refused)
    sentence = "state_6.ado was not written with this checkpoint"
    assert refused.log.count(sentence) == 1 and "ado: ado:" not in refused.log, tail(refused)
    assert re.search(r"exitcode\s*: 2|exits with return code = 2", refused.log), "as launchers tell it"
    shutil.copy(kept, sidecar_path(mine, 6))
    resumed = train(host, mine, data, [*options, "--load", mine], ranks=2, steps=12)
    assert resumed.status == 0 and max(resumed.curve) == 12, tail(resumed)
    verdict = audit(mine)
    assert verdict.failure is None and verdict.samples == 12 * 8
