"""A run of `pretrain` under the deepspeed launcher that goes on with other data, or for another number of steps."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from ado_megatron import cli
from ado_megatron.audit import audit
from ado_megatron.report.read import read_run
from tests.kit.draws import draws, samples_by_name
from tests.kit.training import VOCAB, metrics, write_data, write_prefix
from tests.trainer.test_launch import start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
RUN = ["--num-processes", "2", "--ado-audit", "--num-workers", "1", "--no-progress", "--lr-decay", "constant"]


def go(run: Path, data: Path, *more: str) -> tuple[int, str]:
    """(exit code, what it said) of one process of a run."""
    process = start(run, data, *RUN, *more)
    output, errors = process.communicate(timeout=240)
    return process.returncode, output + errors


def write_blends(data: Path, weights: dict[str, float]) -> None:
    for split, file in (("", "blend.txt"), ("valid_", "valid_blend.txt")):
        words = [f"{weight} {name}_{split}text_document" for name, weight in weights.items()]
        (data / file).write_text(" ".join(words) + "\n")


def write_domain(data: Path, name: str, documents: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for split, count in (("", documents), ("valid_", 8)):
        write_prefix(data / f"{name}_{split}text_document", list(rng.integers(0, VOCAB, (count, 90))))


def changes(data: Path, weights: dict[str, float]):
    """One kind of change after the other is made; where the data lie then."""
    write_domain(data, "domain3", 30, 3)
    weights["domain3"] = 0.4
    write_blends(data, weights)
    yield "added", data
    del weights["domain1"]
    write_blends(data, weights)
    yield "removed", data
    write_domain(data, "domain2", 90, 2)  # in its place
    yield "grown", data
    data.rename(data.parent / "disk")
    yield "moved", data.parent / "disk"


def test_each_change_of_the_data_needs_its_word_and_what_stays_keeps_its_position(tmp_path, capsys):
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    weights = {"domain0": 0.6, "domain1": 0.3, "domain2": 0.1}
    stop = ["--steps", "40", "--exit-interval", "4"]
    code, said = go(run, data, *stop)
    assert code == 0, said
    names = [list(weights)]
    for kind, place in changes(data, weights):
        code, said = go(run, place, "--resume", *stop)
        sentence = f"--ado-accept-data {kind} accepts this change of the data and no other"
        assert code == 2 and said.count(sentence) == 1, said
        code, said = go(run, place, "--resume", "--ado-accept-data", kind, *stop)
        assert code == 0 and f"resumed after step {4 * len(names)}" in said, said
        assert all(f"under the present weights, {name}: " in said for name in weights)
        names.append(list(weights))
    assert max(record["step"] for record in metrics(run, "step")) == 20
    verdict = audit(run)
    assert verdict.failure is None and (verdict.repeated, verdict.skipped) == (0, 0) and verdict.attempts == 5
    drawn = samples_by_name(run, names)
    for name, attempts in (("domain0", range(5)), ("domain1", range(2)), ("domain2", range(3)),
                           ("domain2", range(3, 5)), ("domain3", range(1, 5))):  # fmt: skip
        samples = [sample for n in attempts for sample in drawn[n][name]]
        assert samples and len(set(samples)) == len(samples), name  # all in one epoch, each once
        for n in attempts:  # each attempt begins where the one before ended, or at the first sample
            begins = header(run, n)["start_C"][names[n].index(name)]
            assert begins == sum(len(drawn[m][name]) for m in attempts if m < n), (name, n)

    report = read_run(run)  # from the first step on, of the domains of now
    assert report.names_K == list(weights) and report.step_S.tolist() == [4, 8, 10, 12, 16, 20]
    assert np.isfinite(report.loss_SxK[0]).tolist() == [True, False, False]
    assert cli.main(["watch", str(run), "--once"]) == 0 and cli.main(["whatif", str(run), "--set", "domain0=.5"]) == 0
    assert "damaged" not in capsys.readouterr().out


def header(run: Path, attempt: int) -> dict:
    from ado_megatron.measure.draw_file import DrawFile

    headers = [DrawFile.open(path).header for path in sorted((run / "ado" / "audit").glob("*.draws"))]
    numbers = sorted({one["attempt"] for one in headers})
    return next(one for one in headers if one["attempt"] == numbers[attempt])


def test_longer_or_shorter_keeps_every_sample_of_the_common_part(tmp_path):
    data = write_data(tmp_path / "data")
    assert go(tmp_path / "whole", data, "--steps", "16")[0] == 0
    assert go(tmp_path / "longer", data, "--steps", "12", "--exit-interval", "7")[0] == 0
    shutil.copytree(tmp_path / "longer", tmp_path / "shorter")
    for name, steps in (("longer", 16), ("shorter", 9)):
        code, said = go(tmp_path / name, data, "--resume", "--steps", str(steps))
        assert code == 0, said
        assert draws(tmp_path / name) == draws(tmp_path / "whole")[: 8 * steps]
        assert audit(tmp_path / name).failure is None
