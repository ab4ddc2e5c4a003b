"""The pictures hold what they should."""

import matplotlib
import numpy as np
import pytest

from ado_megatron.report import figures
from ado_megatron.report.read import read_run
from tests.kit.runs import make_run


def test_the_picture_draws_the_weights_and_the_measured_losses(run):
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.overview(run, None)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    area = panels["Mixture over the run (dashes: prior)"].collections[0].get_paths()[0].vertices
    at_end = area[np.isclose(area[:, 0], 600)][:, 1]
    assert at_end.max() == pytest.approx(run.weights_SxK[-1, 0], abs=1e-9)  # python lies at the bottom
    dots = panels["licences"].lines[0].get_xydata()
    np.testing.assert_allclose(dots[:, 1], run.loss_SxK[:, 7])


def test_many_domains_are_the_largest_and_one_area_of_the_others(tmp_path):
    prior = np.arange(100, 0, -1) / 5050
    make_run(tmp_path, names=[f"n{k}" for k in range(100)], prior=prior, steps=40, adaptive=False)
    with matplotlib.rc_context(figures.STYLE):
        figure = figures.overview(read_run(tmp_path), None)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    mixture = panels["Mixture over the run (dashes: prior)"]
    assert len(mixture.collections) == figures.MOST_SHOWN + 1
    assert mixture.get_legend().get_texts()[0].get_text() == "76 others"
    top = mixture.collections[-1].get_paths()[0].vertices[:, 1]
    assert (top.min(), top.max()) == (pytest.approx(prior[:24].sum()), pytest.approx(1.0))
