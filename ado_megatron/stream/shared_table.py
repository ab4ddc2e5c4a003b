"""The table in shared memory: rows that one process writes and loader workers read, without locks.

A slot holds the block number, a 64-bit digest and how many samples of each dataset the stream has up to the end of that
block; a block's own counts are the difference to the slot before. A reader copies a slot, computes the digest of its
copy, and accepts the copy only when block and digest match; else it reads again. A copy torn by a concurrent
write, or made while some of the stores were not yet visible, has another digest (but for a chance of 2^-64), so no
assumption about the order in which a CPU makes stores visible is needed, on x86 or on weakly ordered machines (ARM,
POWER). `planned` is only ever a hint about how long to wait: what a reader returns is decided by content.

Legend: C datasets, S rows, R slots.
"""

from __future__ import annotations

import errno
import mmap
import multiprocessing.reduction
import os
import time
import weakref

import numpy as np

from ado_megatron.errors import ScheduleTimeout, StaleRow
from ado_megatron.stream.permutation import derive_key, derive_key_N

_HEADER = 2  # words of a slot's header: block number and digest
_RANGE = 2  # words: the first block that was not rewound away, and `planned`
_EMPTY = -2  # no block: the slot before block 0 has the number -1
_CHUNK_CELLS = 1 << 16  # rows × datasets written at a time: stays in the cache


def bytes_per_row(num_datasets: int) -> int:
    """Shared memory of one row: header and int64 sums."""
    return 8 * (_HEADER + num_datasets)


