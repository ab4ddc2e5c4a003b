"""Many domains in a few groups, so that a reader finds his way among them.

Legend: K domains.
"""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np

FEW = 24  # so many domains need no groups
RANKS = (10, 30, 100, 300, 1000, 3000, 10_000)  # where groups by weight end
_HEAD = re.compile(r"^(.*?)(?:[/:.,_\-\s]|\d|$)", re.DOTALL)


def groups_of(names_K: list[str], prior_K: np.ndarray) -> dict[str, list[int]]:
    """Group → its domains, each in the order of the prior, largest first; {} where there are few domains.

    Domains whose names begin alike (`code/python`, `code/c`) are a group. Where most names have nothing in common, the
    groups are the ten largest domains, those after them, and so on.
    """
    if len(names_K) <= FEW:
        return {}
    order = np.argsort(-prior_K, kind="stable").tolist()
    by_head: dict[str, list[int]] = defaultdict(list)
    for k in order:
        by_head[_head(names_K[k])].append(k)
    groups = {head: members for head, members in by_head.items() if len(members) > 1 and head}
    grouped = sum(map(len, groups.values()))
    if not 2 <= len(groups) <= len(names_K) // 3 or 2 * grouped < len(names_K):
        return _by_rank(order)
    rest = [k for head, members in by_head.items() if head not in groups for k in members]
    if rest:
        groups["(others)"] = sorted(rest, key=order.index)
    return dict(sorted(groups.items(), key=lambda item: -prior_K[item[1]].sum()))


def _head(name: str) -> str:
    match = _HEAD.match(name)
    return match.group(1) if match else ""


def _by_rank(order: list[int]) -> dict[str, list[int]]:
    ends = [end for end in RANKS if end < len(order)] + [len(order)]
    starts = [0, *ends[:-1]]
    return {
        f"rank {start + 1:,} to {end:,}": order[start:end] for start, end in zip(starts, ends, strict=True)
    }  # fmt: skip
