"""benchmarks/quality_trained.py: the table by hand, the command lines of the arms, what is there is kept."""

import json
import math
import pathlib

import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def trained(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import quality_trained
    import quality_trained_table

    return quality_trained, quality_trained_table


def row(arm, seed, loss_K):
    loss_K = np.array(loss_K)
    return {"size": "0.2M", "corpus": "demo", "arm": arm, "seed": seed, "names_K": ["a", "b"],
            "loss_K": loss_K.tolist(), "natural_K": [0.75, 0.25], "wall": 1.0,
            "natural": float(loss_K @ [0.75, 0.25]), "uniform": float(loss_K.mean()),
            "drawn_K": [60, 40]}  # fmt: skip


def test_the_table_pairs_seeds_and_names_the_domain_that_paid(trained):
    _, table = trained
    rows = [row("static", 1, [3.0, 4.0]), row("static", 2, [3.2, 4.0]), row("ado", 1, [3.1, 3.8]),
            row("ado", 2, [3.2, 3.8]), row("ado", 3, [9.0, 9.0])]  # fmt: skip
    one = json.loads(table.table(rows, as_json=True))["0.2M demo"]["ado"]
    assert one["seeds"] == 2, "seed 3 has no prior to be paired with"
    assert one["gain_R"] == [pytest.approx(-0.025), pytest.approx(0.05)] and one["natural"] == pytest.approx(0.0125)
    assert one["natural_interval"] == pytest.approx(12.706 * 0.0375, rel=1e-3)  # t of one degree of freedom, s / √2
    assert one["uniform"] == pytest.approx((0.05 + 0.1) / 2)
    assert (one["worst_domain"], one["worst_domain_gap"]) == ("a", pytest.approx(0.05))
    text = table.table(rows)
    assert "standard deviation over seeds 0.106" in text and "ado" in text


def test_one_seed_has_no_interval(trained, tmp_path):
    _, table = trained
    rows = [row("static", 1, [3.0, 4.0]), row("ado", 1, [3.1, 3.8])]
    assert math.isnan(json.loads(table.table(rows, as_json=True))["0.2M demo"]["ado"]["natural_interval"])
    table.draw(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_command_lines_are_those_that_the_trainer_takes(trained, tmp_path):
    module, _ = trained
    from ado_megatron.trainer.options import parse

    data = tmp_path / "data"
    data.mkdir()
    domains = [{"name": "a", "tokens": 3}, {"name": "b", "tokens": 1}]
    (data / module.MANIFEST).write_text(json.dumps({"domains": domains}))
    (data / "tokenizer.model").touch()
    args = module.parser().parse_args(["--trained", "--out", str(tmp_path)])
    (tmp_path / "trained").mkdir()
    for size in (*module.CPU, *module.GPU):
        runs = module.Runs(args, size)
        runs.path("demo", "ado", 1).write_text(json.dumps(row("ado", 1, [3.0, 4.0])))
        for arm in (*module.ARMS, "ado mean"):
            options, config = parse([*runs.words("demo", data, arm, 1), "--run-dir", "x"])
            weights = options.data_path[0::2]
            assert weights == (("60.0", "40.0") if arm == "ado mean" else ("3", "1"))
            assert config.value("policy") == {"static": "static", "temperature 2": "static", "ado mean": "static"}.get(
                arm, "plan" if "plan" in arm else "ado")  # fmt: skip
            assert options.bf16 == (size in module.GPU)


def test_what_is_there_is_not_trained_again(trained, tmp_path, monkeypatch, capsys):
    module, _ = trained
    monkeypatch.setattr(module, "corpora", lambda args, size: dict.fromkeys(("demo", "debian"), tmp_path))
    monkeypatch.setattr(module, "train", None)
    (tmp_path / "trained").mkdir()
    for arm, loss_K in (("static", [3.0, 4.0]), ("ado", [3.1, 3.8])):
        (tmp_path / "trained" / f"0.2M.demo.{arm}.1.json").write_text(json.dumps(row(arm, 1, loss_K)))
    argv = ["--trained", "--out", str(tmp_path), "--corpora", "demo", "--seeds", "1", "--arms", "static;ado"]
    assert module.main(argv) == 0
    assert "0.2M demo" in capsys.readouterr().out
    assert module.main([*argv, "--seeds", "2", "--table"]) == 0
    assert "2 runs are left" in capsys.readouterr().err
