"""The pictures hold what they should."""

import matplotlib
import numpy as np
import pytest

from ado_megatron.report import figures
from ado_megatron.report.read import read_run
from tests.kit.runs import make_run


def test_credit_is_shown_where_the_profile_uses_it(tmp_path):
    make_run(tmp_path / "a", steps=300, config={"profile": "released"})
    make_run(tmp_path / "b", steps=300)
    assert figures.figure_credit(read_run(tmp_path / "a")) is not None
    assert figures.figure_credit(read_run(tmp_path / "b")) is None


def test_the_picture_draws_the_weights_and_the_measured_losses(run):
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.overview(run, None)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    area = panels["Mixture over the run (dashes: prior)"].collections[0].get_paths()[0].vertices
    at_end = area[np.isclose(area[:, 0], 600)][:, 1]
    assert at_end.max() == pytest.approx(run.weights_SxK[-1, 0], abs=1e-9)  # python lies at the bottom
    dots = panels["licences"].lines[0].get_xydata()
    np.testing.assert_allclose(dots[:, 1], run.loss_SxK[:, 7])
