"""The one reader of metrics.jsonl: what it accepts, and that each kind of damage is named with file and line."""

import json
import os

import numpy as np
import pytest

from ado_megatron.errors import UserError
from ado_megatron.measure.metrics import encoded, read_metrics, readable_records
from ado_megatron.measure.record import Record

HEADER = '{"type": "run", "version": 1}\n'
STEP = '{"type": "step", "step": 3, "loss_K": [1.5, null]}\n'


def written(tmp_path, text):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_records_come_in_order_and_know_their_line(tmp_path):
    records = read_metrics(written(tmp_path, HEADER + STEP + '{"type": "st'))
    assert records == [{"type": "run", "version": 1}, {"type": "step", "step": 3, "loss_K": [1.5, None]}]
    assert [record.line for record in records] == [1, 2]
    np.testing.assert_array_equal(records[1].array("loss_K", 2), [1.5, np.nan])


DAMAGE = {
    "an empty file": ("", "does not begin with"),
    "no header": (STEP, "does not begin with"),
    "a later version": (HEADER.replace("1", "7") + STEP, "is of version 7; this ado_megatron reads version 1"),
    "a version that is true": (HEADER.replace("1", "true"), "is of version True"),
    "half a line in the middle": (HEADER + STEP[:20] + "\n" + STEP, "line 2 of"),
    "a whole last line that is no record": (HEADER + "{}\n", "line 2 of"),
    "an empty line": (HEADER + "\n" + STEP, "line 2 of"),
    "a list": (HEADER + "[1]\n", "line 2 of"),
    "no step": (HEADER + '{"type": "step"}\n', "line 2 of"),
    "a step that is a text": (HEADER + STEP.replace("3", '"3"'), "line 2 of"),
    "a step below zero": (HEADER + STEP.replace("3", "-3"), "line 2 of"),
    "a huge step": (HEADER + STEP.replace("3", "9" * 30), "line 2 of"),
    "a number of 10,000 digits": (HEADER + STEP.replace("3", "9" * 10_000), "line 2 of"),
    "NaN": (HEADER + STEP.replace("null", "NaN"), "line 2 of"),
    "a deep list": (HEADER + STEP.replace("null", "[" * 100_000), "line 2 of"),
    "bytes that are no text": (HEADER.encode() + b"\xff\xfe{}\n", "line 2 of"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(tmp_path, case):
    text, words = DAMAGE[case]
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=words) as caught:
        read_metrics(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_cannot_be_read_at_all_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_metrics(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a named pipe"), ("/dev/zero", "a device"), (tmp_path, "a directory")):
        with pytest.raises(UserError, match=f"is {kind}"):
            read_metrics(path)


def test_what_can_be_read_of_a_damaged_file(tmp_path):
    records, damaged = readable_records(written(tmp_path, HEADER + "{oops\n" + STEP + "\n" + STEP.rstrip()))
    gaps = [{"type": "gap", "step": 3, "from_step": first, "records": 1} for first in (0, 3)]
    assert records == [gaps[0], records[1], gaps[1], records[1]] and damaged == [2, 4]
    assert readable_records(written(tmp_path, HEADER + STEP + "{oops")) == (records[1:2], [])
    assert readable_records(written(tmp_path, HEADER + STEP + "{}\n{}\n"))[0][1] == gaps[1] | {"records": 2}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1.0], "does not hold 2 numbers"),
        ([[1.0], [2.0]], r"holds \[1.0\], which is no number"),
        ("12", "does not hold 2 numbers"),
        (["1.0", 2.0], "holds '1.0', which is no number"),
        ([True, 2.0], "holds True, which is no number"),
        ([10**400, 2.0], "too large"),
        ([1e40, 2.0], r"holds 1e\+40, which is outside"),
        (None, "does not hold 2 numbers"),
    ],
)
def test_an_array_of_another_form_is_refused(value, words):
    with pytest.raises(UserError, match=f"line 7 of m.jsonl is damaged: x.*{words}"):
        Record({"x": value}, "m.jsonl", 7).array("x", 2)


def test_values_are_checked_when_they_are_asked_for():
    record = Record({"n": 3, "x": None, "rows": [[1, 2], [3, 4], [5, 6]], "names": ["a", "b"], "odd": 1.5}, "m", 1)
    assert record.integer("n") == 3 and np.isnan(record.number("x")) and record.number("absent", 0.25) == 0.25
    assert record.array("rows", 3, 2, whole=True).tolist() == [[1, 2], [3, 4], [5, 6]]
    assert record.texts("names", 2) == ["a", "b"]
    for ask, words in (
        (lambda: record.array("rows", 2, 3), "does not hold 2 x 3 numbers"),
        (lambda: record.integer("odd"), "1.5, which is no whole number"),
        (lambda: record.integer("x"), "None, which is no whole number"),
        (lambda: record.integer("n", high=2), "holds 3, which is outside 0 to 2"),
        (lambda: record.number("absent"), "it lacks absent"),
        (lambda: record.texts("names", 3), "has 2 entries, not 3"),
        (lambda: record.texts("n"), "not a list of texts"),
    ):
        with pytest.raises(UserError, match=words):
            ask()


def test_numbers_and_arrays_of_every_kind_are_written_plainly():
    line = encoded({"a": np.arange(6.0).reshape(3, 2)[:, 1], "r": np.array(["x", ""]), "n": np.int64(3),
                    "b": np.bool_(True), "i": np.float64("inf"), "l": (np.int64(3), [np.nan])})  # fmt: skip
    assert line.endswith(b"}\n") and b"\n" not in line[:-1]
    assert json.loads(line) == {"a": [1.0, 3.0, 5.0], "r": ["x", ""], "n": 3, "b": True, "i": None, "l": [3, [None]]}
