"""A place to launch from: a checkout and a run that are empty, and recorders in the place of the launchers."""

import pytest

from tests.kit.launching import put_programs


@pytest.fixture
def place(tmp_path):
    put_programs(tmp_path, "torchrun", "deepspeed")
    for name in ("checkout", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkout" / "pretrain_gpt.py").write_text("")
    return tmp_path
