"""Between the host's blend and ours: what the host drew, over real GPTDatasets. No host is needed.

Legend: C datasets, N samples of the run.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from ado_megatron.blend.static_export import SURPLUS
from ado_megatron.errors import UserError
from ado_megatron.hosts import takeover
from ado_megatron.hosts.megatron_core import INDICES
from ado_megatron.hosts.takeover import BlendFacts, StockBlend, count_drawn, epochs_of, sidecar_path
from ado_megatron.mixer.sidecar import write_sidecar
from ado_megatron.npz import nest

PREFIXES = ("here/wiki_text_document", "here/law_text_document")


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    """num_samples (None: one epoch) → megatron-core's GPTDataset over documents 3 … 32 of 40."""
    import torch
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    from megatron.core.datasets.utils import Split

    directory = tmp_path_factory.mktemp("data")
    prefix = str(directory / "law_text_document")
    rng = np.random.default_rng(0)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for length in rng.integers(5, 60, size=40).tolist():
        builder.add_document(torch.tensor(rng.integers(1, 99, size=length)), [length])
    builder.finalize(f"{prefix}.idx")
    config = GPTDatasetConfig(
        random_seed=1, sequence_length=16, blend=([prefix], None), split="1,0,0", path_to_cache=str(directory),
        tokenizer=SimpleNamespace(eod=0, pad=0, vocab_size=100, unique_identifiers={}), reset_position_ids=False,
        reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
    )  # fmt: skip
    documents = GPTDataset.build_low_level_dataset(prefix, config)
    return lambda num: GPTDataset(documents, prefix, np.arange(3, 33, dtype=np.int32), num, Split.train, config)


