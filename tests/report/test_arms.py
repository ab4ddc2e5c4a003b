"""Arms of several seeds: means, intervals and what is said about them, against SciPy's tests of means."""

import numpy as np
import pytest
from scipy import stats

from ado_megatron import cli
from ado_megatron.errors import UserError
from ado_megatron.report.arms import by_seed, difference, inside, make_arms, over_runs, seeds_text
from ado_megatron.report.read import read_run
from tests.kit.runs import make_run


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Two arms of three seeds, the second in another order."""
    folder = tmp_path_factory.mktemp("seeds")
    for seed in range(3):
        make_run(folder / f"ado-s{seed}", seed=seed, config={"seed": seed})
        make_run(folder / f"static-s{seed}", seed=10 + seed, adaptive=False, config={"seed": seed})
    return [[folder / f"ado-s{seed}" for seed in range(3)], [folder / f"static-s{seed}" for seed in (2, 0, 1)]]


def read(paths):
    return make_arms([[read_run(path) for path in group] for group in paths])


def test_the_interval_over_runs_is_students():
    values = np.array([[1.0, 5.0, np.nan], [2.0, np.nan, np.nan], [4.0, 7.0, 3.0]])
    found = over_runs(values)
    np.testing.assert_allclose(found.mean, [7 / 3, 6.0, 3.0])
    # by hand: s = 1.527525, s/√3 = 0.881917, t(2) = 4.302653; s/√2 = 1, t(1) = 12.706205; one value says nothing
    np.testing.assert_allclose(found.half, [3.794583, 12.706205, np.nan], rtol=1e-6)


def test_differences_are_paired_by_seed_or_welchs():
    draw = np.random.default_rng(0)
    ours, theirs = draw.normal(2.0, 0.3, (4, 5)), draw.normal(1.8, 0.1, (4, 5))
    tests = {True: stats.ttest_rel(ours, theirs), False: stats.ttest_ind(ours, theirs, equal_var=False)}
    for paired, test in tests.items():
        expected = test.confidence_interval(0.95)
        found = difference(ours, theirs, paired)
        np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], rtol=1e-10)
    assert np.isnan(difference(ours[:1], theirs, False).half).all()


def test_runs_are_paired_where_both_arms_have_the_same_seeds_each_once(seeds):
    ours, theirs = read(seeds)
    assert by_seed(ours, theirs) == ([0, 1, 2], [1, 2, 0])
    assert by_seed(ours, read([seeds[1][:2]])[0]) is None
    assert (ours.name, theirs.name) == ("ado (3 runs)", "static (3 runs)")


def test_the_words_hold_the_difference_of_the_last_validation(seeds):
    ours, theirs = read(seeds)
    gaps = [run.validation_VxK[-1].mean() - other.validation_VxK[-1].mean()
            for run, other in zip(ours.runs, [theirs.runs[r] for r in (1, 2, 0)], strict=True)]  # fmt: skip
    interval = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    text = seeds_text(ours, theirs)[0]
    assert "validation loss after 600 steps" in text and "paired by seed" in text
    assert f"{np.mean(gaps):+.4f} nats" in text and f"{interval.low:+.4f} to {interval.high:+.4f}" in text


def test_an_arm_of_runs_that_differ_in_more_than_their_seed_is_told_so(seeds, tmp_path):
    make_run(tmp_path / "odd", config={"seed": 7, "min_share": 0.02})
    arm = read([[seeds[0][0], tmp_path / "odd", seeds[1][0]]])[0]
    lines = inside(arm)
    assert "ado-s0 and odd are one arm but differ: min_share is 0.01 here and 0.02 there" in lines[0]
    assert "policy is ado and static" in lines[1] and len(lines) == 2


def test_a_run_that_is_named_twice_is_refused(seeds):
    with pytest.raises(UserError, match="is given twice"):
        read([seeds[0], seeds[0][:1]])


def test_the_command_compares_three_arms(seeds, tmp_path, capsys):
    make_run(tmp_path / "third", config={"seed": 1, "min_share": 0.02})
    line = ["report", *map(str, seeds[0]), "--compare", *map(str, seeds[1]), "--compare", str(tmp_path / "third")]
    assert cli.main([*line, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "ado (3 runs) minus static (3 runs), paired" in printed
    assert "ado (3 runs) minus third, not paired" in printed and "min_share is 0.01 here and 0.02 there" in printed
