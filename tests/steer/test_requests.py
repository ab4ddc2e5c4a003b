"""Requests as files: who may ask, what is taken, what is withdrawn."""

import json
import os
import threading
import time

import pytest

from ado_megatron.errors import UserError
from ado_megatron.steer import requests
from ado_megatron.steer.requests import Inbox, ask, file_request, may_change


@pytest.fixture
def inbox(tmp_path):
    inbox = Inbox(tmp_path)
    inbox.open()
    return inbox


def write(inbox, name="0123456789abcdef.json", data=b'{"host": "node3", "asked": {}}'):
    path = inbox.folder / name
    path.write_bytes(data)
    return path


def test_a_request_is_taken_once_and_forgotten_when_it_is_answered(inbox, tmp_path):
    assert inbox.look() == []
    path = file_request(tmp_path, {"host": "node3", "asked": {"hold": True}})
    (request,) = inbox.look()
    assert request.values["asked"] == {"hold": True} and request.refusal is None
    assert request.who.endswith("@node3") and len(request.who) > len("@node3")
    assert inbox.look() == [] and not path.exists()
    inbox.answer(request.token, {"refused": "no"})
    assert [p.name for p in inbox.folder.iterdir()] == [f"{request.token}.answer"]


def test_where_nothing_has_come_a_look_is_one_stat(inbox, monkeypatch):
    inbox.look()
    inbox.look()
    calls = []
    monkeypatch.setattr(requests.os, "stat", lambda *args, stat=os.stat: calls.append(args) or stat(*args))
    monkeypatch.setattr(requests.os, "listdir", lambda *args: calls.append("listed"))
    assert inbox.look() == []
    assert calls == [(inbox.folder,)]


def test_requests_are_taken_in_the_order_of_their_names(inbox):
    for name in ("bbbbbbbb.json", "aaaaaaaa.json", "ignored.txt", "../x.json".replace("/", "_")):
        write(inbox, name)
    assert [request.token for request in inbox.look()] == ["aaaaaaaa", "bbbbbbbb"]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path.symlink_to("/etc/passwd"), "is a link"),
        (lambda path: os.link(path.parent.parent / "other", path), "no file of its own but a link"),
        (lambda path: os.mkfifo(path), "a pipe or a directory"),
        (lambda path: path.mkdir(), "a pipe or a directory"),
        (lambda path: path.write_bytes(b" " * 65537), "the request has 65,537 bytes; more than 65,536"),
        (lambda path: path.write_bytes(b"{"), "cannot be read"),
        (lambda path: path.write_bytes(b"[" * 20000), "cannot be read"),
        (lambda path: path.write_bytes(b"[1]"), "no JSON object"),
        (lambda path: (path.write_bytes(b"{}"), os.utime(path, (1, 1))), "nobody waits for its answer"),
    ],
)
def test_what_is_no_request_is_refused_in_one_sentence(inbox, make, sentence):
    (inbox.folder.parent / "other").write_text("{}")
    make(inbox.folder / "0123456789abcdef.json")
    (request,) = inbox.look()
    assert sentence in request.refusal and "\n" not in request.refusal
    inbox.answer(request.token, {"refused": request.refusal})
    assert json.loads((inbox.folder / "0123456789abcdef.answer").read_text())["refused"] == request.refusal


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_request_of_another_user_is_refused(inbox, tmp_path):
    os.chown(write(inbox), 12345, 12345)
    (request,) = inbox.look()
    assert request.refusal == f"user 12345 does not own {tmp_path}, so cannot change this run"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_the_group_may_change_the_run_where_it_may_write(tmp_path, monkeypatch):
    os.chown(tmp_path, 12345, 54321)
    facts = type("user", (), {"pw_name": "ann", "pw_gid": 777})
    monkeypatch.setattr(requests.pwd, "getpwuid", lambda uid: facts)
    monkeypatch.setattr(requests.os, "getgrouplist", lambda name, gid: [gid, 54321] if name == "ann" else [gid])
    os.chmod(tmp_path, 0o755)
    assert may_change(tmp_path, 12345) and not may_change(tmp_path, 999)
    os.chmod(tmp_path, 0o775)
    assert may_change(tmp_path, 999)
    facts.pw_name = "bob"
    assert not may_change(tmp_path, 999)
    with pytest.raises(UserError, match="bob does not own"):
        file_request(tmp_path, {})


def test_without_an_answer_the_request_is_withdrawn(inbox, tmp_path):
    with pytest.raises(UserError, match=r"in 0\.1 s, so the request is withdrawn and nothing was changed"):
        ask(tmp_path, {"asked": {}}, wait=0.1)
    assert list(inbox.folder.iterdir()) == [] and inbox.look() == []


def test_a_request_that_is_taken_and_never_answered_is_said_to_be(inbox, tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "_NUDGE", 0.05)
    stop = threading.Event()

    def take():
        while not stop.is_set() and not inbox.look():
            time.sleep(0.01)

    thread = threading.Thread(target=take)
    thread.start()
    with pytest.raises(UserError, match=r"rank zero has taken the request and then said nothing for 0\.3 s"):
        ask(tmp_path, {"asked": {}}, wait=0.3)
    stop.set()
    thread.join()
    Inbox(tmp_path).open()  # the next process of the run
    assert list(inbox.folder.iterdir()) == []


def test_requests_in_one_tick_of_the_clock_are_both_found(inbox, tmp_path, monkeypatch):
    """The folder looks unchanged to a look between them; a command that waits touches it."""
    monkeypatch.setattr(requests, "_NUDGE", 0.05)
    write(inbox, "aaaaaaaa.json")
    assert len(inbox.look()) == 1
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask(tmp_path, {"asked": {}}, wait=20)))
    seen = os.stat(inbox.folder).st_mtime_ns
    thread.start()
    while not list(inbox.folder.glob("*.json")):
        time.sleep(0.01)
    os.utime(inbox.folder, ns=(seen, seen))  # as if it had come in the same tick
    while not answers:
        for request in inbox.look():
            inbox.answer(request.token, {"granted": True})
        time.sleep(0.01)
    thread.join()
    assert answers == [{"granted": True}]
