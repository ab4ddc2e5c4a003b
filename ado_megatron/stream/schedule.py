"""The schedule: which sample of which dataset is sample i of the run.

The stream is cut in blocks of `block_size` consecutive global sample indices. A row of the table holds how many
samples of each dataset a block takes; everything else is computed from it, at random access:

    i → (block, slot)          divmod(i, block_size)
    slot → dataset             the row, laid out dataset after dataset, in the order of keys of (seed, block, place)
    dataset → j                samples of that dataset before i, over the whole run (in order of i)
    j → (epoch, position)      divmod(j, length of the dataset)
    position → sample          a permutation of the dataset's samples keyed by (seed, stream id of the dataset, epoch);
                               with `in_order` the first epoch is read as the dataset has it

The rows are planned on rank zero and published on every rank into shared memory, so loader workers that were forked or
spawned before see them (shared_table.py says how a reader can never take a torn or stale row for a good one).

Legend: C datasets (one per prefix), S blocks, N samples of a block.
"""

from collections import OrderedDict

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.errors import UserError
from ado_megatron.stream.apportion import MAX_BLOCK, apportion
from ado_megatron.stream.block import Block, Shuffle
from ado_megatron.stream.permutation import derive_key, derive_key_N
from ado_megatron.stream.row_layout import apportion_rows
from ado_megatron.stream.shared_table import SharedTable, bytes_per_row

__all__ = ["Schedule", "apportion", "apportion_rows", "lead_blocks"]

MAX_DATASETS = 32767
WINDOW_BYTES = 16_000_000
STATE_VERSION = 2  # 1 had other permutations
_CACHED_BLOCKS = 4


