"""An end after a whole step: all ranks leave after the same one, a second signal ends at once."""

import os
import signal
import threading
import time

import pytest

from ado_megatron.mixer import World
from ado_megatron.trainer.exit_signal import TOGETHER, ExitSignal, name_of
from tests.kit.ranks import run_ranks

TERM, INT = int(signal.SIGTERM), int(signal.SIGINT)


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def ended():
    return []


@pytest.fixture
def made(ended):
    clock = Clock()
    return clock, ExitSignal(World.single(), [TERM], clock=clock, end=ended.append)


def test_a_second_signal_ends_at_once_but_not_an_echo_of_the_first(made, ended):
    clock, exits = made
    exits.ask(TERM)
    clock.now = 0.9 * TOGETHER
    exits.ask(TERM)
    assert ended == []
    clock.now = 1.1 * TOGETHER
    exits.ask(INT)
    assert ended == [INT] and exits.due(0) == TERM


@pytest.mark.parametrize("seconds, at_most", [(0.01, 100), (0.3, 4), (1.0, 1), (20.0, 1)])
def test_ranks_agree_about_once_a_second_and_after_each_long_step(made, seconds, at_most):
    """Steps between two sums; from the first step on they grow to what a second holds, and no further."""
    clock, exits = made
    exits.due(0)
    for step in range(1, 2000):
        clock.now += seconds
        exits.due(step)
    exits.ask(TERM)
    waited = 0
    while not exits.due(2000 + waited):
        clock.now += seconds
        waited += 1
    assert waited <= at_most


def test_a_real_signal_is_seen_and_the_handlers_are_given_back(ended):
    exits = ExitSignal(World.single(), [TERM], end=ended.append)
    before = signal.getsignal(signal.SIGTERM)
    exits.start()
    try:
        threads = [thread for thread in threading.enumerate() if thread.name == "exit-signal"]
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 20
        steps = iter(range(10_000))
        while not (number := exits.due(next(steps))) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert number == TERM and ended == []
    finally:
        exits.stop()
    assert signal.getsignal(signal.SIGTERM) is before
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def _steps_until_asked(rank: int, asked: int) -> tuple[int, int]:
    """Rank `asked` gets a signal in its 40th step; (step after which this rank leaves, the signal)."""
    world = World.detect(True)
    exits = ExitSignal(world, [TERM])
    exits.start()
    for step in range(100_000):
        time.sleep(0.001 * (1 + rank))
        if step == 40 and rank == asked:
            os.kill(os.getpid(), signal.SIGTERM)
        number = exits.due(step)
        if number:
            exits.stop()
            return step, number
    return -1, 0


@pytest.mark.parametrize("asked", [0, 2])
def test_all_ranks_leave_after_the_same_step_whichever_was_asked(asked):
    left = run_ranks(_steps_until_asked, 3, asked)
    assert len(set(left)) == 1 and left[0][1] == TERM and left[0][0] >= 40


def test_names():
    assert (name_of(TERM), name_of(250)) == ("SIGTERM", "signal 250")
