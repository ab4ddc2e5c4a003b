"""Text tables: the same characters whatever they are printed on."""

import importlib.util
import subprocess
import sys

from ado_megatron.tables import text_table

COLUMNS = [
    ("domain", ["[b]x[/b]", "日本語", "a\n\x1b[31mb"]), ("tokens", ["1", "22,222", "3"]), ("note", ["ok", "", "no"]),
]  # fmt: skip

EXPECTED = """\
domain    tokens  note
[b]x[/b]       1  ok
日本語    22,222
a��[31mb       3  no"""


def test_columns_are_aligned_and_cells_are_plain_text():
    assert text_table(COLUMNS, left={"domain", "note"}) == EXPECTED
    assert text_table(COLUMNS, left={"domain", "note"}, headings=False) == EXPECTED.split("\n", 1)[1]


def test_a_terminal_that_is_narrow_or_has_colours_changes_nothing(monkeypatch):
    for name, value in {"COLUMNS": "10", "FORCE_COLOR": "1", "TERM": "xterm-256color", "LINES": "3"}.items():
        monkeypatch.setenv(name, value)
    wide = [("name", ["x" * 300]), *COLUMNS[1:2]]
    assert text_table([(heading, cells[:1]) for heading, cells in wide], left={"name"}).split("\n") == [
        "name" + " " * 298 + "tokens", "x" * 300 + " " * 7 + "1",
    ]  # fmt: skip


def test_a_table_without_rows_is_its_headings():
    assert text_table([("a", []), ("bc", [])]) == "a  bc"


def test_without_rich_the_table_is_the_same(monkeypatch):
    columns = [("domain", ["x", "longer name"]), ("tokens", ["1", "22,222"]), ("note", ["ok", ""])]
    both = [(columns, headings) for headings in (True, False)]
    expected = [text_table(table, {"domain", "note"}, headings) for table, headings in both]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert [text_table(table, {"domain", "note"}, headings) for table, headings in both] == expected


def test_nothing_else_is_imported():
    code = "import sys, ado_megatron.tables; print(sorted({'numpy', 'torch', 'jinja2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
