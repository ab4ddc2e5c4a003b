"""A host's run that goes on with other data, or for longer or shorter, than before."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ado_megatron import cli
from ado_megatron.audit import audit
from ado_megatron.report.read import read_run
from tests.kit.draws import draws, samples_by_name
from tests.kit.host_runs import DOMAINS, QUICK_ADO, tail, train, write_domain, write_domains

pytestmark = [pytest.mark.host, pytest.mark.timeout(900)]
HOSTS = ["lm", "lm_main", "deepspeed", "deepspeed_flat"]
OPTIONS = ["--num-workers", 1, *QUICK_ADO, "--ado-audit"]


def changes(blend: dict, folder: Path):
    """One kind of change after the other is made to the blend, name → (weight, prefix)."""
    rng = np.random.default_rng(7)
    blend["more"] = "0.2", write_domain(folder, "more", 2, 60, rng)
    yield "added"
    del blend["news"]
    yield "removed"
    blend["law"] = "0.1", write_domain(folder / "second", "law", 3, 60, rng)
    yield "grown"
    old, new = Path(blend["wiki"][1]), folder / "disk" / Path(blend["wiki"][1]).name
    new.parent.mkdir()
    for suffix in (".bin", ".idx"):
        shutil.move(f"{old}{suffix}", f"{new}{suffix}")
    blend["wiki"] = blend["wiki"][0], str(new)
    yield "moved"


@pytest.mark.parametrize("host", HOSTS)
def test_each_change_of_the_data_needs_its_word_and_what_stays_keeps_its_position(host, tmp_path, capsys):
    words, save = write_domains(tmp_path), tmp_path / "run"
    blend = dict(zip(DOMAINS, zip(words[::2], words[1::2], strict=True), strict=True))

    def go(*more):
        data = ["--data-path", *(word for pair in blend.values() for word in pair)]
        return train(host, save, data, [*OPTIONS, "--exit-interval", 4, *more], ranks=2, steps=40)

    first = go()
    assert first.status == 0, tail(first)
    names = [list(blend)]
    for kind in changes(blend, tmp_path):
        refused = go("--load", save)
        sentence = f"--ado-accept-data {kind} accepts this change of the data and no other"
        assert refused.status != 0 and sentence in refused.log, tail(refused)
        run = go("--load", save, "--ado-accept-data", kind)
        assert run.status == 0 and max(run.curve) == 4 + 4 * len(names), tail(run)
        forecasts = re.findall(r"under the present weights, (\w+): \S+ epochs at the end of the run", run.log)
        assert forecasts == list(blend)
        names.append(list(blend))
    verdict = audit(save)
    assert verdict.failure is None and (verdict.repeated, verdict.skipped) == (0, 0) and verdict.attempts == 5
    drawn = samples_by_name(save, names)

    def samples(name, attempts):
        return [sample for n in attempts for sample in drawn[n].get(name, [])]

    # a host's first epoch is read in the order of its own dataset
    for name, attempts in (("wiki", range(5)), ("code", range(5)), ("news", range(5)), ("more", range(5)),
                           ("law", range(3)), ("law", range(3, 5))):  # fmt: skip
        assert sorted(samples(name, attempts)) == list(range(len(samples(name, attempts)))), name
        assert samples(name, attempts), name
    assert all(drawn[n]["wiki"] and drawn[n]["code"] for n in range(5))
    report = read_run(save)  # from the first step on, of the domains of now
    assert report.names_K == list(blend) and report.step_S.tolist() == list(range(1, 21))
    assert np.isfinite(report.loss_SxK[0]).tolist() == [name in ("wiki", "code") for name in blend]
    assert cli.main(["watch", str(save), "--once"]) == 0 and cli.main(["whatif", str(save), "--set", "wiki=.5"]) == 0
    assert "damaged" not in capsys.readouterr().out


@pytest.mark.parametrize("host", HOSTS)
def test_longer_or_shorter_keeps_every_sample_of_the_common_part(host, tmp_path):
    data, options = ["--data-path", *write_domains(tmp_path)], [*OPTIONS, "--override-opt_param-scheduler"]
    whole = train(host, tmp_path / "whole", data, options, ranks=2, steps=24)
    assert whole.status == 0, tail(whole)
    first = train(host, tmp_path / "longer", data, [*options, "--exit-interval", 10], ranks=2, steps=16)
    assert first.status == 0 and max(first.curve) == 10, tail(first)
    shutil.copytree(tmp_path / "longer", tmp_path / "shorter")
    for name, steps in (("longer", 24), ("shorter", 13)):
        save = tmp_path / name
        run = train(host, save, data, [*options, "--load", save], ranks=2, steps=steps)
        assert run.status == 0 and max(run.curve) == steps, tail(run)
        assert draws(save) == draws(tmp_path / "whole")[: 8 * steps]
        assert audit(save).failure is None
