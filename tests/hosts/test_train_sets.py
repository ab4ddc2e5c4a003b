"""The train sets that a framework's loader gets: nothing before the table, then its samples with our keys."""

import numpy as np
import pytest
import torch

from ado_megatron.hosts.train_sets import KEY, SAMPLE, AdaptiveTrainSet, ShadowTrainSet
from ado_megatron.stream.sample_key import unpack_key
from tests.kit import mixing


class Domain:
    """A framework's dataset of one epoch of a prefix; sample s of it is a dict."""

    def __init__(self, name, length):
        self.name, self.length = name, length
        self.documents = np.tile(np.arange(3, 8), 1)

    def __len__(self):
        return self.length

    def __getitem__(self, s):
        return {"text": f"{self.name}{s}"}


def test_an_adaptive_set_is_read_through_the_table_and_not_before(tmp_path):
    datasets = [Domain(name, length) for name, length in zip(mixing.NAMES, mixing.LENGTHS, strict=True)]
    run = mixing.Run(tmp_path, steps=10).start()
    ours = AdaptiveTrainSet(datasets, (5, 3, 2), ("d/code", "d/wiki", "d/maths"), 160, "dataset_id")
    assert len(ours) == 160 and ours.dataset_index is None and ours.blend.lengths == mixing.LENGTHS
    assert ours.blend.weights == (5.0, 3.0, 2.0) and ours.blend.origin is None
    with pytest.raises(RuntimeError, match="sample 7 is read before the blend has its table"):
        ours[7]
    ours.bind(run.mixer.schedule, run.mixer.domains)
    for i in (0, 7, 111):
        item = ours[i]
        index, dataset_id = unpack_key(np.asarray(item[KEY]))
        where, sample = run.mixer.schedule.draw(i)
        assert index == i and dataset_id == item["dataset_id"] == where
        assert item[SAMPLE] == sample and item["text"] == f"{mixing.NAMES[where]}{sample}"


class Stock:
    """A framework's blend: sample i is of dataset_index[i]; it lays out two epochs of the second prefix."""

    weights = [0.5, 0.5]
    dataset_index = np.array([0, 1, 1, 0])
    dataset_sample_index = np.array([0, 0, 1, 1])

    def __init__(self):
        self.datasets = [Domain("a", 9), Domain("b", 8)]
        self.datasets[1].documents = np.tile(np.arange(3, 8), 2)

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.datasets[self.dataset_index[i]][self.dataset_sample_index[i]]


def test_a_shadow_set_is_the_frameworks_with_keys():
    shadow = ShadowTrainSet(Stock(), ("d/a", "d/b"), "documents")
    assert shadow.blend.passes == (9, 8) and shadow.blend.lengths == (9, 4)
    assert [shadow[i]["text"] for i in range(len(shadow))] == ["a0", "b0", "b1", "a1"]
    assert shadow.dataset_index.tolist() == [0, 1, 1, 0]
    assert [unpack_key(np.asarray(shadow[i][KEY]))[1] for i in range(4)] == [0, 1, 1, 0]
    assert [int(shadow[i][SAMPLE]) for i in range(4)] == [0, 0, 1, 1]


def test_a_sample_counts_all_of_its_bytes_and_our_three_numbers(tmp_path):
    class Tokens(Domain):
        def __getitem__(self, s):
            return {"tokens": torch.zeros(8, dtype=torch.int64), "mask": np.ones((2, 8), dtype=np.float32), "n": 1}

    datasets = [Tokens(name, 5) for name in "ab"]
    adaptive = AdaptiveTrainSet(datasets, (1, 1), ("d/a", "d/b"), 10, "dataset_id")
    assert adaptive.sample_bytes() == 8 * 8 + 2 * 8 * 4 + 8 + 3 * 8
