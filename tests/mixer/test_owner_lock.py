"""The owner's lock: one holder, whoever comes, and no bother with the dead."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from ado_megatron.errors import UserError
from ado_megatron.mixer.owner_lock import OwnerLock

QUICK = {"touch_every": 0.05, "stale_after": 0.5}


def hold(directory, ready, seconds):
    lock = OwnerLock(directory, **QUICK)
    lock.acquire()
    ready.set()
    time.sleep(seconds)
    lock.release()


def holder(directory, seconds=60.0):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(directory, ready, seconds))
    process.start()
    assert ready.wait(20)
    return process


def test_a_second_run_is_refused_with_the_owners_name(tmp_path):
    process = holder(tmp_path)
    try:
        with pytest.raises(UserError, match=f"written by another process .process {process.pid} on .*, since 20"):
            OwnerLock(tmp_path, **QUICK).acquire()
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("reaped", [True, False])
def test_the_lock_of_a_killed_process_is_taken_at_once(tmp_path, reaped):
    process = holder(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    if reaped:
        process.join()
    else:
        time.sleep(0.3)
    lock = OwnerLock(tmp_path, touch_every=0.05, stale_after=60.0)
    said = []
    lock.acquire(said.append)
    lock.release()
    process.join()
    assert said == [] and not lock.path.exists()


def test_the_lock_of_another_machine_is_watched_and_taken_when_nobody_touches_it(tmp_path):
    lock = OwnerLock(tmp_path, **QUICK)
    lock.path.write_text(json.dumps({"host": "node7", "pid": 4, "born": "1", "space": "elsewhere", "token": "x"}))
    said = []
    lock.acquire(said.append)
    assert len(said) == 1 and "process 4 on node7" in said[0]
    assert json.loads(lock.path.read_text())["pid"] == os.getpid()
    lock.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[1]", '"x"'])
def test_a_damaged_lock_is_watched_and_replaced(tmp_path, content):
    lock = OwnerLock(tmp_path, **QUICK)
    lock.path.write_text(content)
    lock.acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_the_holder_notices_that_it_lost_the_lock_and_leaves_the_new_one_alone(tmp_path):
    lock = OwnerLock(tmp_path, **QUICK)
    lock.acquire()
    theirs = json.dumps({"token": "other"})
    lock.path.unlink()
    lock.path.write_text(theirs)
    deadline = time.monotonic() + 10
    while not lock.lost and time.monotonic() < deadline:
        time.sleep(0.02)
    lock.release()
    assert lock.lost and lock.path.read_text() == theirs


def race(directory, barrier, results, n):
    lock = OwnerLock(directory, **QUICK)
    barrier.wait()
    try:
        lock.acquire()
        results[n] = 1
        time.sleep(2.0)  # longer than anyone watches
        lock.release()
    except UserError:
        results[n] = 0


@pytest.mark.parametrize("stale", [False, True])
def test_of_several_that_start_at_once_one_gets_it(tmp_path, stale):
    if stale:
        (tmp_path / "owner.json").write_text(json.dumps({"space": "elsewhere", "token": "old"}))
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Array("i", [-1] * 4)
    racers = [context.Process(target=race, args=(tmp_path, barrier, results, n)) for n in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sorted(results) == [0, 0, 0, 1]
