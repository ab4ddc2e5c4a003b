"""Arms: runs of one setting over several seeds; means over the runs, and intervals that say how much a seed moves them.

Legend: R runs of an arm, K domains; a leading R is averaged away, whatever follows it.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from ado_megatron.errors import UserError
from ado_megatron.report.data import Run
from ado_megatron.report.table import comparable, differences, final_losses

COVERED = 0.95  # of the intervals over seeds


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed, and what they are called."""

    name: str
    runs: list[Run]


@dataclass(frozen=True)
class Estimate:
    """A mean and half the width of its interval of 95 %; nan where one run alone says nothing about others."""

    mean: np.ndarray
    half: np.ndarray

    @property
    def low(self) -> np.ndarray:
        """The lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> np.ndarray:
        """The upper end of the interval."""
        return self.mean + self.half


def make_arms(groups: Sequence[Sequence[Run]]) -> list[Arm]:
    """An arm of each group of runs. UserError for runs on other domains, or one that is given twice."""
    runs = [run for group in groups for run in group]
    paths = [run.path for run in runs]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is given twice; name every run once")
    for run in runs[1:]:
        comparable(runs[0], run)
    names = [_name(group) for group in groups]
    if len(set(names)) < len(names):
        names = [" + ".join(f"{run.path.parent.name}/{run.name}" for run in group) for group in groups]
    return [Arm(name, list(group)) for name, group in zip(names, groups, strict=True)]


def _name(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return runs[0].name
    common = re.sub(r"[-_. ]*(seed|s)?[-_. ]*\d*$", "", os.path.commonprefix([run.name for run in runs]))
    return f"{common or runs[0].name} ({len(runs)} runs)"


def over_runs(values_R: np.ndarray) -> Estimate:
    """Mean over the runs of values of shape R x …, nan left out, with Student's interval of the mean."""
    mean, variance, runs = _moments(np.asarray(values_R, np.float64))
    return Estimate(mean, _quantile(runs - 1) * np.sqrt(variance / np.maximum(runs, 1)))


def difference(ours_R: np.ndarray, theirs_R: np.ndarray, paired: bool) -> Estimate:
    """Mean of ours minus theirs. paired: run r of both has the same seed; else the interval is Welch's."""
    if paired:
        return over_runs(np.asarray(ours_R) - np.asarray(theirs_R))
    (mean_a, var_a, runs_a), (mean_b, var_b, runs_b) = _moments(np.asarray(ours_R)), _moments(np.asarray(theirs_R))
    with np.errstate(invalid="ignore", divide="ignore"):
        part_a, part_b = var_a / runs_a, var_b / runs_b
        freedom = (part_a + part_b) ** 2 / (part_a**2 / (runs_a - 1) + part_b**2 / (runs_b - 1))
        half = _quantile(freedom) * np.sqrt(part_a + part_b)
    return Estimate(mean_a - mean_b, half)


def _moments(values_R: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variance of one value, number of finite values."""
    values_R = np.where(np.isfinite(values_R), values_R, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of places where no run has a value: they stay nan
        return np.nanmean(values_R, 0), np.nanvar(values_R, 0, ddof=1), np.isfinite(values_R).sum(0)


def _quantile(freedom: np.ndarray) -> np.ndarray:
    freedom = np.asarray(freedom, np.float64)
    return stdtrit(np.where(freedom > 0, freedom, np.nan), (1 + COVERED) / 2)


def by_seed(ours: Arm, theirs: Arm) -> tuple[list[int], list[int]] | None:
    """The places of both arms' runs in the order of their seeds; None unless both have the same, each once."""
    seeds = [[run.config.seed for run in arm.runs] for arm in (ours, theirs)]
    if sorted(seeds[0]) != sorted(seeds[1]) or len(set(seeds[0])) < max(len(seeds[0]), 2):
        return None
    return tuple(sorted(range(len(one)), key=one.__getitem__) for one in seeds)  # type: ignore[return-value]


def final_gap(ours: Arm, theirs: Arm) -> tuple[str, Estimate, Estimate, bool]:
    """(what is compared, its difference by domain, its mean over the domains, whether it is paired by seed)."""
    what, *losses_K = final_losses(*ours.runs, *theirs.runs)
    ours_RxK, theirs_RxK = np.array(losses_K[: len(ours.runs)]), np.array(losses_K[len(ours.runs) :])
    order = by_seed(ours, theirs)
    if order:
        ours_RxK, theirs_RxK = ours_RxK[order[0]], theirs_RxK[order[1]]
    seen_K = np.isfinite(ours_RxK).all(0) & np.isfinite(theirs_RxK).all(0)
    means = [loss_RxK[:, seen_K].mean(1) if seen_K.any() else np.full(len(loss_RxK), np.nan)
             for loss_RxK in (ours_RxK, theirs_RxK)]  # fmt: skip
    paired = order is not None
    return what, difference(ours_RxK, theirs_RxK, paired), difference(means[0], means[1], paired), paired


def seeds_text(ours: Arm, theirs: Arm) -> list[str]:
    """What two arms of several runs can be said to differ in."""
    what, gap_K, mean, paired = final_gap(ours, theirs)
    below, above = int((gap_K.high < 0).sum()), int((gap_K.low > 0).sum())
    known = int(np.isfinite(gap_K.low).sum())
    lines = [
        f"Difference in {what}, {ours.name} minus {theirs.name}, {'paired by seed' if paired else 'not paired'}: "
        f"{mean.mean:+.4f} nats averaged over the domains (95 % interval over the runs {mean.low:+.4f} to "
        f"{mean.high:+.4f}). Of {known} domains with an interval of their own, it lies below zero in {below} and above "
        f"in {above}; by chance alone {0.05 * known:.1f} would be expected."
    ]
    apart = differences(ours.runs[0], theirs.runs[0])
    apart = [words for words in apart if not words.startswith("seed is ")]
    return lines + (["The arms differ in more than the mixture: " + "; ".join(apart) + "."] if apart else [])


def inside(arm: Arm) -> list[str]:
    """A line for each run of an arm that differs from its first one in more than the seed."""
    lines = []
    for run in arm.runs[1:]:
        names = {"policy": (arm.runs[0].config.policy, run.config.policy)}
        apart = [f"{name} is {a} and {b}" for name, (a, b) in names.items() if a != b]
        apart += [words for words in differences(arm.runs[0], run) if not words.startswith("seed is ")]
        if apart:
            lines.append(f"{arm.runs[0].name} and {run.name} are one arm but differ: {'; '.join(apart)}.")
    return lines
