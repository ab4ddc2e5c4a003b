"""The rest of a run, laid out by the planner of the run itself.

At every refit to come the policy decides anew, under the laws of now: what they will be then, nobody knows.

Legend: K domains, C datasets, S blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ado_megatron.blend.epoch_caps import UNLIMITED
from ado_megatron.config import AdoConfig
from ado_megatron.mixer.planner import Planner
from ado_megatron.steer.journal import Entry
from ado_megatron.whatif.situation import Situation

_CELLS = 1 << 22  # rows × datasets at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Course:
    """What is drawn from block `first` to block `until`. drawn_K: samples of each domain by then, of the whole run.
    asked_K: what the weights asked for in these blocks, had there been no caps. out_K: the block in which a domain
    comes to its cap; −1: it does not. share_K: of the samples to come; least_K and most_K: of any block's weights.
    """

    first: int
    until: int
    drawn_K: np.ndarray
    asked_K: np.ndarray
    out_K: np.ndarray
    share_K: np.ndarray
    least_K: np.ndarray
    most_K: np.ndarray


def lay_out(situation: Situation, until: int, entries: Sequence[Entry] | None = None) -> Course:
    """The blocks from the first that is not planned up to `until`, which must come after it.

    entries: a journal (None: the run's own). Raises UserError where the caps cannot feed the run.
    """
    planner = planner_of(situation, situation.entries if entries is None else entries)
    start_K, first = situation.by_domain(planner.laid_out_C), planner.next_block
    asked_K, drawn_K, out_K = np.zeros(len(start_K)), start_K.copy(), np.full(len(start_K), -1, np.int64)
    least_K, most_K = np.full(len(start_K), np.inf), np.zeros(len(start_K))
    most_rows = max(_CELLS // len(situation.domains.prefixes_C), 1)
    while planner.next_block < until:
        block = planner.next_block
        decision = _next_decision(planner.config, block)
        stop = min(decision, until, block + most_rows)
        rows_SxK = situation.domains.by_domain_many(planner.plan(stop - block))
        after_SxK = drawn_K + np.cumsum(rows_SxK, 0)
        full_SxK = after_SxK >= _caps_K(situation, planner, block)
        out_K = np.where((out_K < 0) & full_SxK[-1], block + full_SxK.argmax(0), out_K)
        weights_SxK = np.array([planner.weights_K(b) for b in range(block, stop)])
        asked_K += weights_SxK.sum(0) * situation.block_size
        least_K, most_K = np.minimum(least_K, weights_SxK.min(0)), np.maximum(most_K, weights_SxK.max(0))
        drawn_K = after_SxK[-1]
        planner.forget_before(stop)
        if stop == decision:  # the policy decides anew
            planner.take_over(planner.hand_over() | {"state.solved_for": np.array(0)})
    share_K = (drawn_K - start_K) / max((drawn_K - start_K).sum(), 1)
    return Course(first, until, drawn_K, asked_K, out_K, share_K, least_K, most_K)


def planner_of(situation: Situation, entries: Sequence[Entry]) -> Planner:
    """The run's planner at the first block that is not planned, under a journal."""
    planner = Planner(
        situation.config, situation.domains, situation.block_size, situation.caps_C, situation.num_blocks,
        situation.target_K, entries,
    )  # fmt: skip
    planner.take_over(dict(situation.point))
    return planner


def _caps_K(situation: Situation, planner: Planner, block: int) -> np.ndarray:
    """The most samples of each domain; ∞: no cap."""
    caps_C = planner.regimes.at(block).caps_C
    if caps_C is None:
        return np.full(len(situation.domains.names_K), np.inf)
    caps_K = situation.by_domain(caps_C)
    return np.where(caps_K >= UNLIMITED, np.inf, caps_K)


def _next_decision(config: AdoConfig, block: int) -> int:
    """The next block at which laws of a later refit would be in force, about one refit interval on."""
    return (block // config.refit_interval + 1) * config.refit_interval
