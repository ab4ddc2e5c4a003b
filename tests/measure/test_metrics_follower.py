"""MetricsFollower: a file that grows, is cut, written anew, moved away, damaged."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ado_megatron.errors import UserError
from ado_megatron.measure.metrics import MetricsFollower

HEADER = '{"type": "run", "version": 1}\n'


def step(number, note=""):
    return json.dumps({"type": "step", "step": number, "note": note}) + "\n"


def steps(news):
    return [record.get("step") for record in news.records]


def test_growth_comes_once_and_half_a_line_waits(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follower = MetricsFollower(path)
    assert follower.look().records == []  # not there yet
    path.write_text(HEADER[:10])
    assert follower.look().records == []
    path.write_text(HEADER + step(1) + step(2)[:9])
    news = follower.look()
    assert news.afresh and steps(news) == [None, 1] and [record.line for record in news.records] == [1, 2]
    assert follower.look() == type(news)(False, [], [])
    path.write_text(HEADER + step(1) + step(2))
    news = follower.look()
    assert not news.afresh and steps(news) == [2] and news.records[0].line == 3


def test_a_file_written_anew_is_read_from_its_beginning(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(HEADER + step(1) + step(2) + step(3))
    follower = MetricsFollower(path)
    follower.look()
    other = tmp_path / "other"  # a resume: the same beginning, a later end, another file
    other.write_text(HEADER + step(1) + step(2) + step(3) + step(4))
    os.replace(other, path)
    assert follower.look().afresh and steps(follower.look()) == []
    path.write_text(HEADER + step(1, "longer than before, so that the size says nothing " * 9))  # the same inode
    news = follower.look()
    assert news.afresh and steps(news) == [None, 1]
    path.unlink()
    assert follower.look().records == []
    path.write_text(HEADER + step(7))
    assert steps(follower.look()) == [None, 7]


def test_a_cut_file_is_read_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(HEADER + step(1) + step(2))
    follower = MetricsFollower(path)
    follower.look()
    os.truncate(path, len(HEADER) + 3)
    news = follower.look()
    assert news.afresh and steps(news) == [None]
    path.write_text(HEADER + step(9))
    assert steps(follower.look()) == [9]


def test_damaged_lines_are_named_and_the_rest_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(HEADER + step(1) + "{oops\n" + step(2))
    news = MetricsFollower(path).look()
    assert steps(news) == [None, 1, 2] and news.damaged == [3]


@pytest.mark.parametrize("text, words", [(step(1), "does not begin with"), (HEADER.replace("1", "7"), "is of")])
def test_a_file_that_is_no_metrics_is_refused(tmp_path, text, words):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        MetricsFollower(path).look()


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, 400), max_size=8))
def test_however_it_grows_every_record_comes_once(tmp_path_factory, cuts):
    path = tmp_path_factory.mktemp("grow") / "metrics.jsonl"
    whole = (HEADER + "".join(step(n) for n in range(10))).encode()
    follower, got = MetricsFollower(path), []
    for end in [*sorted(cuts), len(whole)]:
        path.write_bytes(whole[:end])
        news = follower.look()
        got = steps(news) if news.afresh else got + steps(news)
    assert got == [None, *range(10)]
