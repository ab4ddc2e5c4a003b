"""Marks of saves: in a framework's arguments and out of them, and what is believed."""

import copy
from types import SimpleNamespace

import pytest

from ado_megatron.errors import SidecarError
from ado_megatron.hosts import identity


def test_a_mark_goes_through_the_arguments_of_a_checkpoint():
    args = SimpleNamespace(lr=1.0)
    assert identity.of(args) is None
    mark = identity.next_mark(None)
    identity.put(args, mark)
    saved = copy.deepcopy(args)
    identity.put(args, None)  # a later save without a sidecar
    assert identity.of(saved) == mark and identity.of(args) is None


def test_marks_of_one_run_begin_alike_and_none_comes_twice():
    marks = [identity.next_mark(None)]
    for _ in range(20):
        marks.append(identity.next_mark(marks[-1]))
    assert len(set(marks)) == 21 and len({mark.partition("-")[0] for mark in marks}) == 1
    assert identity.next_mark(None).partition("-")[0] != marks[0].partition("-")[0]


@pytest.mark.parametrize(
    ("in_sidecar", "in_checkpoint", "words"),
    [
        ("a-1", "a-1", None),
        (None, None, None),
        (None, "a-1", None),  # a sidecar of before there were marks
        ("a-1", None, "that checkpoint was saved without a sidecar"),
        ("a-1", "a-2", "it is of another save of this run"),
        ("a-1", "b-1", "it is of another run"),
    ],
)
def test_what_is_believed(in_sidecar, in_checkpoint, words):
    if words is None:
        identity.require_same(in_sidecar, in_checkpoint, "s.ado")
        return
    with pytest.raises(SidecarError, match=f"the sidecar s.ado was not written with .*: {words}.*; put back"):
        identity.require_same(in_sidecar, in_checkpoint, "s.ado")