def test_the_dataset_of_stock_is_the_one_epoch_dataset_until_the_run_asks_for_more(gpt):
    own = gpt(None)
    length = len(own)
    stock = {num: gpt(num) for num in (1, length // 2, length, length + 1, int(1.9 * length), 3 * length)}
    assert {num: epochs_of(dataset, INDICES[0]) for num, dataset in stock.items()} == {
        1: 1, length // 2: 1, length: 1, length + 1: 2, int(1.9 * length): 2, 3 * length: 3,
    }  # fmt: skip
    for num, dataset in stock.items():
        assert len(dataset) // epochs_of(dataset, INDICES[0]) == length
        blend = Blend([own, dataset], np.zeros(5, np.int16))
        found = StockBlend.of(blend, [own, own], INDICES, PREFIXES, (3.0, 1.0), 500)
        if num <= length:
            assert found.datasets[1] is own and found.origin is None
            assert all((dataset[s]["tokens"] == own[s]["tokens"]).all() for s in range(length))
        else:
            assert found.datasets == [own, dataset]
            pairs = [["wiki_text_document", 3.0], ["law_text_document", 1.0]]
            assert found.origin == {"size": 500, "weights": pairs}


class Blend(SimpleNamespace):
    """What is asked of a host's blended dataset."""

    def __init__(self, datasets, dataset_index):
        super().__init__(datasets=datasets, dataset_index=dataset_index)

    def __getitem__(self, i):
        return {}


def test_an_order_of_as_many_samples_may_be_another(gpt):
    """Two epochs are shuffled apart or together, by how much of the second is asked for."""
    own, apart, together = gpt(None), gpt(int(len(gpt(None)) * 1.5)), gpt(int(len(gpt(None)) * 1.9))
    assert len(apart) == len(together)
    found = StockBlend.of(Blend([apart], np.zeros(1)), [together], INDICES, PREFIXES[:1], (1.0,), 9)
    assert found.origin is not None and found.datasets == [apart] and len(own) < len(apart)


def test_samples_are_counted_in_pieces_and_not_beyond_the_blend(monkeypatch):
    monkeypatch.setattr(takeover, "_CHUNK", 7)
    index_N = np.random.default_rng(0).integers(0, 3, size=50).astype(np.uint8)
    for consumed in (0, 1, 7, 8, 50):
        expected = np.bincount(index_N[:consumed], minlength=4).tolist()
        assert count_drawn(index_N, consumed, 4).tolist() == expected
    with pytest.raises(UserError, match="stands at 51 samples, but the framework's blend has 50"):
        count_drawn(index_N, 51, 4)


def arguments(**changes):
    values = {"split": "9,1", "seed": 1, "seq_length": 8, "train_samples": None, "train_iters": 10,
              "global_batch_size": 4, "data_path": ["0.5", "old/place/a", "0.5", "b"]}  # fmt: skip
    return takeover.layout_facts(SimpleNamespace(**values | changes))


def test_the_order_of_stock_holds_for_the_same_arguments_wherever_the_data_is():
    saved = arguments()
    takeover.check_same_layout(None, saved)
    takeover.check_same_layout(saved, arguments(data_path=["0.5", "a", "0.5", "new/b"]))
    takeover.check_same_layout(saved, arguments(train_iters=20, global_batch_size=2))
    for changes, words in (
        ({"train_iters": 11}, r"global_batch_size 40, this run has 44"),
        ({"data_path": ["0.4", "a", "0.6", "b"]}, "data_path .*'0.4'"),
        ({"data_path": None, "data_args_path": "blend.txt"}, "data_path"),
        ({"seed": 2}, "seed 1, this run has 2"),
    ):
        with pytest.raises(UserError, match=words):
            takeover.check_same_layout(saved, arguments(**changes))


def test_weights_of_the_origin_are_found_by_name():
    origin = {"size": 9, "weights": [["wiki_text_document", 3.0], ["law_text_document", 1.0]]}
    assert takeover.weights_at(origin, ("new/law_text_document", "wiki_text_document")) == [1.0, 3.0]
    with pytest.raises(UserError, match="code cannot be added"):
        takeover.weights_at(origin, (*PREFIXES, "code"))


def sidecar(load, iteration, *, consumed=24, shadow=False, origin=None, in_order=True, drawn=(16, 8)):
    state = {"first_block": consumed // 8, "block_size": 8, "in_order": in_order}
    meta = {"config": {"shadow": shadow}, "origin": origin, "schedule": state, "consumed_samples": consumed,
            "block_size": 8, "prefixes_C": list(PREFIXES), "lengths_C": [100, 9]}  # fmt: skip
    write_sidecar(sidecar_path(load, iteration), meta, nest("schedule/", {"start_C": np.array(drawn)}))


def test_who_drew_the_samples_is_read_from_the_sidecar(tmp_path, capsys, monkeypatch):
    sidecar(tmp_path, 3, shadow=True)
    sidecar(tmp_path, 5, origin={"size": 1})
    found = {n: takeover.drawn_by(str(tmp_path), n) for n in (0, 3, 4, 5)}
    assert found == {
        0: (takeover.NEW, None), 3: (takeover.SHADOW, None), 4: (takeover.STOCK, None),
        5: (takeover.ADAPTIVE, {"size": 1}),
    }  # fmt: skip
    newest = {n: takeover.last_adaptive(str(tmp_path), n) for n in (2, 4, 5, 9)}
    assert newest == {2: None, 4: None, 5: sidecar_path(tmp_path, 5), 9: sidecar_path(tmp_path, 5)}
    for iteration, rank, lines in ((5, "0", 1), (5, "1", 0), (3, "0", 0), (4, "0", 0)):
        monkeypatch.setenv("RANK", rank)
        (tmp_path / "latest_checkpointed_iteration.txt").write_text(str(iteration))
        takeover.say_if_leaving(["--lr", "1", "--load", str(tmp_path)])
        assert capsys.readouterr().out.count("is of an adaptive run: the stock blend reads") == lines


def test_stock_goes_on_from_an_adaptive_run_only_where_it_ended(tmp_path):
    """Two of three samples from the first prefix; the second has nine."""
    index_N = np.tile([0, 1, 0], 20)
    blend = BlendFacts(PREFIXES[::-1], (1.0, 2.0), (9, 100), (9, 100))
    path = sidecar_path(tmp_path, 3)

    def check(facts=blend, **changes):
        sidecar(tmp_path, 3, **changes)
        takeover.check_stock_continues(path, facts, 1 - index_N)

    check()
    for changes in (
        {"drawn": (15, 9)}, {"in_order": False}, {"origin": {"size": 1}}, {"consumed": 48, "drawn": (32, 16)},
        {"facts": BlendFacts(PREFIXES[::-1], (1.0, 2.0), (9, 100), (18, 100))},
    ):  # fmt: skip
        with pytest.raises(UserError, match="does not go on where that ended"):
            check(**changes)


def test_what_stock_asks_for_beyond_a_share_is_what_the_hosts_ask_for():
    from megatron.core.datasets.blended_megatron_dataset_config import BlendedMegatronDatasetConfig

    assert pytest.approx(SURPLUS) == 1 + BlendedMegatronDatasetConfig.mid_level_dataset_surplus
