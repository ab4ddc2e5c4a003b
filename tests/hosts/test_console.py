"""What a user reads: lines marked once, an end in one sentence, warnings of every rank."""

import io
import sys

import pytest
import torch

from ado_megatron.errors import UserError
from ado_megatron.hosts import console
from tests.kit.ranks import run_ranks


def test_a_line_is_marked_once_and_comes_from_rank_zero(capsys):
    console.say("mixing 3 domains")
    console.say("ado: the fit took long")
    assert capsys.readouterr().out == "ado: mixing 3 domains\nado: the fit took long\n"


class Full(io.StringIO):
    def flush(self):
        raise OSError("No space left on device")


def test_a_stdout_that_cannot_be_written_stops_nothing(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (closed, Full()):
        monkeypatch.setattr(sys, "stdout", stream)
        console.say("mixing 3 domains")
    monkeypatch.undo()


def test_of_many_values_the_largest_are_named():
    values = {f"d{n}": float(n) for n in range(30)}
    words = console.by_name(values).split()
    assert len(words) == 2 * console.LOGGED_DOMAINS and words[:2] == ["d29", "29.0000"]
    assert console.by_name({"wiki": 0.25, "code": 0.75}) == "wiki 0.2500 code 0.7500"


def _end(rank):
    """What this rank prints at an error of all ranks, and its exit code; then at one of its own."""
    printed, sys.stderr = sys.stderr, io.StringIO()
    try:
        codes = []
        for sentence in ("the sidecar is damaged", f"rank {rank} has no data"):
            with pytest.raises(SystemExit) as leaving:
                console.end_with(UserError(sentence))
            codes.append(leaving.value.code)
        torch.distributed.barrier()
        return codes, sys.stderr.getvalue().splitlines()
    finally:
        sys.stderr = printed


def test_an_error_of_all_ranks_is_printed_once_and_one_of_a_rank_by_that_rank():
    ended = run_ranks(_end, 3)
    assert [codes for codes, _ in ended] == [[2, 2]] * 3
    lines = [line for _, lines in ended for line in lines]
    assert lines.count("ado_megatron.run: error: the sidecar is damaged") == 1
    own = [[line for line in lines if "no data" in line] for _, lines in ended]
    assert own == [[f"ado_megatron.run: error: rank {rank} has no data"] for rank in range(3)]


@pytest.mark.parametrize(("local_rank", "printed"), [("0", 1), ("1", 0)])
def test_before_the_ranks_know_each_other_one_a_node_speaks(local_rank, printed, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(SystemExit) as leaving:
        console.end_with(UserError("no such script"))
    assert leaving.value.code == 2 and capsys.readouterr().err.count("error: no such script") == printed
