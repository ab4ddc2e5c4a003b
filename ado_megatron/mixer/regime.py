"""What rules a stretch of blocks: the policy, the caps and the bounds that the options and the journal come to there.

Legend: K domains, C datasets (one per prefix).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from ado_megatron.blend.domains import Domains
from ado_megatron.blend.epoch_caps import UNLIMITED, check_supply, with_share
from ado_megatron.config import AdoConfig
from ado_megatron.policy import PolicyContext, make_policy
from ado_megatron.policy.target import resolve_target
from ado_megatron.steer import steering as steer
from ado_megatron.steer.journal import Entry, in_force, next_change
from ado_megatron.steer.steering import Steering


@dataclasses.dataclass(frozen=True, eq=False)
class Regime:
    """What holds between two entries of the journal. caps_C: None: no cap. hold: the weights stay as they were."""

    config: AdoConfig
    policy: Any
    caps_C: np.ndarray | None
    lower_K: np.ndarray
    upper_K: np.ndarray
    hold: bool

    @functools.cached_property
    def _tightest(self) -> tuple[float, float]:
        """The greatest lower and the least upper bound: weights between them need no closer look."""
        return self.lower_K.max(), self.upper_K.min()

    def bent(self, weights_K: np.ndarray) -> np.ndarray:
        """The weights within the bounds that are set by hand."""
        floor, ceiling = self._tightest
        if floor <= weights_K[weights_K.argmin()] and weights_K[weights_K.argmax()] <= ceiling:
            return weights_K
        return steer.shaped(weights_K, self.lower_K, self.upper_K)


class Regimes:
    """The regimes of a run, block by block.

    entries: the journal; whoever adds to it before the first row that it may change is laid out, changes the run.
    caps_C, num_blocks, target_K: as of Planner; those of a run that nobody steers.
    """

    def __init__(
        self, config: AdoConfig, domains: Domains, block_size: int, caps_C: np.ndarray | None,
        num_blocks: int | None, target_K: np.ndarray | None, entries: Iterable[Entry] = (),
    ):  # fmt: skip
        self.config, self.domains, self.block_size, self.caps_C = config, domains, block_size, caps_C
        self.num_blocks, self.entries = num_blocks, list(entries)
        size_K = np.bincount(domains.domain_of_C, domains.lengths_C.astype(np.float64), minlength=len(domains.names_K))
        self.natural_K = size_K / size_K.sum()
        if target_K is None:
            target_K = resolve_target(config.target, domains.names_K, domains.prior_K, self.natural_K)
        self.target_K = target_K
        self._made: dict[str, Regime] = {}

    def at(self, block: int) -> Regime:
        """What rules a block. Raises UserError for a policy that cannot be made."""
        return self.of(in_force(self.entries, block))

    def of(self, steering: Steering) -> Regime:
        """What these settings come to. Raises UserError for a policy that cannot be made."""
        key = json.dumps(dataclasses.asdict(steering), sort_keys=True)
        if key not in self._made:
            self._made[key] = self._make(steering)
        return self._made[key]

    def with_entries(self, entries: Iterable[Entry]) -> Regimes:
        """The regimes of the same run under another journal."""
        other = copy.copy(self)
        other.entries = list(entries)
        return other

    def until(self, block: int, stop: int) -> int:
        """The first block ≤ stop after `block` with another regime, perhaps."""
        change = next_change(self.entries, block)
        return stop if change is None else min(change, stop)

    def caps_over(self, first: int, stop: int) -> np.ndarray | None:
        """The loosest caps of the blocks first … stop − 1; None where one of them has no caps."""
        loosest_C, block = self.at(first).caps_C, self.until(first, stop)
        while loosest_C is not None and block < stop:
            caps_C = self.at(block).caps_C
            loosest_C = None if caps_C is None else np.maximum(loosest_C, caps_C)
            block = self.until(block, stop)
        return loosest_C

    def spans(self, first: int, stop: int) -> list[tuple[np.ndarray, int]]:
        """What is known of the weights of the blocks first … stop − 1: (weights_K, number of blocks), in order."""
        spans: list[tuple[np.ndarray, int]] = []
        while first < stop:
            regime, end = self.at(first), self.until(first, stop)
            spans += [(regime.bent(weights_K), blocks) for weights_K, blocks in regime.policy.spans(first, end)]
            first = end
        return spans

    def check_supply(self, first: int, laid_out_C: np.ndarray) -> None:
        """UserError if the blocks from `first` to the end of the run cannot be fed under the caps.

        laid_out_C: samples of each dataset before them.
        """
        stop = first if self.num_blocks is None else self.num_blocks
        samples = [(weights_K, blocks * self.block_size) for weights_K, blocks in self.spans(first, stop)]
        check_supply(self.domains, self.at(stop).caps_C, samples, laid_out_C)

    def _make(self, steering: Steering) -> Regime:
        config = steer.options(self.config, steering)
        caps_C = steer.caps_C(config, self.domains, steering) if steering.max_epochs else self.caps_C
        lower_K, upper_K = steer.bounds(steering, self.domains.names_K)
        acting = dataclasses.replace(config, shadow=False)  # in shadow the policy still runs, it only decides nothing
        policy = make_policy(acting, self._context(steering, caps_C))
        return Regime(config, policy, caps_C, lower_K, upper_K, steering.hold)

    def _context(self, steering: Steering, caps_C: np.ndarray | None) -> PolicyContext:
        """What the policy may know of this run."""
        domains, target_K = self.domains, steer.target_K(steering, self.domains.names_K)
        cap_K = None
        if caps_C is not None:
            capped_K = with_share(domains.domain_of_C, domains.share_C, caps_C)
            cap_K = np.where(capped_K >= UNLIMITED, np.inf, capped_K)
        return PolicyContext(
            domains.prior_K, natural_K=self.natural_K, names_K=domains.names_K, block_size=self.block_size,
            target_K=self.target_K if target_K is None else target_K, num_blocks=self.num_blocks, cap_K=cap_K,
            seed=self.config.seed, length_K=with_share(domains.domain_of_C, domains.share_C, domains.lengths_C),
        )  # fmt: skip
