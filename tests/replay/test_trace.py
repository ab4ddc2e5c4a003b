"""Recorded runs: what is read of them, and what is refused by name."""

import json
import os

import numpy as np
import pytest

from ado_megatron.errors import UserError
from ado_megatron.replay.trace import read_trace


def test_a_metrics_file_gives_the_counts_and_losses_of_its_lines(tmp_path):
    run = tmp_path / "run" / "ado"
    run.mkdir(parents=True)
    lines = [{"type": "run", "version": 1, "domains": ["a", "b"], "prior_K": [0.5, 0.5], "columns": ["p/a", "p/b"]},
             {"type": "step", "step": 3, "counts_K": [7, 5], "loss_K": [2.0, None]},
             {"type": "fit", "step": 3},
             {"type": "step", "step": 5, "counts_K": [4, 4], "loss_K": [1.5, 3.0]}]
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"type": "st')
    trace = read_trace(str(tmp_path / "run"))
    np.testing.assert_array_equal(trace.counts_TxK, [[2, 1], [2, 2], [3, 2], [2, 2], [2, 2]])
    np.testing.assert_array_equal(trace.loss_TxK, [[2.0, np.nan]] * 3 + [[1.5, 3.0]] * 2)
    assert trace.names_K == ["a", "b"] and trace.prefixes_K == ["p/a", "p/b"]


@pytest.mark.parametrize("arrays, said", [
    ({"prior_K": [1.0]}, "counts_TxK"),
    ({"prior_K": [1.0], "counts_TxK": [[1]], "loss_TxK": [[1.0, 2.0]]}, "shape"),
    ({"prior_K": [1.0], "counts_TxK": [[1]], "loss_TxK": [[1.0]], "law_steps_R": [0]}, "both"),
    ({"prior_K": [1.0], "counts_TxK": [[-1]], "loss_TxK": [[1.0]]}, "negative"),
])
def test_bad_traces_are_refused(tmp_path, arrays, said):
    path = tmp_path / "trace.npz"
    np.savez(path, **{name: np.array(value) for name, value in arrays.items()})
    with pytest.raises(UserError, match=said):
        read_trace(path)


def test_a_missing_trace_is_refused(tmp_path):
    with pytest.raises(UserError, match="no trace"):
        read_trace(tmp_path / "nothing.npz")


HEADER = {"type": "run", "version": 1, "domains": ["a", "b"], "prior_K": [0.5, 0.5]}


def metrics_of(path, *records, header=HEADER):
    path.write_text("".join(json.dumps(record) + "\n" for record in (header, *records)))
    return path


def step(at, steps=None, **values):
    record = {"type": "step", "step": at, "counts_K": [4, 2], "loss_K": [2.0, 3.0]} | values
    return record if steps is None else record | {"steps": steps}


def test_steps_that_nobody_measured_are_empty_and_not_spread_over(tmp_path):
    gap = {"type": "gap", "step": 6, "from_step": 4, "records": 1}
    trace = read_trace(metrics_of(tmp_path / "m.jsonl", step(4, 2), gap, step(8, 2)))  # it began at step 2
    np.testing.assert_array_equal(trace.counts_TxK[:, 0], [0, 0, 2, 2, 0, 0, 2, 2])
    np.testing.assert_array_equal(trace.loss_TxK[:, 1], [np.nan, np.nan, 3, 3, np.nan, np.nan, 3, 3])


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([step(4), step(4)], "line 3 of .* its step 4 does not come after step 4"),
        ([step(4, 4), step(9, 2)], "line 3 of .* it measured 2 steps, but is 5 after the record before it"),
        ([step(4, 5)], "line 2 of .* it measured 5 steps, but is 4 after"),
        ([step(4, counts_K=[1])], "line 2 of .* counts_K does not hold 2 numbers"),
        ([step(4, loss_K=["2", 3.0])], "line 2 of .* loss_K holds '2', which is no number"),
        ([step(4, counts_K=[1 << 50, 0])], "line 2 of .* which is outside"),
        ([step(1 << 40)], "line 2 of .* are more than a replay can hold"),
        ([], "has no step records"),
    ],
)
def test_a_damaged_metrics_file_is_refused_by_its_line(tmp_path, records, said):
    with pytest.raises(UserError, match=said):
        read_trace(metrics_of(tmp_path / "m.jsonl", *records))


GOOD = {"prior_K": [0.5, 0.5], "counts_TxK": [[1, 1], [2, 0]], "loss_TxK": [[1.0, 2.0], [1.0, np.nan]]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss_TxK": [["1", "2"], ["3", "4"]]}, "loss_TxK has shape .* not numbers in 2 dimensions"),
        ({"loss_TxK": [[np.inf, 2.0], [1.0, 1.0]]}, "loss_TxK holds inf"),
        ({"counts_TxK": [[0.5, 1], [1, 1]]}, "counts_TxK holds 0.5, which is no count"),
        ({"counts_TxK": [[1e300, 1], [1, 1]]}, "counts_TxK holds 1e\\+300"),
        ({"counts_TxK": [[np.nan, 1], [1, 1]]}, "counts_TxK holds nan"),
        ({"prior_K": [-1.0, 2.0]}, "prior_K must hold no negative"),
        ({"prior_K": [0.0, 0.0]}, "prior_K must hold no negative"),
        ({"prior_K": 1.0}, "prior_K has shape"),
        ({"domains": ["a"]}, "1 domain names for 2 domains"),
        ({"start_step": "x"}, "start_step is <U1"),
        ({"law_steps_R": [0], "laws_RxKx3": np.zeros((2, 2, 3))}, "laws_RxKx3 has shape"),
        ({"counts_TxK": np.zeros((0, 2), int), "loss_TxK": np.zeros((0, 2))}, "has no steps"),
        ({"prior_K": np.array([None, 1])}, "prior_K holds object"),
    ],
)
def test_a_trace_with_values_that_cannot_be_used_is_refused_by_name(tmp_path, change, said):
    path = tmp_path / "trace.npz"
    np.savez(path, **{name: np.array(value) for name, value in (GOOD | change).items()})
    with pytest.raises(UserError, match=said) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)


def test_what_is_no_file_to_read_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a named pipe"), ("/dev/zero", "a device")):
        with pytest.raises(UserError, match=f"is {kind}"):
            read_trace(path)
    (tmp_path / "trace.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match="cannot read the trace .*trace.npz: it is no whole .npz"):
        read_trace(tmp_path / "trace.npz")
