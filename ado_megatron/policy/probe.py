"""Zero-sum probing: the weights go a little up and down in pairs, so that the transfer of each domain shows.

The transfer s of L = ε + β (n + s N)^(−α) can only be told from own samples where the share of a domain has moved. A
probe moves shares without a change of the mixture on average: in a pair of stretches the domains that were up in the
first are down in the second by as much.

Which are up is a fixed balanced design. With q = 2^p − 1 ≥ K, pair j takes row r = 1 + (j + shift) mod q of the
Walsh-Hadamard matrix of order 2^p, and each domain a column c of its own, 1 ≤ c ≤ q: its sign is
(−1)^popcount(r & c). Columns other than 0 are balanced over all rows and orthogonal to one another (Plackett and Burman
1946), so that over q pairs no domain is up more often than another, nor with another. Columns and shift are drawn
once, from the seed.

Legend: K domains.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.policy.state import PolicyState
from ado_megatron.scaling_law.laws import Laws


def probe_signs(block: int, num_domains: int, length: int, seed: int) -> np.ndarray:
    """+1 (up) or −1 (down) of each domain in `block`, sign_K; `length`: blocks of one half of a pair."""
    rows = (1 << num_domains.bit_length()) - 1
    rng = np.random.default_rng([seed, num_domains])
    column_K = 1 + rng.permutation(rows)[:num_domains]
    pair, half = divmod(block // length, 2)
    row = 1 + (pair + int(rng.integers(rows))) % rows
    odd_K = np.bitwise_count(column_K & row) & 1
    return np.where(odd_K.astype(bool), -1.0, 1.0) * (1 if half == 0 else -1)


def probed(weights_K: np.ndarray, sign_K: np.ndarray, size: float) -> np.ndarray:
    """The weights with `size` of the lighter side moved from the domains that are down to those that are up.

    Each side changes in proportion, so no weight changes by more than `size` (a part of itself) and the sum is as it
    was. With the opposite signs the change is the opposite one. Weights that are all on one side stay.
    """
    up_K = sign_K > 0
    up, down = weights_K[up_K].sum(), weights_K[~up_K].sum()
    if min(up, down) <= 0:
        return weights_K
    moved = size * min(up, down)
    return weights_K * np.where(up_K, 1.0 + moved / up, 1.0 - moved / down)


class ProbedPolicy:
    """A policy whose weights are probed. `base_K` of a state are the weights without the probe."""

    def __init__(self, policy, size: float, length: int, seed: int):
        """size: the greatest change of a weight, a part of it (0.2 is 20 %). length: blocks of half a pair."""
        self.policy, self.size, self.length, self.seed = policy, size, length, seed

    def initial_state(self) -> PolicyState:
        """The policy's own, probed."""
        return self.at_block(self.policy.initial_state())

    def step(self, state: PolicyState, laws: Laws | None, counts_K: ArrayLike) -> PolicyState:
        """As of AdoPolicy. The policy itself sees the weights without the probe."""
        return self.at_block(self.policy.step(dataclasses.replace(state, weights_K=state.base_K), laws, counts_K))

    def spans(self, first: int, stop: int) -> list[tuple[np.ndarray, int]]:
        """The policy's own: a probe moves nothing on average."""
        return self.policy.spans(first, stop)

    def constant_until(self, state: PolicyState, laws: Laws | None, stop: int) -> int:
        """As of AdoPolicy: at most to the end of the half pair."""
        return min(self.policy.constant_until(state, laws, stop), (state.step // self.length + 1) * self.length)

    def at_block(self, state: PolicyState) -> PolicyState:
        """The state with the probe of its block."""
        sign_K = probe_signs(state.step, len(state.base_K), self.length, self.seed)
        return dataclasses.replace(state, weights_K=probed(state.base_K, sign_K, self.size))
