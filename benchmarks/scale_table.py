"""The lines of scale.py as a table and a picture, and what follows from those that were measured."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path


@dataclasses.dataclass
class Line:
    """A cost at a size. how: measured, or extrapolated."""

    cost: str
    size: str
    x: int
    value: float
    unit: str
    how: str = "measured"


def extrapolated(lines: list[Line], sizes: list[int]) -> list[Line]:
    """The lines, and the last of them in proportion at further sizes."""
    last = lines[-1]
    more = [dataclasses.replace(last, x=x, value=last.value * x / last.x, how="extrapolated") for x in sizes]
    return lines + [line for line in more if line.x > last.x]


def exponents(lines: list[Line]) -> dict[str, float]:
    """By cost: how it grows between its last two measured sizes (1: in proportion)."""
    found = {}
    for name in dict.fromkeys(line.cost for line in lines):
        mine = [line for line in lines if line.cost == name and line.how == "measured" and line.value > 0]
        if len(mine) > 1:
            (a, b) = mine[-2:]
            found[name] = math.log(b.value / a.value) / math.log(b.x / a.x)
    return found


def table(lines: list[Line]) -> str:
    """One line a cost and size."""
    grows, text = exponents(lines), []
    for line in sorted(lines, key=lambda line: (line.cost, line.x)):
        value = f"{line.value / 1e6:12.3f} MB" if line.unit == "bytes" else f"{1e3 * line.value:12.2f} ms"
        power = f"^{grows[line.cost]:.2f}" if line.cost in grows else ""
        text.append(f"{line.cost:48} {line.size:9} {line.x:9,} {value}  {line.how:12} {power}")
    return "\n".join(text)


def picture(lines: list[Line], path: Path) -> None:
    """Every cost against its size, on logarithmic axes; hollow: extrapolated."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(13, 9), constrained_layout=True)
    panels = [("K", "s"), ("K", "bytes"), ("ranks", "s"), ("T", "bytes")]
    for axis, (size, unit) in zip(axes.flat, panels, strict=True):
        for name in dict.fromkeys(line.cost for line in lines if (line.size, line.unit) == (size, unit)):
            mine = sorted((line for line in lines if line.cost == name and line.value > 0), key=lambda line: line.x)
            (drawn,) = axis.plot([line.x for line in mine], [line.value for line in mine], label=name, lw=1)
            for line in mine:
                axis.plot(line.x, line.value, "o", color=drawn.get_color(), mfc=None if line.how == "measured" else "w")
        axis.set(xscale="log", yscale="log", xlabel={"K": "domains", "T": "steps"}.get(size, size), ylabel=unit)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.suptitle("Costs of the mixture against their sizes (filled: measured, hollow: extrapolated)")
    figure.savefig(path, dpi=80)
