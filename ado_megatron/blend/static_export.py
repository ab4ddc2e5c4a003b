"""Back to a framework's own static blend: the weights with which it goes on where a run stands.

Megatron gives sample i to the dataset that is furthest behind, by weight · i − count. These distances sum to zero
over the datasets, so the chosen one is not ahead: its count becomes at most weight · i + 1. With the weights drawn_C
/ n that is, for i < n, less than drawn_c + 1, so after n samples no dataset has more than drawn_c, and together they
have n: each has exactly drawn_c. Megatron reads a dataset's samples in its own order, as a schedule with `in_order`
does in the first epoch. So the counts themselves, as weights, say both the blend and the position; their sum is the
position.

That holds for datasets of which Megatron lays out one epoch. Of more, it shuffles the epochs into one order.

Legend: C datasets (one per prefix).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SURPLUS = 1.005  # what both Megatrons ask of a dataset beyond its share of the run


def blend_text(prefixes_C: Sequence[str], drawn_C: np.ndarray) -> str:
    """The blend as --data-path and --data-args-path take it; prefixes of which nothing was drawn are left out, since
    Megatron-LM takes no weight of zero."""
    return " ".join(f"{n} {prefix}" for n, prefix in zip(drawn_C.tolist(), prefixes_C, strict=True) if n > 0) + "\n"


def not_continued(lengths_C: np.ndarray, drawn_C: np.ndarray, total_samples: int) -> list[int]:
    """The datasets that Megatron, with the weights drawn_C and a run of total_samples, lays out in another order than
    ours, so that samples of the running epoch are read again and others are left out."""
    consumed = int(drawn_C.sum())
    asked = [math.ceil(math.ceil(total_samples * n / consumed) * SURPLUS) for n in drawn_C.tolist()]
    return [c for c, n in enumerate(drawn_C.tolist()) if n > 0 and max(n, asked[c]) > lengths_C[c]]


def describe_continuation(prefixes_C: Sequence[str], datasets: Sequence[int], consumed: int) -> str:
    """What an unmodified run with the exported weights does with the samples after `consumed`, in one sentence.

    datasets: what `not_continued` says.
    """
    start = f"with these weights the stock blend goes on from the checkpoint at {consumed} samples"
    if not datasets:
        return f"{start} and, up to the planned end of the run, repeats and skips nothing"
    names = ", ".join(prefixes_C[c] for c in datasets[:4]) + (f" and {len(datasets) - 4} more" if datasets[4:] else "")
    return (
        f"{start}, but repeats and skips samples of {names}, because the run needs more than one epoch of it and stock "
        "shuffles all epochs into one order; --ado-policy static goes on without"
    )
