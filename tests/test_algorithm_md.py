"""The profile table of ALGORITHM.md says what profiles.py sets."""

import pathlib

import ado_megatron
from ado_megatron import profiles


def test_the_profile_table_is_that_of_the_code():
    text = (pathlib.Path(ado_megatron.__file__).parent / "ALGORITHM.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `")]
    table = {cells[0].strip().strip("`"): [cell.strip() for cell in cells[1:4]] for cells in rows}
    columns = [profiles.profile(name) for name in profiles.NAMES]
    assert table == {option: [str(column[option]).lower() for column in columns] for option in profiles.OPTIONS}
