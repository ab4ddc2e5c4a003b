"""The blend as a map-style dataset: i → the sample that the schedule names, from one-epoch domain datasets.

Items keep everything the domain's dataset returns, and gain three int64 values:
    `dataset_id` (or what the framework calls it)   number of the dataset
    `ado_key`                                  i · 2^15 + dataset_id: global sample index and dataset in one number
    `ado_sample`                               the sample's index inside the domain's dataset
Nothing else is kept per sample: reading has no state, so workers, ranks and resumed runs agree by construction.

Legend: C datasets, N samples.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ado_megatron.errors import UserError
from ado_megatron.stream.sample_key import pack_key
from ado_megatron.stream.schedule import Schedule

_NOTHING: tuple = (0, [], [], None, None, None)


class AdaptiveBlend:
    """The stand-in for Megatron's blended dataset: a map-style dataset, as torch's DataLoader takes any such object.

    datasets: map-style, one a prefix; of each the first `schedule.length_C[c]` samples are read, so it is asked
    for one epoch and no more. id_key: under which name items carry the dataset. domain_of_C: the domain of each
    dataset, for code that looks. size: len() of the blend; default: all samples of the schedule.
    Mapping items come back as new dicts with the keys above, other items as (item, {keys}). Raises UserError where the
    datasets are not those of the schedule.
    """

    def __init__(
        self, datasets: Sequence[Any], schedule: Schedule, *, id_key: str = "dataset_id",
        domain_of_C: np.ndarray | None = None, size: int | None = None,
    ):  # fmt: skip
        if len(datasets) != len(schedule.length_C):
            raise UserError(f"the schedule mixes {len(schedule.length_C)} datasets, but {len(datasets)} were given")
        for c, dataset in enumerate(datasets):
            if len(dataset) < schedule.length_C[c]:
                raise UserError(
                    f"dataset {c} of the blend has {len(dataset)} samples, the schedule expects "
                    f"{int(schedule.length_C[c])}; build it for one epoch"
                )
        self.datasets, self.schedule, self.id_key, self.domain_of_C = datasets, schedule, id_key, domain_of_C
        self.size = schedule.num_samples if size is None else size
        self._forget()

    def _forget(self) -> None:
        # Of the block read last, if in one go: its first index; sample and dataset of each slot as integers; sample,
        # dataset and key as arrays. In one attribute, so that a thread never sees the one without the other.
        self._whole: tuple = _NOTHING

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_whole": _NOTHING}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> Any:
        """Sample i of the run. Waits for its block to be planned; IndexError outside the run."""
        first, samples, dataset_ids, sample_n, dataset_n, key_n = self._whole
        i = i if type(i) is int else operator.index(i)
        slot = i - first
        if 0 <= slot < len(samples):
            item = self.datasets[dataset_ids[slot]][samples[slot]]
            dataset_id, key, sample = dataset_n[slot], key_n[slot], sample_n[slot]  # int64 values, as items carry them
        else:
            dataset_id, key, sample = self._look_up(i)
            item = self.datasets[int(dataset_id)][int(sample)]
        if isinstance(item, dict):  # Megatron's items, without a second look at what a mapping is
            return {**item, self.id_key: dataset_id, "ado_key": key, "ado_sample": sample}
        keys = {self.id_key: dataset_id, "ado_key": key, "ado_sample": sample}
        return {**item, **keys} if isinstance(item, Mapping) else (item, keys)

    def _look_up(self, i: int) -> tuple[np.int64, np.int64, np.int64]:
        """(dataset, key, sample) of sample i; keeps its block at hand where that is read in one go."""
        if not 0 <= i < self.size:
            raise IndexError(f"sample {i} is outside the run's {self.size} samples")
        whole = self.schedule.whole_block(i)
        if whole is None:
            dataset_id, sample = self.schedule.draw(i)
            return np.int64(dataset_id), np.int64(pack_key(i, dataset_id)), np.int64(sample)
        first, dataset_n, sample_n = whole
        dataset_n = dataset_n[: self.size - first].astype(np.int64)
        key_n = pack_key(np.arange(first, first + len(dataset_n)), dataset_n)
        self._whole = first, sample_n[: len(dataset_n)].tolist(), dataset_n.tolist(), sample_n, dataset_n, key_n
        return dataset_n[i - first], key_n[i - first], sample_n[i - first]

    # ---------------------------------------------------------------- for code that looks at a blended dataset

    @property
    def weights(self) -> list[float]:
        """Shares of the datasets in the block planned last (equal shares before the first)."""
        planned = self.schedule.planned
        if not planned:
            return [1.0 / len(self.datasets)] * len(self.datasets)
        return (self.schedule.row(planned - 1) / self.schedule.block_size).tolist()

    @property
    def dataset_index(self) -> np.ndarray:
        """Dataset of every sample planned so far, int16; computed when asked, and as long as the plan."""
        return self._planned(0).astype(np.int16)

    @property
    def dataset_sample_index(self) -> np.ndarray:
        """Sample, inside its dataset, of every sample planned so far, int64; computed when asked."""
        return self._planned(2)

    def _planned(self, which: int) -> np.ndarray:
        """One of the arrays of Schedule.block, of all blocks planned so far."""
        blocks = [self.schedule.block(b)[which] for b in range(self.schedule.planned)]
        return np.concatenate([np.zeros(0, dtype=np.int64), *blocks])
