"""The table and the picture of quality.py: arms over cells.

Legend: C cells.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student

LOSING = 0.001  # nats; a cell that loses more counts


def by_arm(rows: list[dict]) -> dict[str, dict[tuple, list[dict]]]:
    """arm → cell → its runs, for cells that every arm has."""
    found: dict[str, dict[tuple, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["name"]][tuple(row["cell"].values())].append(row)
    common = set.intersection(*(set(cells) for cells in found.values()))
    return {arm: {cell: runs for cell, runs in sorted(cells.items()) if cell in common} for arm, cells in found.items()}


def figures(cells: dict[tuple, list[dict]]) -> dict:
    """What the table says of one arm. interval: half of the 95 % interval of the mean over cells (Student's t).
    percent_of_compute: the median cell's gain over dL/dlog N."""
    gain_C = np.array([np.mean([run["gain"] for run in runs]) for runs in cells.values()])
    best_C = np.array([runs[0]["best_gain"] for runs in cells.values()])
    percent_C = 100.0 * gain_C / np.array([runs[0]["slope"] for runs in cells.values()])
    num = len(gain_C)
    half = float(student.ppf(0.975, num - 1) * gain_C.std(ddof=1) / num**0.5) if num > 1 else float("nan")
    worst = int(np.argmin(gain_C))
    groups = defaultdict(list)
    for (_, target, prior, _), gain in zip(cells, gain_C, strict=True):
        groups[f"{prior}→{target}"].append(gain)
    return {
        "cells": num, "mean": float(gain_C.mean()), "interval": half, "of_best": float(gain_C.sum() / best_C.sum()),
        "percent_of_compute": float(np.median(percent_C)),
        "worst": float(gain_C[worst]), "worst_cell": ".".join(list(cells)[worst]),
        "losing": int((gain_C < -LOSING).sum()),
        "worst_run": float(min(run["gain"] for runs in cells.values() for run in runs)),
        "worst_domain": float(max(run["worst_domain"] for runs in cells.values() for run in runs)),
        "groups": {name: float(np.mean(gains)) for name, gains in sorted(groups.items())},
    }  # fmt: skip


def table(rows: list[dict], as_json: bool = False) -> str:
    """A line an arm, best mean first: gains over the prior in nats."""
    found = {arm: figures(cells) for arm, cells in by_arm(rows).items()}
    if as_json:
        return json.dumps(found)
    groups = list(next(iter(found.values()))["groups"])
    width = max(map(len, found)) + 2
    lines = [f"{'arm':<{width}} cells   mean ± 95 %       of best  compute  worst cell  losing  worst run  "
             + "worst domain  " + "  ".join(f"{group:>16}" for group in groups) + "  where it is worst"]  # fmt: skip
    for arm, one in sorted(found.items(), key=lambda item: -item[1]["mean"]):
        lines.append(
            f"{arm:<{width}} {one['cells']:5d} {one['mean']:+.4f} ± {one['interval']:.4f} {one['of_best']:10.0%} "
            f"{one['percent_of_compute']:+7.1f}% {one['worst']:+11.4f} {one['losing']:7d} {one['worst_run']:+10.4f} "
            f"{one['worst_domain']:+13.4f}  "
            + "  ".join(f"{one['groups'][group]:+16.4f}" for group in groups) + f"  {one['worst_cell']}"
        )  # fmt: skip
    return "\n".join(lines)


def draw(rows: list[dict], path: Path) -> None:
    """A row an arm: every cell a point, the mean with its 95 % interval."""
    found = by_arm(rows)
    order = sorted(found, key=lambda arm: figures(found[arm])["mean"])
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 1.2 + 0.4 * len(order)), layout="constrained")
        axes = figure.subplots()
        for y, arm in enumerate(order):
            gain_C = [np.mean([run["gain"] for run in runs]) for runs in found[arm].values()]
            one = figures(found[arm])
            axes.scatter(gain_C, np.full(len(gain_C), y), s=9, alpha=0.35, color="#4477aa")
            axes.errorbar(one["mean"], y, xerr=one["interval"], fmt="o", color="black", capsize=3, zorder=3)
        axes.axvline(0.0, color="#333333", linewidth=0.8)
        axes.set_xscale("symlog", linthresh=0.005)
        axes.set_yticks(range(len(order)), order)
        axes.set_xlabel("nats of target loss gained over the prior (points: cells; symmetric logarithm beyond .005)")
        figure.savefig(path, dpi=120)


def finish(rows: list[dict], left: int, args: argparse.Namespace, table: Callable, draw: Callable) -> int:
    """Print the table of `rows`, draw them where --plot says, say how many runs are left; the exit code."""
    if rows:
        print(table(rows, as_json=args.json))
        if args.plot:
            draw(rows, args.plot)
    if left:
        print(f"{left} runs are left; the same command goes on", file=sys.stderr)
    return int(left > 0 and not args.table)
