"""The target loss of a report, its law, and who is worse than at the prior: laws written by hand."""

import dataclasses
import re

import numpy as np
import pytest

from ado_megatron.report import target
from ado_megatron.report.read import read_run
from tests.kit.runs import make_run


@pytest.fixture
def run(tmp_path):
    """Two domains under known laws: 3,000 and 1,000 samples drawn at a prior of one half each."""
    make_run(tmp_path, names=["a", "b"], prior=np.array([0.5, 0.5]), steps=200)
    run = read_run(tmp_path)
    law_Kx3 = np.array([[np.log(20.0), np.log(1.0), 0.5], [np.log(40.0), np.log(2.0), 0.5]])
    fit = dataclasses.replace(
        run.fits[-1], law_Kx3=law_Kx3, transfer_K=np.zeros(2), ok_K=np.array([True, True]), rms_K=np.full(2, 0.001),
        speed_stderr_K=np.full(2, 0.1), failed=None,
    )  # fmt: skip
    counts_SxK = np.array([[1000, 500], [2000, 500]])
    loss_K = np.array([1.0 + 20.0 * 3000**-0.5, 2.0 + 40.0 * 1000**-0.5])
    return dataclasses.replace(
        run, fits=[fit], counts_SxK=counts_SxK, loss_SxK=np.array([loss_K, loss_K]), tokens_SxK=counts_SxK * 4,
        step_S=np.array([50, 100]), target_K=np.array([0.25, 0.75]), validation_VxK=np.zeros((0, 2)),
        validation_step_V=np.zeros(0, int), weights_SxK=np.full((2, 2), 0.5), time_S=np.zeros(2),
    )  # fmt: skip


def test_the_target_loss_is_of_the_laws_where_there_is_no_validation(run):
    what, loss = target.target_loss(run)
    assert what == "by the laws"
    assert loss == pytest.approx(0.25 * (1 + 20 / 3000**0.5) + 0.75 * (2 + 40 / 1000**0.5))
    validated = dataclasses.replace(run, validation_VxK=np.array([[3.0, 5.0]]), validation_step_V=np.array([100]))
    assert target.target_loss(validated) == ("validation after 100 steps", pytest.approx(4.5))


def test_a_domain_that_paid_is_named_with_its_uncertainty(run):
    worse_K, error_K = target.against_the_prior(run)
    now, prior = 40 / 1000**0.5, 40 / 2000**0.5
    assert worse_K[1] == pytest.approx(now - prior) and worse_K[0] < 0
    assert error_K[1] == pytest.approx(np.hypot(0.1 * (now - prior), 0.001 * (2 + now)))
    lines = target.target_lines(run)
    assert f"b {now - prior:+.3f}" in lines[-1] and "a " not in lines[-1].split(":")[1]
    assert "in the limit" in lines[1] and f"{0.25 * 1 + 0.75 * 2:.4f}" in lines[1]


def test_the_worst_is_named_first_and_what_is_too_long_for_a_page_is_counted(run):
    run = dataclasses.replace(run, counts_SxK=np.array([[500, 500], [500, 500]]), prior_K=np.array([0.5, 0.5]))
    late = dataclasses.replace(run, loss_SxK=run.loss_SxK + [0.5, 0.6])
    assert re.search(r": b \+0\.\d{3} ± 0\.\d{3}, a \+0\.\d{3} ± 0\.\d{3} nats\.$", target.target_lines(late)[-1])
    assert re.search(r": b \S+ ± \S+ nats; 1 more, in the text that", target.target_lines(late, 1)[-1])


def test_no_domain_is_named_where_the_prior_was_drawn(run):
    even = np.array([[1000, 1000], [1000, 1000]])
    loss_K = np.array([1.0 + 20.0 * 2000**-0.5, 2.0 + 40.0 * 2000**-0.5])
    run = dataclasses.replace(run, counts_SxK=even, loss_SxK=np.array([loss_K, loss_K]), tokens_SxK=even * 4)
    assert target.target_lines(run)[-1].startswith("No domain is worse")


def test_without_laws_and_validation_it_says_so(run):
    assert "not known yet" in target.target_lines(dataclasses.replace(run, fits=[]))[0]
