"""A run's file to arrays: what cannot be read is one sentence that names file and line."""

import json

import numpy as np
import pytest

from ado_megatron import cli
from ado_megatron.report.read import read_run
from tests.kit.runs import make_run


def damaged(change):
    def make(folder):
        records = make_run(folder, steps=20)
        path = folder / "ado" / "metrics.jsonl"
        path.write_text(change([json.dumps(record) for record in records]))

    return make


def replaced(lines, number, **values):
    """The lines, with values of one of them replaced."""
    lines = list(lines)
    lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | values)
    return "\n".join(lines)


BAD = {
    "no directory": (lambda folder: None, "no run directory with measurements"),
    "empty file": (damaged(lambda lines: ""), "does not begin with"),
    "no header": (damaged(lambda lines: "\n".join(lines[1:])), "does not begin with"),
    "other version": (damaged(lambda lines: "\n".join(lines).replace('"version": 1', '"version": 7')), "version 7"),
    "no interval": (damaged(lambda lines: lines[0]), "no measured interval yet"),
    "damaged": (damaged(lambda lines: "\n".join([lines[0], "{oops", *lines[1:]])), "line 2 of"),
    "a text for a number": (damaged(lambda lines: replaced(lines, 4, loss_K=["2"] * 8)), "'2', which is no number"),
    "null for a weight": (damaged(lambda lines: replaced(lines, 2, weights_K=[None] * 8)), "line 2 of"),
    "weights of zero": (damaged(lambda lines: replaced(lines, 2, weights_K=[0] * 8)), "weights_K has no weight above"),
    "a list too short": (damaged(lambda lines: replaced(lines, 4, loss_K=[1.0])), "loss_K does not hold 8 numbers"),
    "a count below zero": (damaged(lambda lines: replaced(lines, 4, counts_K=[-1] * 8)), "holds -1, which is outside"),
    "a count that is huge": (damaged(lambda lines: replaced(lines, 4, counts_K=[10**300] * 8)), "too large"),
    "steps out of order": (damaged(lambda lines: "\n".join([lines[0], *lines[:0:-1]])), "does not come after step"),
    "a domain that is not": (damaged(lambda lines: replaced(lines, 1, domain_of_C=[8] * 8)), "holds 8, which is"),
    "a domain without data": (damaged(lambda lines: replaced(lines, 1, domain_of_C=[0] * 8)), "name each of 8 domains"),
    "names that are numbers": (damaged(lambda lines: replaced(lines, 1, domains=[1] * 8)), "is not a list of texts"),
    "no prior": (damaged(lambda lines: replaced(lines, 1, prior_K=[0] * 8)), "prior_K has no weight"),
    "a config that is a list": (damaged(lambda lines: replaced(lines, 1, config=[1])), "its config is no object"),
    "an option of another type": (damaged(lambda lines: replaced(lines, 1, config={"lead": "x"})), "--ado-lead must"),
    "missing key": (damaged(lambda lines: "\n".join(lines).replace("weights_K", "w")), "it lacks weights_K"),
    "unknown option": (damaged(lambda lines: "\n".join(lines).replace('"policy"', '"polcy"')), "polcy"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_one_sentence(tmp_path, capsys, case):
    make, words = BAD[case]
    make(tmp_path / "run")
    assert cli.main(["report", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_half_written_last_line_is_ignored(tmp_path):
    make_run(tmp_path, steps=20)
    whole = read_run(tmp_path)
    with open(tmp_path / "ado" / "metrics.jsonl", "a") as file:
        file.write('{"type": "step", "st')
    np.testing.assert_array_equal(read_run(tmp_path).counts_SxK, whole.counts_SxK)
