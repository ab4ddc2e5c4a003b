"""AdaptiveBlend: items, keys, and over real megatron-core GPTDatasets of one epoch. Legend: C datasets, N samples."""

import logging

import numpy as np
import pytest
import torch

from ado_megatron.errors import UserError
from ado_megatron.stream.blended_dataset import AdaptiveBlend
from ado_megatron.stream.sample_key import pack_key, unpack_key
from ado_megatron.stream.schedule import Schedule, apportion_rows


class Squares(torch.utils.data.Dataset):
    def __init__(self, length, as_mapping=True):
        self.length, self.as_mapping = length, as_mapping

    def __len__(self):
        return self.length

    def __getitem__(self, sample):
        return {"x": sample * sample, "dataset_idx": "theirs"} if self.as_mapping else sample * sample


def blend(lengths=(3, 5), rows=((2, 2), (1, 3)), as_mapping=True, **more):
    schedule = Schedule(lengths, 4, 6, seed=1)
    schedule.publish(0, np.array(rows))
    return AdaptiveBlend([Squares(n, as_mapping) for n in lengths], schedule, **more)


def test_items_keep_what_they_have_and_gain_int64_keys():
    mixed = blend(id_key="dataset_idx")
    for i in range(8):
        item, (dataset_id, _, _, sample) = mixed[i], mixed.schedule.read(i)
        key = i * 2**15 + dataset_id
        assert item == {"x": sample**2, "dataset_idx": dataset_id, "ado_key": key, "ado_sample": sample}
        assert all(item[name].dtype == np.int64 for name in ("dataset_idx", "ado_key", "ado_sample"))
    plain = blend(as_mapping=False)
    for i in range(8):
        dataset_id, sample = plain.schedule.draw(i)
        key = pack_key(i, dataset_id)
        assert plain[i] == (sample**2, {"dataset_id": dataset_id, "ado_key": key, "ado_sample": sample})


def test_the_item_of_the_dataset_is_not_changed():
    kept = {"x": 1}
    schedule = Schedule([1], 1, 1, seed=0)
    schedule.publish(0, [[1]])
    assert AdaptiveBlend([[kept]], schedule)[0]["ado_key"] == 0 and kept == {"x": 1}


def test_keys_pack_and_unpack_in_all_three_kinds_up_to_ten_to_the_twelve():
    pairs = [(0, 0), (1, 32767), (10**12, 32766), (7, 0)]
    for i, dataset_id in pairs:
        assert unpack_key(pack_key(i, dataset_id)) == (i, dataset_id)
    for kind in (np.array, torch.tensor):
        i_N, dataset_N = unpack_key(pack_key(kind([i for i, _ in pairs]), kind([c for _, c in pairs])))
        assert list(zip(i_N.tolist(), dataset_N.tolist(), strict=True)) == pairs


def test_what_code_that_looks_at_a_blended_dataset_finds():
    mixed = blend(domain_of_C=np.array([0, 0]))
    assert len(mixed) == 24 and len(mixed.datasets) == 2 and mixed.weights == [0.25, 0.75]
    assert mixed.dataset_index.tolist() == [mixed.schedule.locate(i)[0] for i in range(8)]
    assert mixed.dataset_sample_index.tolist() == [mixed.schedule.draw(i)[1] for i in range(8)]
    assert mixed.dataset_index.dtype == np.int16 and mixed.dataset_sample_index.dtype == np.int64
    empty = AdaptiveBlend([Squares(3), Squares(5)], Schedule([3, 5], 4, 6, seed=1), size=21)
    assert (len(empty), empty.weights, empty.dataset_index.tolist()) == (21, [0.5, 0.5], [])
    for i in (21, -1):
        with pytest.raises(IndexError, match="outside the run's 21 samples"):
            empty[i]


def test_datasets_that_do_not_fit_the_schedule_are_refused():
    schedule = Schedule([3, 5], 4, 6, seed=1)
    with pytest.raises(UserError, match="mixes 2 datasets, but 1 were given"):
        AdaptiveBlend([Squares(3)], schedule)
    with pytest.raises(UserError, match="dataset 1 of the blend has 4 samples, the schedule expects 5"):
        AdaptiveBlend([Squares(3), Squares(4)], schedule)


# ---------------------------------------------------------------- megatron-core

LENGTH = 16  # tokens of a sample


class _Tokenizer:
    unique_identifiers = {"name": "none"}  # noqa: RUF012
    vocab_size = 4000
    eod, pad = 0, -1


@pytest.fixture(scope="module")
def gpt_datasets(tmp_path_factory):
    """Three tiny .bin/.idx files through megatron-core's own builder and GPTDataset, one epoch each."""
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    logging.getLogger("megatron.core").setLevel(logging.ERROR)
    directory, rng, datasets = tmp_path_factory.mktemp("gpt"), np.random.default_rng(0), []
    for c, documents in enumerate((40, 13, 30)):
        prefix = str(directory / f"domain{c}_text_document")
        builder = indexed.IndexedDatasetBuilder(prefix + ".bin", dtype=np.int32)
        for d in range(documents):
            tokens = np.full(int(rng.integers(5, 60)), 1000 * c + d + 1)
            builder.add_document(torch.tensor(tokens), [len(tokens)])
        builder.finalize(prefix + ".idx")
        config = GPTDatasetConfig(
            random_seed=1, sequence_length=LENGTH, blend=([prefix], None), split="1,0,0", path_to_cache=str(directory),
            tokenizer=_Tokenizer(), reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,
            create_attention_mask=False,
        )  # fmt: skip
        low = GPTDataset.build_low_level_dataset(prefix, config)
        datasets.append(GPTDataset(low, prefix, np.arange(documents, dtype=np.int32), None, Split.train, config))
    return datasets


def test_gpt_datasets_of_one_epoch_are_read_epoch_by_epoch(gpt_datasets):
    lengths = [len(dataset) for dataset in gpt_datasets]
    schedule = Schedule(lengths, 32, 40, seed=3)
    rows_SxC, _ = apportion_rows([0.5, 0.3, 0.2], 32, 40, np.zeros(3))
    schedule.publish(0, rows_SxC)
    mixed = AdaptiveBlend(gpt_datasets, schedule)
    loader = torch.utils.data.DataLoader(mixed, batch_size=8, num_workers=2, multiprocessing_context="fork")
    drawn = [[], [], []]
    for batch in loader:
        assert batch["tokens"].shape == (8, LENGTH) and batch["dataset_id"].dtype == torch.int64
        for tokens, dataset_id, sample in zip(batch["tokens"], batch["dataset_id"], batch["ado_sample"], strict=True):
            assert int(tokens[0]) // 1000 == int(dataset_id)
            assert torch.equal(tokens, torch.as_tensor(gpt_datasets[dataset_id][int(sample)]["tokens"]))
            drawn[dataset_id].append(int(sample))
    assert [len(samples) for samples in drawn] == [640, 384, 256]
    for length, samples in zip(lengths, drawn, strict=True):
        assert len(samples) > 2 * length
        for start in range(0, len(samples) - length + 1, length):
            assert sorted(samples[start : start + length]) == list(range(length))