def lead_blocks(num_workers: int, prefetch_factor: int, micro_batch: int, dp: int, block_size: int) -> int:
    """Rows to keep planned ahead of the block being consumed, so that no loader worker has to wait.

    Workers hold num_workers × prefetch_factor micro-batches in flight on each of dp ranks: that many samples beyond the
    consumed position, rounded up to blocks, and the block being consumed. (The prefetch of 0 workers is nothing.)
    """
    in_flight = num_workers * (prefetch_factor or 0) * micro_batch * dp
    return 1 + -(-in_flight // block_size)


class Schedule:
    """The map from global sample index to (dataset, sample), over a table of integers in shared memory.

    lengths_C: samples of one epoch of each dataset. block_size: samples of a block. num_blocks: of the whole run.
    seed: decides every order. stream_id_C: what stands for a dataset in the keys (default: its number); with ids that
    belong to the data, datasets may be added, removed or moved later while the others keep their order.
    in_order: the datasets are shuffled themselves (as Megatron's are), so the first epoch of each is read in its own
    order, as the static blend would: a run can then come from that blend and go back to it inside an epoch.
    window_bytes: shared memory for rows; when the run's rows do not fit, the table is a ring of as many rows as fit
    but at least min_rows (what may be planned ahead of the slowest reader). wait_deadline: seconds a reader waits for
    a row. own_table: make the table now; else with the first use, unless `share_table` comes before.
    """

    def __init__(
        self, lengths_C: ArrayLike, block_size: int, num_blocks: int, seed: int, *,
        stream_id_C: ArrayLike | None = None, in_order: bool = False,
        window_bytes: int = WINDOW_BYTES, min_rows: int = 64, wait_deadline: float = 600.0, own_table: bool = True,
    ):  # fmt: skip
        self.length_C = np.array(lengths_C, dtype=np.int64)
        num_datasets = len(self.length_C)
        self.block_size, self.num_blocks, self.seed = int(block_size), int(num_blocks), int(seed)
        self.stream_id_C = np.array(range(num_datasets) if stream_id_C is None else stream_id_C, dtype=np.int64)
        self.in_order = in_order
        self._check()
        capacity = max(min_rows, window_bytes // bytes_per_row(num_datasets), 2)
        self._table_shape = min(max(self.num_blocks, 1), capacity), num_datasets, wait_deadline
        self._table = SharedTable(*self._table_shape) if own_table else None
        identity_N = derive_key_N((self.seed, self.block_size), self.stream_id_C, self.length_C)
        self.digest = derive_key(*identity_N.tolist()) >> 1
        self._forget_blocks()

    def _forget_blocks(self) -> None:
        self._shuffle = Shuffle(self.seed, self.length_C, self.stream_id_C, self.in_order)
        self._blocks: OrderedDict[int, Block] = OrderedDict()
        self._reads_much = False  # this process read most of its last block: lay the next one out at once

    def _check(self) -> None:
        num_datasets = len(self.length_C)
        if not 1 <= num_datasets <= MAX_DATASETS:
            raise UserError(f"a blend has 1 to {MAX_DATASETS} datasets, not {num_datasets}")
        if (self.length_C < 1).any():
            raise UserError(f"dataset {int(np.argmin(self.length_C))} of the blend is empty; remove it")
        if not 1 <= self.block_size <= MAX_BLOCK:
            raise UserError(f"a global batch of 1 to {MAX_BLOCK} samples is supported, not {self.block_size}")
        if len(np.unique(self.stream_id_C)) != num_datasets:
            raise UserError(
                "two datasets of the blend have the same identity; their samples would be read in one order"
            )

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_table": self.table, "_blocks": OrderedDict()}

    # ---------------------------------------------------------------- planning

    @property
    def table(self) -> SharedTable:
        """The rows."""
        if self._table is None:
            self._table = SharedTable(*self._table_shape)
        return self._table

    def share_table(self, lender: tuple[int, ...]) -> bool:
        """Read the rows in the table of another process, which publishes the same ones first; before anything is
        published here. lender: its `address`. False, and this process has a table of its own, where it cannot be."""
        try:
            self._table = SharedTable(*self._table_shape, lender=lender)
        except OSError:
            return False
        return True

    @property
    def planned(self) -> int:
        """Blocks published so far."""
        return self.table.next_block if self.table.borrowed else self.table.planned

    @property
    def num_samples(self) -> int:
        """Samples of the whole run."""
        return self.num_blocks * self.block_size

    def publish(self, first_block: int, counts_SxC: ArrayLike) -> np.ndarray:
        """Append rows; every rank publishes the same ones.

        first_block: must be `planned`. counts_SxC: integers, each row sums to the block. Returns the digest of each row
        as it stands in the table (int64), for ranks to compare. Raises ValueError for rows that cannot be right.
        """
        counts_SxC = np.atleast_2d(np.asarray(counts_SxC))
        if counts_SxC.dtype.kind not in "iu" or counts_SxC.shape[1] != len(self.length_C):
            raise ValueError(f"rows hold integers, one for each of {len(self.length_C)} datasets")
        if first_block != self.planned:
            raise ValueError(f"rows must be published in order: block {self.planned} is next, not {first_block}")
        if first_block + len(counts_SxC) > self.num_blocks:
            raise ValueError(f"the run has {self.num_blocks} blocks")
        if len(counts_SxC) and ((counts_SxC.sum(axis=1) != self.block_size).any() or counts_SxC.min() < 0):
            raise ValueError(f"every row must hold non-negative counts that sum to {self.block_size}")
        # A sum will do, modulo 2^64: each row's digest knows its block.
        digest_S = self.table.write(counts_SxC)
        self.digest = int(np.append(digest_S, self.digest).sum())
        return digest_S

    # ---------------------------------------------------------------- reading

    def row(self, block: int) -> np.ndarray:
        """counts_C of a block (int32). Waits for one not yet planned; StaleRow for one that has left the table."""
        return self.table.read(self._block_number(block))[0]

    def row_digest(self, block: int) -> int:
        """The digest of a row (int64): block number and samples of each dataset up to its end."""
        return self.table.read(self._block_number(block))[2]

    def locate(self, i: int) -> tuple[int, int]:
        """(dataset, j): the dataset of global sample i and how many of its samples came before, over the whole run.

        As every reading method: waits for the block to be planned (ScheduleTimeout after the deadline), IndexError
        outside the run, StaleRow for a block that has left the table.
        """
        block, slot = self._cached(i)
        return block.dataset_list[slot], block.j_list[slot]

    def draw(self, i: int) -> tuple[int, int]:
        """(dataset, sample) of global sample i: what the blend reads."""
        block, slot = self._cached(i)
        return block.dataset_list[slot], block.sample(slot)

    def whole_block(self, i: int) -> tuple[int, np.ndarray, np.ndarray] | None:
        """(index of the first sample, dataset_n (uint16), sample_n) of the block of sample i, or None: not worth it.

        Worth it if this process has read a part of the block, or most likely will: then all of it is laid out at once.
        """
        block, slot = self._cached(i)
        if not block.is_whole:
            return None
        self._reads_much = True
        return i - slot, block.dataset_n, block.sample_n

    def read(self, i: int) -> tuple[int, int, int, int]:
        """(dataset, epoch, position, sample) of global sample i."""
        dataset_id, j = self.locate(i)
        epoch, position = divmod(j, int(self.length_C[dataset_id]))
        return dataset_id, epoch, position, self.draw(i)[1]

    def block(self, b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(dataset_n, j_n, sample_n) of all samples of a block, in stream order, int64."""
        block = self._load(self._block_number(b))
        return block.dataset_n.astype(np.int64), block.j_n.copy(), block.sample_n.copy()

    def cumulative(self, i: int) -> np.ndarray:
        """counts_C: samples of each dataset among the first i of the stream."""
        block, slot = divmod(i, self.block_size)
        if slot == 0 and block == self.planned:
            return self.table.start_C(block)
        counts_C = self.table.read(self._block_number(block))[1]
        if slot:
            counts_C += np.bincount(self._load(block).dataset_n[:slot], minlength=len(counts_C))
        return counts_C

    def cumulative_many(self, i_T: np.ndarray) -> np.ndarray:
        """`cumulative` of many positions: counts_TxC, int64."""
        block_T, slot_T = np.divmod(np.asarray(i_T, dtype=np.int64), self.block_size)
        counts_TxC = self.table.start_SxC(block_T)
        for t in np.flatnonzero(slot_T):  # inside a block: under a batch ramp
            counts_TxC[t] = self.cumulative(int(i_T[t]))
        return counts_TxC

    def _block_number(self, block: int) -> int:
        if not 0 <= block < self.num_blocks:
            raise IndexError(f"block {block} is outside the run's {self.num_blocks} blocks")
        return block

    def _cached(self, i: int) -> tuple[Block, int]:
        b, slot = divmod(i, self.block_size)
        return self._blocks.get(b) or self._load(b), slot

    def _load(self, b: int) -> Block:
        block = self._blocks.get(b)
        if block is None:
            if not 0 <= b < self.num_blocks:
                raise IndexError(f"sample {b * self.block_size} is outside the run's {self.num_samples} samples")
            counts_C, start_C, _ = self.table.read(b)
            block = self._blocks[b] = Block(self._shuffle, b, counts_C, start_C, self._reads_much)
            self._reads_much = False
            if len(self._blocks) > _CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        return block

    def epoch_key(self, dataset_id: int, epoch: int) -> int:
        """The key of a dataset's shuffle in an epoch."""
        return self._shuffle.epoch_key(dataset_id, epoch)

    # ---------------------------------------------------------------- state

    def state_dict(self, consumed_samples: int) -> dict:
        """Everything that a reader from `consumed_samples` on may need: numpy arrays and integers, no torch."""
        first = consumed_samples // self.block_size
        rows = [self.table.read(b) for b in range(first, self.planned)]
        start_C = rows[0][1] if rows else self.table.start_C(self.planned)
        counts_SxC = np.array([row[0] for row in rows], dtype=np.int32).reshape(len(rows), len(self.length_C))
        return {
            "version": STATE_VERSION, "seed": self.seed, "block_size": self.block_size, "first_block": first,
            "digest": self.digest, "counts_SxC": counts_SxC, "start_C": start_C,
            "length_C": self.length_C.copy(), "stream_id_C": self.stream_id_C.copy(), "in_order": self.in_order,
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Go on from the `state_dict` of a schedule of the same datasets; before any reader starts.

        What it means to a run of other datasets is said where they are known (mixer/resume.py); here a length_C of 0 is
        a dataset that is new, and a digest of None one of the rows alone. Raises UserError for a state of another seed,
        block size or version, and for datasets that are others or have another length.
        """
        for name, ours in (("version", STATE_VERSION), ("seed", self.seed), ("block_size", self.block_size)):
            if int(state[name]) != ours:
                raise UserError(
                    f"the saved schedule has {name} {int(state[name])}, this run {ours}; resume with the same {name}"
                )
        length_C = np.asarray(state["length_C"])
        if not np.array_equal(state["stream_id_C"], self.stream_id_C):
            raise UserError("the saved schedule is one of other datasets; resume with the blend of the saved run")
        if (length_C != self.length_C)[length_C > 0].any():
            raise UserError("a dataset of the blend has another length than in the saved run; its order would not hold")
        self.in_order = bool(state.get("in_order", False))  # a run keeps the order it began with
        self._forget_blocks()
        self.table.rewind(int(state["first_block"]), np.asarray(state["start_C"], dtype=np.int64))
        self.publish(int(state["first_block"]), np.asarray(state["counts_SxC"], dtype=np.int32))
        if state["digest"] is not None:
            self.digest = int(state["digest"])
