"""BoardFeed: the newest values under the names of the table, once."""

import json

import numpy as np
import pytest

from ado_megatron.measure.board_names import TABLE
from ado_megatron.report.ahead import loss_at_end_K, supply_at_end
from ado_megatron.report.board_feed import BoardFeed
from ado_megatron.report.read import read_run
from tests.kit.runs import NAMES, make_run, write_records


@pytest.fixture
def run(tmp_path):
    """(run directory, its records, with a target and an event of each kind)."""
    records = make_run(tmp_path, steps=300, planned=600)
    records[0]["target_K"] = [0.5, 0.5, 0, 0, 0, 0, 0, 0]
    records.append({"type": "alarm", "step": 300, "alarm": "worse", "domain": "cpp", "text": "cpp: worse"})
    records.append({"type": "change", "step": 300, "id": 1, "block": 310, "what": {"hold": True}, "before": {},
                    "who": "ann@node3", "when": "2026-11-24"})  # fmt: skip
    return tmp_path, records


def test_values_are_those_of_the_run_and_their_names_those_of_the_table(run):
    folder, records = run
    write_records(folder, records)
    scalars, made = BoardFeed(folder / "ado").look(), read_run(folder)
    assert scalars["ado/tokens/cpp"] == made.tokens_SxK[:, 1].sum()
    assert scalars["ado/epochs/cpp"] == pytest.approx(made.supply.drawn_K[1] / made.supply.length_K[1])
    assert scalars["ado/forecast/cpp"] == pytest.approx(loss_at_end_K(made, supply_at_end(made))[1])
    assert scalars["ado/target_loss"] == pytest.approx(made.last_loss_K()[:2].mean(), rel=0.02)
    at_end_K = loss_at_end_K(made, supply_at_end(made))
    assert scalars["ado/target_forecast"] == pytest.approx(at_end_K[:2].mean())  # τ is a half each
    assert scalars["ado/alarms"] == 1 and scalars["ado/changes"] == 1
    plain = {name.replace(domain, "DOMAIN") for name in scalars for domain in NAMES if name.endswith(f"/{domain}")}
    plain |= {name for name in scalars if name.count("/") == 1}
    fed = {row.name for row in TABLE if not row.name.startswith(("train/", "ado/weight", "ado/validation", "ado/test"))}
    assert plain == fed


def test_a_loss_is_the_mean_since_the_last_look_and_nothing_is_told_twice(run):
    folder, records = run
    cut = len(records) // 2
    write_records(folder, records[:cut])
    feed = BoardFeed(folder / "ado")
    assert feed.look() and feed.look() == {}
    with open(folder / "ado" / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"type": "progress", "step": records[cut - 1]["step"], "loss": 2.0}) + "\n")
    assert feed.look() == {}  # what comes at every step brings nothing new
    with open(folder / "ado" / "metrics.jsonl", "a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records[cut:]))
    late = [record for record in records[cut:] if record["type"] == "step"]
    weights = np.array([record["tokens_K"][1] for record in late])
    losses = np.array([record["loss_K"][1] for record in late])
    assert feed.look()["ado/loss/cpp"] == pytest.approx(np.average(losses, weights=weights))


def test_what_cannot_be_read_is_said_once_and_stops_nothing(tmp_path, caplog):
    assert BoardFeed(tmp_path / "nowhere").look() == {}  # another machine's disk
    (tmp_path / "metrics.jsonl").write_text("{oops\n")
    feed = BoardFeed(tmp_path)
    assert feed.look() == {} and feed.look() == {}
    assert caplog.text.count("what boards show of metrics.jsonl cannot be written") == 1
