"""Writes that may fail are tried at the right times and told once; reads refuse what could hang."""

import errno
import os

import pytest

from ado_megatron.errors import UserError
from ado_megatron.files import BestEffort, atomic_write, open_regular


class Clock:
    """Seconds, as the test says."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "board/events")


def test_an_outage_is_told_once_and_retried_after_doubling_waits(caplog):
    clock, tried = Clock(), []
    effort = BestEffort("the board", wait=1.0, longest=5.0, clock=clock)

    def fail():
        tried.append(clock.now)
        full()

    for tenth in range(250):  # asked ten times a second
        clock.now = tenth / 10
        assert not effort.attempt(fail)
    assert tried == [0, 1, 3, 7, 12, 17, 22]  # waits of 1, 2, 4, then at most 5
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the board cannot be written" in caplog.text and "board/events" in caplog.text


def test_after_an_outage_everything_is_written_again_and_the_next_outage_is_told_anew(caplog):
    clock, done = Clock(), []
    effort = BestEffort("the board", clock=clock)
    assert not effort.attempt(full)
    assert not effort.attempt(lambda: done.append(0)) and done == []  # the wait is not over
    clock.now = 1.0
    assert effort.attempt(lambda: done.append(1)) and effort.attempt(lambda: done.append(2))
    assert not effort.attempt(full)
    assert done == [1, 2] and [r.getMessage().split(",")[0] for r in caplog.records] == [
        "the board cannot be written", "the board can be written again", "the board cannot be written",
    ]  # fmt: skip


def test_a_last_try_does_not_wait_and_a_defect_is_raised():
    effort = BestEffort("the board", clock=Clock())
    assert not effort.attempt(full)
    assert effort.attempt(lambda: None, now=True)
    with pytest.raises(ZeroDivisionError):
        effort.attempt(lambda: 1 / 0)


def test_only_regular_files_are_opened_for_reading(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("/dev/zero", tmp_path / "zero")
    for name, kind in (("pipe", "a named pipe"), ("zero", "a device"), (".", "a directory")):
        with pytest.raises(UserError, match=f"is {kind}, not a regular file"):
            open_regular(tmp_path / name)
    atomic_write(tmp_path / "file", b"some bytes")
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"some bytes"
