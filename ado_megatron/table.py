"""The table in shared memory: rows that one process writes and loader workers read, without locks.

A row lives in slot `block % capacity`. Each slot holds the block number, a 64-bit digest over (block, counts, starts),
the running digest of all rows so far, the counts and the start counts. A reader copies the slot, computes the digest
of its copy, and accepts the copy only when block and digest match; else it reads again. A copy torn by a concurrent
write, or made while some of the stores were not yet visible, has another digest (but for a chance of 2^-64), so no
assumption about the order in which a CPU makes stores visible is needed, on x86 or on weakly ordered machines (ARM,
POWER). `planned` is only ever a hint about how long to wait: what a reader returns is decided by content.

Legend: C columns, S rows, R slots.
"""

import os
import time

import numpy as np
import torch

from ado_megatron.errors import ScheduleTimeout, StaleRow
from ado_megatron.permutation import derive_key, derive_key_N, mix64

_BLOCK, _DIGEST, _CHAIN, _HEADER = 0, 1, 2, 3
_SETTLE = 1.0  # seconds that a planned row may stay invisible or torn before it counts as lost


def bytes_per_row(num_columns: int) -> int:
    """Shared memory of one row: header, int32 counts, int64 starts."""
    return 8 * _HEADER + 12 * num_columns


class SharedTable:
    """Rows of counts_C (int32) and start_C (int64: samples of each column before the block).

    `capacity` slots. Picklable to spawned processes through torch.multiprocessing; forked ones share it as it is.
    """

    def __init__(self, capacity: int, num_columns: int, wait_deadline: float):
        self.capacity, self.num_columns, self.wait_deadline = capacity, num_columns, wait_deadline
        self._shared = (
            torch.full((capacity, _HEADER), -1, dtype=torch.int64).share_memory_(),
            torch.zeros((capacity, num_columns), dtype=torch.int32).share_memory_(),
            torch.zeros((capacity, num_columns), dtype=torch.int64).share_memory_(),
            torch.zeros(2, dtype=torch.int64).share_memory_(),
        )
        self._attach()

    def _attach(self) -> None:
        self.header_RxH, self.counts_RxC, self.start_RxC, self._range_2 = (t.numpy() for t in self._shared)
        column_C = np.arange(self.num_columns)
        # Odd multipliers: a change of one element always changes the sum, of several with a chance of 1 − 2^-63.
        self._odd_counts_C = (derive_key_N((11,), column_C) | np.uint64(1)).view(np.int64)
        self._odd_start_C = (derive_key_N((12,), column_C) | np.uint64(1)).view(np.int64)

    def __getstate__(self) -> dict:
        keep = ("capacity", "num_columns", "wait_deadline", "_shared")
        return {name: self.__dict__[name] for name in keep}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._attach()

    @property
    def planned(self) -> int:
        """Blocks 0 … planned − 1 have been written (not all need still be held)."""
        return int(self._range_2[1])

    @property
    def first(self) -> int:
        """The oldest block still held."""
        return max(int(self._range_2[0]), self.planned - self.capacity)

    def rewind(self, block: int) -> None:
        """Empty the table and go on at `block` (before any reader starts)."""
        self.header_RxH[:] = -1
        self._range_2[:] = block

    def digest(self, block: int, counts_C: np.ndarray, start_C: np.ndarray) -> int:
        """The digest of a row, an int64."""
        return int(self.digest_S(np.array([block]), counts_C[None], start_C[None])[0])

    def digest_S(self, block_S: np.ndarray, counts_SxC: np.ndarray, start_SxC: np.ndarray) -> np.ndarray:
        """`digest` of many rows, int64."""
        sum_S = np.einsum("sc,c->s", counts_SxC, self._odd_counts_C) + start_SxC @ self._odd_start_C
        return derive_key_N((13,), block_S, sum_S).view(np.int64)

    def write(
        self, first_block: int, counts_SxC: np.ndarray, start_C: np.ndarray, chain: int
    ) -> tuple[int, np.ndarray]:
        """Write the rows from first_block on, then announce them.

        counts_SxC: int32. start_C: samples of each column before the first of them. Returns the running digest and the
        samples of each column after the last row.
        """
        chains = []
        row = 0
        while row < len(counts_SxC):  # as many rows as lie in one piece of the ring
            block, slot = first_block + row, (first_block + row) % self.capacity
            part_SxC = counts_SxC[row : row + self.capacity - slot]
            slots = slice(slot, slot + len(part_SxC))
            self.counts_RxC[slots] = part_SxC
            start_SxC = self.start_RxC[slots]  # summed up where it stays: no array as long as the plan
            start_SxC[0], start_SxC[1:] = start_C, part_SxC[:-1]
            np.add.accumulate(start_SxC, axis=0, out=start_SxC)
            start_C = start_SxC[-1] + part_SxC[-1]
            block_S = np.arange(block, block + len(part_SxC))
            digest_S = self.digest_S(block_S, part_SxC, start_SxC)
            chains.clear()
            for digest in digest_S.tolist():
                chain = extend_chain(chain, digest)
                chains.append(chain)
            self.header_RxH[slots] = np.stack([block_S, digest_S, np.array(chains)], axis=1)
            row += len(part_SxC)
        self._range_2[1] = first_block + len(counts_SxC)
        return chain, start_C

    def read(self, block: int) -> tuple[np.ndarray, np.ndarray, int, int]:
        """(counts_C, start_C, digest, running digest) of a row, copied and verified; waits for a row not yet planned.

        Raises StaleRow for a row that has left the table and ScheduleTimeout after `wait_deadline` seconds.
        """
        row = self._try_read(block)
        return row if row is not None else self._wait(block)

    def _try_read(self, block: int):
        slot = block % self.capacity
        header_H = self.header_RxH[slot].copy()
        if header_H[_BLOCK] < block:
            return None
        counts_C, start_C = self.counts_RxC[slot].copy(), self.start_RxC[slot].copy()
        held = int(header_H[_BLOCK])
        if self.digest(held, counts_C, start_C) != header_H[_DIGEST]:
            return None
        if held > block:
            raise StaleRow(self._gone(block))
        return counts_C, start_C, int(header_H[_DIGEST]), int(header_H[_CHAIN])

    def _wait(self, block: int):
        started, pause, parent, missing_since = time.monotonic(), 1e-4, os.getppid(), None
        while True:
            if block < self.first:
                raise StaleRow(self._gone(block))
            row = self._try_read(block)
            if row is not None:
                return row
            now = time.monotonic()
            if block < self.planned:
                missing_since = missing_since or now
                if now - missing_since > max(_SETTLE, self.wait_deadline):
                    raise StaleRow(self._gone(block))
            elif now - started > self.wait_deadline:
                raise ScheduleTimeout(
                    f"block {block} was not planned within {self.wait_deadline:g} s ({self.planned} blocks are): "
                    "the training process has stopped planning (look for the first error on another rank), or it is "
                    "slower than --ado-wait-deadline allows, or --ado-lead is too small for the loader"
                )
            if os.getppid() != parent:
                raise ScheduleTimeout(f"the process that plans block {block} is gone")
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    def _gone(self, block: int) -> str:
        return (
            f"block {block} is no longer in the table ({self.first} to {self.planned - 1} are): a reader is "
            f"more than {self.capacity} blocks behind the planner, or before the position the run resumed from; "
            "give Schedule more window_bytes, or plan in smaller pieces"
        )


def extend_chain(chain: int, digest: int) -> int:
    """The running digest after one more row, an int64."""
    value = mix64((derive_key(chain) + digest) & ((1 << 64) - 1))
    return value - (1 << 64) if value >> 63 else value
