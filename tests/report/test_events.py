"""What happened to a run, in words."""

from ado_megatron.report.events import events
from ado_megatron.report.payload import MOST_EVENTS, told
from ado_megatron.report.read import read_run
from tests.kit.runs import make_run, write_records

CHANGE = {"type": "change", "step": 5, "id": 1, "block": 9, "who": "ann", "when": "", "what": {"hold": True},
          "before": {"hold": False}}  # fmt: skip


def test_alarms_changes_fits_gaps_and_validations_in_order(tmp_path):
    records = make_run(tmp_path, steps=300)
    records.insert(3, CHANGE)
    records.insert(5, {"type": "alarm", "step": 10, "alarm": "runs_out", "domain": "cpp", "text": "cpp runs out"})
    records.insert(9, {"type": "gap", "step": 20, "from_step": 10, "records": 2})
    fits = [record for record in records if record["type"] == "fit"]
    for fit in fits:
        fit |= {"ok_K": [True] * 8, "reason_K": [""] * 8}
    fits[0] |= {"ok_K": [True] * 7 + [False], "reason_K": [""] * 7 + ["too few points"]}
    fits[1]["failed"] = "out of memory"
    write_records(tmp_path, records)
    run = read_run(tmp_path)
    assert [(event.step, event.kind) for event in told(run)] == [
        (5, "change"), (10, "alarm"), (20, "gap"), (150, "partial fit"), (200, "failed fit"), (250, "fit"),
        (300, "fit"),
    ]  # fmt: skip
    texts = [event.text for event in events(run)]
    assert "laws of 7 of 8 domains fitted in 0.1 s; not of licences (too few points)" in texts
    assert "the old laws stay: out of memory" in texts and any(text.startswith("mean loss") for text in texts)


def test_changes_are_never_left_out(tmp_path):
    records = make_run(tmp_path, steps=20)
    gap = {"type": "gap", "step": 10, "from_step": 5, "records": 1}
    write_records(tmp_path, [*records[:2], CHANGE, *[gap] * (MOST_EVENTS + 9), *records[4:]])
    found = told(read_run(tmp_path))
    assert len(found) == MOST_EVENTS + 1 and found[0].kind == "change"
