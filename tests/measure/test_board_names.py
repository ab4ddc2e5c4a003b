"""The table of names on boards: what builds them, and what launch/README.md says of them.

`python tests/measure/test_board_names.py` writes the table of launch/README.md anew.
"""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # for the script; pytest has it

from ado_megatron.measure.board_names import TABLE, by_domain, of_step  # noqa: E402

README = ROOT / "launch" / "README.md"
START, END = "<!-- boards: written by `python tests/measure/test_board_names.py` -->\n", "<!-- end of boards -->"


def table() -> str:
    lines = ["| name | what it is | written by |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| `{row.name}` | {row.meaning} | {row.by} |" for row in TABLE), ""])


def test_scalars_are_built_from_the_table_alone():
    assert by_domain("weight", {"wiki": 0.5, "a/b": 1}) == {"ado/weight/wiki": 0.5, "ado/weight/a/b": 1.0}
    assert of_step(loss=2, lr=0.5) == {"train/loss": 2.0, "train/lr": 0.5}
    for build in (lambda: by_domain("wieght", {}), lambda: of_step(los=1.0)):
        with pytest.raises(ValueError, match="is not in the table"):
            build()


def test_a_name_stands_once_in_the_table():
    assert len({row.name for row in TABLE}) == len(TABLE)


def test_the_readme_has_the_table():
    text = README.read_text()
    assert text.split(START)[1].split(END)[0] == table(), "run: python tests/measure/test_board_names.py"


if __name__ == "__main__":
    before, rest = README.read_text().split(START)
    README.write_text(before + START + table() + END + rest.split(END)[1])
