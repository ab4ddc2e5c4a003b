"""One block laid out: the dataset and the sample of each of its slots.

Legend: C datasets, n slots (samples) of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ado_megatron.stream.permutation import derive_key, derive_key_N, permute, permute_N

_ORDER, _SHUFFLE = 1, 2  # what a key is for


@dataclass(frozen=True, eq=False)
class Shuffle:
    """What decides every order. length_C: samples of an epoch of each dataset. stream_id_C: what stands for it in
    the keys. in_order: the first epoch of each dataset is read as the dataset has it."""

    seed: int
    length_C: np.ndarray
    stream_id_C: np.ndarray
    in_order: bool

    def epoch_key(self, dataset_id: int, epoch: int) -> int:
        """The key of a dataset's order in an epoch."""
        return derive_key(self.seed, _SHUFFLE, int(self.stream_id_C[dataset_id]), epoch)

    def sample(self, dataset_id: int, j: int) -> int:
        """The sample of a dataset that is the j-th (from 0) drawn from it over the whole run."""
        length = int(self.length_C[dataset_id])
        epoch, position = divmod(j, length)
        if self.in_order and epoch == 0:
            return position
        return permute(position, length, self.epoch_key(dataset_id, epoch))

    def sample_n(self, dataset_n: np.ndarray, j_n: np.ndarray) -> np.ndarray:
        """`sample` of many: the j-th of each slot's dataset, int64."""
        length_n = self.length_C[dataset_n]
        epoch_n, position_n = np.divmod(j_n, length_n)
        key_n = derive_key_N((self.seed, _SHUFFLE), self.stream_id_C[dataset_n], epoch_n)
        sample_n = permute_N(position_n, length_n, key_n)
        return np.where(epoch_n == 0, position_n, sample_n) if self.in_order else sample_n


class Block:
    """One block laid out; its samples are computed one by one until a part of the block has been read, then at once.

    counts_C, start_C: samples of each dataset in the block and before it. at_once: compute all samples at the first.
    """

    def __init__(self, shuffle: Shuffle, number: int, counts_C: np.ndarray, start_C: np.ndarray, at_once: bool):
        size = int(counts_C.sum())
        self._shuffle = shuffle
        self._reads_left = 0 if at_once else max(8, size // 32)
        place_n = np.argsort(derive_key_N((shuffle.seed, _ORDER, number), np.arange(size)))  # no two keys are equal
        self.dataset_n = np.repeat(np.arange(len(counts_C), dtype=np.uint16), counts_C)[place_n]
        order_n = np.argsort(self.dataset_n, kind="stable")
        first_C = start_C - (np.cumsum(counts_C) - counts_C)
        self.j_n = np.empty(size, dtype=np.int64)
        self.j_n[order_n] = np.arange(size)
        self.j_n += first_C[self.dataset_n]
        self._sample_n: np.ndarray | None = None

    @cached_property
    def dataset_list(self) -> list[int]:
        """Dataset of every slot."""
        return self.dataset_n.tolist()

    @cached_property
    def j_list(self) -> list[int]:
        """Samples of its dataset before every slot, over the whole run."""
        return self.j_n.tolist()

    @cached_property
    def sample_list(self) -> list[int]:
        """Sample of every slot."""
        return self.sample_n.tolist()

    @property
    def is_whole(self) -> bool:
        """Whether samples are, or are from now on, laid out all at once."""
        return self._sample_n is not None or self._reads_left <= 0

    @property
    def sample_n(self) -> np.ndarray:
        """Sample of every slot, int64."""
        if self._sample_n is None:
            self._sample_n = self._shuffle.sample_n(self.dataset_n, self.j_n)
        return self._sample_n

    def sample(self, slot: int) -> int:
        """Sample of one slot, 0 … block size − 1."""
        if self.is_whole:
            return self.sample_list[slot]
        self._reads_left -= 1
        return self._shuffle.sample(self.dataset_list[slot], self.j_list[slot])
