"""The live page under a pseudo-terminal: a file that grows, is rotated and cut; keys; a narrow terminal."""

import json
import os
import termios

import numpy as np
import pytest

from ado_megatron.watch.live import keys_of
from tests.kit.runs import make_run
from tests.kit.terminal import Terminal


@pytest.fixture
def run(tmp_path):
    """(run directory, its file, the lines of 300 steps of 600)."""
    records = make_run(tmp_path, steps=300, planned=600)
    path = tmp_path / "ado" / "metrics.jsonl"
    return tmp_path, path, [json.dumps(record) + "\n" for record in records]


@pytest.fixture
def terminals():
    opened = []
    yield lambda *argv, **size: opened.append(Terminal(*argv, **size)) or opened[-1]
    for one in opened:
        one.close()


def until(lines, step):
    return "".join(line for line in lines if json.loads(line).get("step", 0) <= step)


def test_the_page_follows_growth_rotation_and_truncation(run, terminals):
    folder, path, lines = run
    path.write_text(until(lines, 100))
    page = terminals("watch", str(folder), "--every", "0.1", "--no-preview")
    assert "of 600 (16.7%)" in page.wait("step 100 of")
    with open(path, "a") as file:
        file.write(until(lines, 150)[len(until(lines, 100)) :] + '{"type": "step", "st')
    page.wait("step 150 of", "fit: laws of")
    other = path.with_name("other")  # a resume writes the file anew, up to its checkpoint
    other.write_text(until(lines, 120))
    os.replace(other, path)
    page.wait("step 120 of")
    os.truncate(path, len(until(lines, 60)) - 7)
    page.wait("step 60 of")
    path.unlink()
    path.write_text(until(lines, 300))
    page.wait("step 300 of")
    with open(path, "a") as file:
        file.write("{oops\n")
    page.wait("is no record")
    assert page.end() == 0
    assert termios.tcgetattr(page.slave) == page.settings
    assert "\x1b[?1049l" in page.raw  # the screen that was there before is back


def test_keys_sort_filter_and_scroll(run, terminals):
    folder, _, _ = run
    page = terminals("watch", str(folder), "--every", "0.1", "--no-preview", rows=21)
    shown = page.wait("sorted by share", "python")
    assert "licences" not in shown and "1 to" in shown  # eight domains do not fit
    page.press("\x1b[6~")
    page.wait("licences", absent="1 to")
    page.press("s")
    page.wait("sorted by name", "arithmetic", absent="unicode")
    page.press("r")
    page.wait("unicode", absent="arithmetic")
    page.press("/Y_T")
    page.wait("filter: Y_T_", "sympy_tests", "1 of 8 domains match", absent="unicode")
    page.press("\x1b")
    page.wait("unicode")
    assert page.end() == 0


def test_a_narrow_terminal_keeps_what_matters_and_takes_another_size(run, terminals):
    folder, _, _ = run
    page = terminals("watch", str(folder), "--every", "0.1", "--no-preview", columns=40)
    shown = page.wait("share", "loss")
    assert "prior" not in shown.split("share", 1)[1].splitlines()[0] and "law ε" not in shown
    assert all(len(line) <= 40 for line in shown.splitlines())
    page.resize(160, 30)
    page.wait("law ε")
    assert page.end() == 0


def test_a_refit_is_foretold_by_a_fit_of_its_own(run, terminals):
    folder, _, _ = run
    page = terminals("watch", str(folder), "--every", "0.2", columns=140)
    page.wait("next refit  ")  # the column's heading
    page.process.terminate()
    assert page.process.wait(timeout=60) == 143


@pytest.mark.parametrize("columns", [9, 200])
def test_hundreds_of_domains(tmp_path, terminals, columns):
    names = [f"domain{n:03d}" for n in range(400)]
    make_run(tmp_path, names=names, prior=np.full(400, 1 / 400), steps=50)
    page = terminals("watch", str(tmp_path), "--every", "0.1", "--no-preview", "--filter", "*7?,domain00", rows=24,
                     columns=columns)  # fmt: skip
    page.wait("domain07…" if columns == 9 else "of 50 of 400")
    assert page.end() == 0


def test_keys_are_read_out_of_what_a_terminal_sends():
    assert keys_of(b"a\x1b[A\x1b[6~\r\x7f\x1b") == ["a", "up", "pgdn", "enter", "backspace", "escape"]
    assert keys_of("ä".encode() + b"\x01\xff") == ["ä"]
