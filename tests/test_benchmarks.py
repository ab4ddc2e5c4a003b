"""Every benchmark runs at a tiny size and says what it is asked for; what it measures is not judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(name, *arguments, timeout=250):
    environment = os.environ | {"ADO_CPU": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, ROOT / "benchmarks" / name, *map(str, arguments)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_scale_marks_every_line(tmp_path):
    result = json.loads(run("scale.py", "--quick", "--json", "--out", tmp_path / "scale"))
    assert {line["how"] for line in result["lines"]} == {"measured", "extrapolated"}
    assert all(line["value"] >= 0 for line in result["lines"])
    assert {"K", "ranks", "T", "samples"} <= {line["size"] for line in result["lines"]}
    assert json.loads((tmp_path / "scale.json").read_text())["lines"] == result["lines"]
    assert (tmp_path / "scale.png").stat().st_size > 10_000


def test_a_simulated_world_agrees_and_ends_with_one_sentence():
    result = json.loads(run("scale_world.py", "--ranks", 24, "--steps", 22, "--domains", 10, "--json"))
    for world in result["runs"]:
        assert (world["ended"], world["digests"], world["reads_agree"]) == (0, 1, True)
        assert world["tokens_reduced"] == world["tokens_drawn"] > 0
        assert world["collectives_a_rank"] > 0 and world["steps_without_a_collective"] >= 18
        assert world["tables"] == world["ranks"] // 8
    option, row, log = result["faults"]
    assert [fault["ended"] for fault in (option, row, log)] == [24] * 3, "no rank is left behind"
    assert [len(fault["sentences"]) for fault in (option, row, log)] == [1, 1, 1]
    assert "rank 18 started with another --ado-min-share" in option["sentences"][0]
    assert "rank 18: the mixture differs from that of rank 0 from block" in row["sentences"][0]
    assert "rank 18: the disk is full" in log["sentences"][0] and len(log["after_steps"]) == 1


@pytest.mark.slow
def test_startup_times_both_arms_of_the_embedded_trainer():
    rows = json.loads(run("startup.py", "--prefixes", 3, "--frameworks", "embedded", "--json"))
    assert [(row["arm"], row["cache"]) for row in rows] == [
        (arm, cache) for arm in ("stock", "ours") for cache in ("cold", "warm", "other")
    ]
    for row in rows:
        assert 0 <= row["ours_wall_s"] < row["wall_s"] and row["open_files"] > 0
        assert (row["ours_cpu_s"] > 0) == (row["arm"] == "ours")


@pytest.mark.slow
def test_step_overhead_finds_the_refit():
    text = run("step_overhead.py", "--pairs", 3, "--warm-up", 1, "--layers", 1, "--hidden", 32, "--heads", 2,
               "--seq-length", 32, "--domains", 4)  # fmt: skip
    result = json.loads(text[text.index("{") :])
    hiccup = result["hiccup"]
    assert hiccup["snapshot_s"] > 0 and hiccup["publication_s"] > hiccup["waited_for_fit_s"]
    assert hiccup["longest_over_median"] >= 1 and result["refit_seconds"] > 0


@pytest.mark.slow
def test_refit_names_the_parts_of_a_snapshot_and_a_publication():
    (row,) = json.loads(run("refit.py", "--domains", 4, "--interval", 40, "--arms", "ado", "--json"))
    assert row["longest_cpu_ms"] > row["median_cpu_ms"] > 0
    assert row["snapshot"]["reduce"] > 0 and row["snapshot"]["start"] > 0
    assert row["publication"]["laws"] > 0 and row["publication"]["publish"] > 0
