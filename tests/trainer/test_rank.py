"""What parent and ranks know of each other, without a training."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ado_megatron.trainer.rank import Folder

RANK = """
import sys, time
from pathlib import Path
from ado_megatron.trainer import rank
rank.AFTER_A_FAILURE = 0.2
rank.LOOK_EVERY = 0.05
rank._follow(rank.Folder(Path(sys.argv[1])))
print("follows", flush=True)
time.sleep(60)
"""


@pytest.fixture
def start():
    """Starts a process that follows a folder; what is left at the end is killed."""
    started = []

    def begin(folder):
        line = [sys.executable, "-c", RANK, str(folder.path)]
        started.append(subprocess.Popen(line, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.getcwd()}))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_the_folder_says_how_the_run_ended_and_is_gone_after():
    with Folder.made() as folder:
        assert folder.ended_by() is None
        folder.write("done", 15)
        assert folder.ended_by() == 15
    assert not folder.path.exists()
    folder.write("done", 0)  # the parent is gone: nothing happens
    assert folder.ended_by() is None


def test_a_rank_lives_as_long_as_the_pipe_is_held_and_no_longer(start):
    with Folder.made() as folder:
        process = start(folder)
        assert process.stdout.readline() == b"follows\n"
        time.sleep(0.3)
        assert process.poll() is None
    assert process.wait(20) == 143


def test_a_rank_that_begins_after_the_parents_end_leaves_at_once(start):
    with Folder.made() as folder:
        pass
    assert start(folder).wait(30) == 143


def test_a_rank_ends_when_another_one_failed(start):
    with Folder.made() as folder:
        process = start(folder)
        assert process.stdout.readline() == b"follows\n"
        folder.write("failed", 1)
        assert process.wait(20) == 1


def test_signals_go_to_the_ranks_that_have_begun(start):
    with Folder.made() as folder:
        assert not folder.signal_ranks(signal.SIGTERM)
        process = start(folder)
        assert process.stdout.readline() == b"follows\n"
        folder.write("rank_0", process.pid)
        folder.write("rank_1", 2**22 + 1)  # gone already
        assert folder.signal_ranks(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
