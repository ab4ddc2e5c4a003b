"""The train datasets that hooks hand to a framework's loader. Both wait for `bind`: the mixer needs lengths first.

A sample is what the framework's domain dataset returns, with three more keys: the framework's own for the domain, KEY
(which sample of the run, of which dataset) and SAMPLE (its index in the domain dataset).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ado_megatron.blend.domains import Domains
from ado_megatron.hosts.takeover import BlendFacts, StockBlend, epochs_of
from ado_megatron.stream.blended_dataset import AdaptiveBlend
from ado_megatron.stream.sample_key import pack_key
from ado_megatron.stream.schedule import Schedule

KEY, SAMPLE = "ado_key", "ado_sample"
_KEY_BYTES = 3 * 8  # of a sample: the column, KEY and SAMPLE


def _bytes_of(item: dict[str, Any]) -> int:
    """What a sample of a framework takes in a batch, with our keys."""
    return _KEY_BYTES + sum(torch.as_tensor(value).nbytes for value in item.values())


class AdaptiveTrainSet(torch.utils.data.Dataset):
    """Sample index → sample, through the mixer's table. size: samples of the whole run. datasets: of one epoch each.
    stock: the framework's own blend, of a run that came from it."""

    def __init__(
        self, datasets: Sequence[Any], weights: Sequence[float], prefixes: Sequence[str], size: int, id_key: str,
        stock: StockBlend | None = None,
    ):  # fmt: skip
        self._datasets, self._size, self._id_key = list(stock.datasets if stock else datasets), size, id_key
        lengths, passes = tuple(map(len, datasets)), tuple(map(len, self._datasets))
        origin = stock.origin if stock else None
        self.blend = BlendFacts(tuple(prefixes), tuple(map(float, weights)), lengths, passes, origin)
        self.dataset_index = stock.dataset_index_N if stock else None
        self._samples: AdaptiveBlend | None = None

    def bind(self, schedule: Schedule, domains: Domains) -> None:
        """From here on the set can be read. Before the loader's workers start."""
        self._samples = AdaptiveBlend(
            self._datasets, schedule, id_key=self._id_key, domain_of_C=domains.domain_of_C
        )

    def sample_bytes(self) -> int:
        """Bytes of a sample in a batch. Reads one."""
        return _bytes_of(self._datasets[0][0])

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._samples is None:
            raise RuntimeError(f"sample {index} is read before the blend has its table (bind)")
        return self._samples[index]


class ShadowTrainSet(torch.utils.data.Dataset):
    """The framework's own blend, untouched: same samples, same order; each sample also carries our keys. documents:
    name of the array of documents of its datasets."""

    def __init__(self, stock: Any, prefixes: Sequence[str], documents: str):
        passes = tuple(map(len, stock.datasets))
        lengths = tuple(len(dataset) // epochs_of(dataset, documents) for dataset in stock.datasets)
        self.blend = BlendFacts(tuple(prefixes), tuple(map(float, stock.weights)), lengths, passes)
        self._stock = stock

    @property
    def dataset_index(self) -> np.ndarray:
        """The dataset of every sample of the run."""
        self._stock[0]  # some frameworks map it at the first read
        return self._stock.dataset_index

    def sample_bytes(self) -> int:
        """Bytes of a sample in a batch. Reads one."""
        return _bytes_of(self._stock[0])

    def bind(self, schedule: Schedule, domains: Domains) -> None:
        """Nothing of the table is read here."""

    def __len__(self) -> int:
        return len(self._stock)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self._stock[index]
        dataset_id = int(self._stock.dataset_index[index])
        sample = np.int64(self._stock.dataset_sample_index[index])
        return {**item, KEY: np.int64(pack_key(int(index), dataset_id)), SAMPLE: sample}
