"""A world of many ranks in one process: threads of which one runs at a time, each until its next collective.

So ten thousand ranks take turns as coroutines would, and their code is the real one, which knows nothing of it. Who is
last at a collective makes what all take away, and the turns begin anew. A rank that ends leaves the others waiting in a
collective that never comes: those are told so.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from ado_megatron.mixer.world import World


class Hub:
    """Whose turn it is, and where the collectives meet."""

    def __init__(self, size: int):
        self.size, self.store = size, Store()
        self._brought: dict[int, Any] = {}
        self._taken: Any = None
        self._ready, self._stuck = deque(range(size)), False
        self._turns = [threading.Lock() for _ in range(size)]
        for turn in self._turns:
            turn.acquire()

    def run(self, rank_main: Callable[[int], None]) -> None:
        """`rank_main` of every rank, to its end. The name of a rank's thread is its number."""

        def main(rank: int) -> None:
            self._turns[rank].acquire()
            try:
                rank_main(rank)
            finally:
                self._pass_on()

        before = threading.stack_size(1 << 20)
        threads = [threading.Thread(target=main, args=(n,), name=str(n), daemon=True) for n in range(self.size)]
        threading.stack_size(before)
        for thread in threads:
            thread.start()
        self._pass_on()
        for thread in threads:
            thread.join()

    def meet(self, rank: int, value: Any, combine: Callable[[dict[int, Any]], Any]) -> Any:
        """What `combine` makes of every rank's value, once the last one is here. TimeoutError where one never comes."""
        self._brought[rank] = value
        if len(self._brought) == self.size:
            self._taken, self._brought = combine(self._brought), {}
            self._ready.extend(range(self.size))
        self._pass_on()
        self._turns[rank].acquire()
        if self._stuck:
            raise TimeoutError(f"rank {rank} waits for ranks that have ended")
        return self._taken

    def _pass_on(self) -> None:
        """The next one's turn."""
        if not self._ready and self._brought:
            self._stuck = True
            self._ready.extend(self._brought)
            self._brought = {}
        if self._ready:
            self._turns[self._ready.popleft()].release()


class Store:
    """The key-value store of the rendezvous, as far as it is used."""

    def __init__(self):
        self._values: dict[str, Any] = {}

    def add(self, key: str, amount: int) -> int:
        self._values[key] = self._values.get(key, 0) + amount
        return self._values[key]

    def set(self, key: str, value: str) -> None:
        self._values[key] = value

    def get(self, key: str) -> str:
        return self._values[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self._values for key in keys)


def _summed(parts: dict[int, torch.Tensor]) -> torch.Tensor:
    total = torch.zeros_like(parts[0])
    for part in parts.values():
        total += part
    return total


@dataclasses.dataclass(frozen=True)
class SimulatedWorld(World):
    """One of `size` ranks; what World asks of torch.distributed is asked of the hub."""

    hub: Hub = dataclasses.field(kw_only=True)

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        total = self.hub.meet(self.rank, tensor, _summed)
        self.traffic.count(tensor.numel() * tensor.element_size())
        return tensor.copy_(total)

    def broadcast(self, value: Any) -> Any:
        self.traffic.count(8)
        return self.hub.meet(self.rank, value, lambda parts: parts[0])

    def all_same(self, digest: int) -> bool:
        self.traffic.count(16)
        return self.hub.meet(self.rank, digest, lambda parts: len(set(parts.values())) == 1)

    def gather(self, value: Any) -> list[Any]:
        return self.hub.meet(self.rank, value, lambda parts: [parts[rank] for rank in range(self.size)])

    def gather_int64(self, value: int) -> list[int]:
        return self.gather(value)

    def gather_on_zero(self, value: Any) -> list[Any]:
        everyone = self.gather(value)
        return everyone if self.is_zero else []

    def store(self) -> Any:
        return self.hub.store

    def timeout(self) -> float | None:
        return None