class SharedTable:
    """The last `capacity` rows: end_C (int64), samples of each dataset up to the end of a block.

    The memory is anonymous (a memfd), so no size of /dev/shm limits it and nothing is left behind by a killed process.
    Forked processes share it as it is; spawned ones get its file descriptor when multiprocessing pickles the table for
    them. A table holds two descriptors, this one and that of the mapping, which go with it; a borrowed one the latter.

    capacity: rows. wait_deadline: seconds that `read` waits. planned, first: int64 words that all processes see.
    lender: `address` of the table of another process on this machine, in whose memory this one reads: its own `write`
    and `rewind` then compute what they would, and store nothing.
    """

    def __init__(
        self, capacity: int, num_datasets: int, wait_deadline: float, lender: tuple[int, ...] | None = None
    ):  # fmt: skip
        """An empty table; block 0 is next. Raises OSError where the memory cannot be had."""
        self.capacity, self.num_datasets, self.wait_deadline = capacity, num_datasets, wait_deadline
        self._slots = capacity + 1  # the row before the oldest is where that one starts
        self._lender = lender
        self._attach(self._new_memory() if lender is None else self._lent_memory(lender))
        self.rewind(0, np.zeros(num_datasets, dtype=np.int64))

    def _num_bytes(self) -> int:
        return 8 * (_RANGE + self._slots * (_HEADER + self.num_datasets))

    def _new_memory(self) -> int:
        """The descriptor of memory of our own."""
        descriptor = os.memfd_create("ado-table")
        os.ftruncate(descriptor, self._num_bytes())
        return descriptor

    def _lent_memory(self, lender: tuple[int, ...]) -> int:
        """The descriptor, for reading, of another process's table. Raises OSError where that is not what it said."""
        process, number, *identity = lender
        descriptor = os.open(f"/proc/{process}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(descriptor)
        if [found.st_dev, found.st_ino] != identity or found.st_size != self._num_bytes():
            os.close(descriptor)
            raise OSError(errno.ESTALE, "another file than the table that was named")
        return descriptor

    @property
    def borrowed(self) -> bool:
        """Whether the memory is that of another process."""
        return self._lender is not None

    @property
    def address(self) -> tuple[int, int, int, int]:
        """Where processes of this machine and user find the memory, and what tells it from any other."""
        found = os.fstat(self._descriptor)
        return os.getpid(), self._descriptor, found.st_dev, found.st_ino

    def _attach(self, descriptor: int) -> None:
        """Map the memory: two words of range, then the headers, then the sums of all slots."""
        access = mmap.ACCESS_READ if self.borrowed else mmap.ACCESS_WRITE
        words = np.frombuffer(mmap.mmap(descriptor, 0, access=access), dtype=np.int64)
        if self.borrowed:
            os.close(descriptor)
        else:
            self._descriptor = descriptor
            weakref.finalize(self, os.close, descriptor)
        self._range_2, rest = words[:_RANGE], words[_RANGE:]
        self.header_RxH = rest[: self._slots * _HEADER].reshape(self._slots, _HEADER)
        self.end_RxC = rest[self._slots * _HEADER :].reshape(self._slots, self.num_datasets)
        # Odd multipliers: a change of one element always changes the sum, of several with a chance of 1 − 2^-63.
        self._odd_C = (derive_key_N((12,), np.arange(self.num_datasets)) | np.uint64(1)).view(np.int64)

    def __getstate__(self) -> dict:
        keep = ("capacity", "num_datasets", "wait_deadline", "next_block", "_slots", "_end_C", "_lender")
        memory = None if self.borrowed else multiprocessing.reduction.DupFd(self._descriptor)
        return {name: self.__dict__[name] for name in keep} | {"memory": memory}

    def __setstate__(self, state: dict) -> None:
        memory = state.pop("memory")
        self.__dict__.update(state)
        self._attach(memory.detach() if self._lender is None else self._lent_memory(self._lender))

    @property
    def planned(self) -> int:
        """Blocks 0 … planned − 1 have been written (not all need still be held)."""
        return int(self._range_2[1])

    @property
    def first(self) -> int:
        """The oldest block still held."""
        return max(int(self._range_2[0]), self.planned - self.capacity)

    def rewind(self, block: int, start_C: np.ndarray) -> None:
        """Empty the table and go on at `block`, before which there are start_C samples. Before any reader starts."""
        self.next_block, self._end_C = int(block), np.array(start_C, dtype=np.int64)  # of the next `write`
        if self.borrowed:
            return
        self.header_RxH[:] = _EMPTY
        self._range_2[:] = block
        slot = (block - 1) % self._slots
        self.end_RxC[slot] = start_C
        self.header_RxH[slot] = block - 1, self._digest(block - 1, self.end_RxC[slot])

    def _digest(self, block: int, end_C: np.ndarray) -> int:
        digest = derive_key(13, block, int(end_C @ self._odd_C))
        return digest - (1 << 64) if digest >> 63 else digest

    def _digest_S(self, block_S: np.ndarray, end_SxC: np.ndarray) -> np.ndarray:
        """`_digest` of many rows, int64."""
        return derive_key_N((13,), block_S, end_SxC @ self._odd_C).view(np.int64)

    def write(self, counts_SxC: np.ndarray) -> np.ndarray:
        """Append rows, then announce them; by the planning process alone. Returns their digests, int64."""
        first, row, digests = self.next_block, 0, [np.zeros(0, dtype=np.int64)]
        while row < len(counts_SxC):
            slot = (first + row) % self._slots
            size = min(len(counts_SxC) - row, self._slots - slot, max(1, _CHUNK_CELLS // self.num_datasets))
            end_SxC = self.end_RxC[slot : slot + size]  # summed up where it stays
            if self.borrowed:
                end_SxC = np.empty_like(end_SxC)
            end_SxC[:] = counts_SxC[row : row + size]
            end_SxC[0] += self._end_C
            np.add.accumulate(end_SxC, axis=0, out=end_SxC)
            self._end_C = end_SxC[-1].copy()
            block_S = np.arange(first + row, first + row + size)
            digests.append(self._digest_S(block_S, end_SxC))
            if not self.borrowed:
                self.header_RxH[slot : slot + size] = np.stack([block_S, digests[-1]], axis=1)
            row += size
        self.next_block = first + len(counts_SxC)
        if not self.borrowed:
            self._range_2[1] = self.next_block
        return np.concatenate(digests)

    def read(self, block: int) -> tuple[np.ndarray, np.ndarray, int]:
        """(counts_C as int32, start_C, digest) of a row, copied and verified; waits for a row not yet planned.

        start_C: samples of each dataset before the block. Raises StaleRow for a row that has left the table and
        ScheduleTimeout after `wait_deadline` seconds.
        """
        row = self._try_read(block)
        return row if row is not None else self._wait(block)

    def start_C(self, block: int) -> np.ndarray:
        """Samples of each dataset before a block that is planned, or the next to be."""
        end = self._try_slot(block - 1, block)
        return end[0] if end is not None else self.read(block)[1]

    def start_SxC(self, block_S: np.ndarray) -> np.ndarray:
        """`start_C` of many blocks, copied and verified at once."""
        slot_S = (block_S - 1) % self._slots
        held_S, end_SxC = self.header_RxH[slot_S], self.end_RxC[slot_S]
        whole_S = (held_S[:, 0] == block_S - 1) & (held_S[:, 1] == self._digest_S(block_S - 1, end_SxC))
        for s in np.flatnonzero(~whole_S):
            end_SxC[s] = self.start_C(int(block_S[s]))
        return end_SxC

    def _try_read(self, block: int) -> tuple[np.ndarray, np.ndarray, int] | None:
        """What `read` returns, or None where the row is not, or not wholly, there yet."""
        end = self._try_slot(block, block)
        start = None if end is None else self._try_slot(block - 1, block)
        if end is None or start is None:
            return None
        return (end[0] - start[0]).astype(np.int32), start[0], end[1]

    def _try_slot(self, block: int, asked: int) -> tuple[np.ndarray, int] | None:
        """(end_C, digest), or None where the slot does not yet, or not wholly, hold the block.

        asked: the block whose row is wanted, which StaleRow names: its row is the difference of two slots.
        """
        slot = block % self._slots
        held, digest = self.header_RxH[slot].tolist()
        if held < block:
            return None
        end_C = self.end_RxC[slot].copy()
        if self._digest(held, end_C) != digest:
            return None
        if held > block:
            raise StaleRow(self._gone(asked))
        return end_C, digest

    def _wait(self, block: int) -> tuple[np.ndarray, np.ndarray, int]:
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
                if now - missing_since > self.wait_deadline:
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

