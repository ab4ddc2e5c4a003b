"""The table and the picture of quality_trained.py: arms over seeds, on each corpus.

Legend: K domains, R seeds.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t as student

PRIOR = "static"


def paired(rows: list[dict]) -> dict[str, dict[str, list[tuple[dict, dict]]]]:
    """model and corpus → arm → (run, the run of its prior with the same seed), for seeds that have both."""
    prior = {(row["size"], row["corpus"], row["seed"]): row for row in rows if row["arm"] == PRIOR}
    found: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda row: row["seed"]):
        mine = prior.get((row["size"], row["corpus"], row["seed"]))
        if mine is not None:
            found[f"{row['size']} {row['corpus']}"][row["arm"]].append((row, mine))
    return found


def gains(pairs: list[tuple[dict, dict]], target: str) -> np.ndarray:
    """What an arm gained over its prior by seed, gain_R in nats. target: natural or uniform."""
    return np.array([prior[target] - row[target] for row, prior in pairs])


def interval(gain_R: np.ndarray) -> float:
    """Half of the 95 % interval of the mean over seeds (Student's t); nan for one seed."""
    num = len(gain_R)
    return float(student.ppf(0.975, num - 1) * gain_R.std(ddof=1) / num**0.5) if num > 1 else float("nan")


def figures(pairs: list[tuple[dict, dict]]) -> dict:
    """What the table says of one arm on one corpus."""
    gap_K = np.mean([np.subtract(row["loss_K"], prior["loss_K"]) for row, prior in pairs], 0)
    worst = int(np.argmax(gap_K))
    both = {target: gains(pairs, target) for target in ("natural", "uniform")}
    return {
        "seeds": len(pairs), "gain_R": [round(g, 5) for g in both["natural"]],
        **{target: float(gain_R.mean()) for target, gain_R in both.items()},
        **{f"{target}_interval": interval(gain_R) for target, gain_R in both.items()},
        "worst_domain": pairs[0][0]["names_K"][worst], "worst_domain_gap": float(gap_K[worst]),
    }  # fmt: skip


def table(rows: list[dict], as_json: bool = False) -> str:
    """A line an arm, by corpus: gains over the prior in nats on its target and on the mean over domains."""
    found = {where: {arm: figures(pairs) for arm, pairs in arms.items()} for where, arms in paired(rows).items()}
    if as_json:
        return json.dumps(found, indent=1)
    lines = []
    for where, arms in found.items():
        losses = [row["natural"] for row in rows if f"{row['size']} {row['corpus']}" == where and row["arm"] == PRIOR]
        spread = f"{np.std(losses, ddof=1):.3f}" if len(losses) > 1 else "not known"
        lines += [
            f"{where}: target loss of the prior {np.mean(losses):.3f} nats, standard deviation over seeds {spread}",
            f"{'arm':<22} seeds  target, ± 95 %       mean over domains, ± 95 %  most lost by a domain",
        ]
        for arm, one in sorted(arms.items(), key=lambda item: -item[1]["natural"]):
            if arm != PRIOR:
                lines.append(
                    f"{arm:<22} {one['seeds']:5d} {one['natural']:+8.4f} ± {one['natural_interval']:.4f}  "
                    f"{one['uniform']:+14.4f} ± {one['uniform_interval']:.4f}       "
                    f"{one['worst_domain']} {one['worst_domain_gap']:+.3f}"
                )
        lines.append("")
    return "\n".join(lines).rstrip()


def draw(rows: list[dict], path: Path) -> None:
    """A panel a corpus, a row an arm: every seed a point, the mean with its 95 % interval."""
    found = paired(rows)
    most = max(len(arms) for arms in found.values()) - 1
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4.6 * len(found) + 1.5, 1.2 + 0.35 * most), layout="constrained")
        for axes, (where, arms) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
            order = sorted((arm for arm in arms if arm != PRIOR), key=lambda arm: gains(arms[arm], "natural").mean())
            for y, arm in enumerate(order):
                gain_R = gains(arms[arm], "natural")
                axes.scatter(gain_R, np.full(len(gain_R), y), s=9, alpha=0.5, color="#4477aa")
                axes.errorbar(gain_R.mean(), y, xerr=interval(gain_R), fmt="o", color="black", capsize=3, zorder=3)
            axes.axvline(0.0, color="#333333", linewidth=0.8)
            axes.set_yticks(range(len(order)), order)
            axes.set_title(where)
            axes.set_xlabel("nats of target loss gained over the prior")
        figure.savefig(path, dpi=120)
