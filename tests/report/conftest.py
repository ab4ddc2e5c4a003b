"""Two made-up runs that most tests of the report look at."""

import pytest

from ado_megatron.report.data import Run
from ado_megatron.report.read import read_run
from tests.kit.runs import make_run


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arms")
    return (folder / "adaptive", make_run(folder / "adaptive")), (folder / "static", make_run(
        folder / "static", adaptive=False, seed=1))  # fmt: skip


@pytest.fixture(scope="module")
def run(arms) -> Run:
    return read_run(arms[0][0])
