"""What is read from megatron-core's dataset configuration, and left in it as it was."""

from types import SimpleNamespace

from ado_megatron.hosts import megatron_core

BLEND = (["a", "b"], [0.7, 0.3])
PER_SPLIT = SimpleNamespace(blend=None, blend_per_split=[BLEND, (["v"], None), None], split_matrix=None)


def whole(train=(0, 0.9)):
    return SimpleNamespace(blend=BLEND, blend_per_split=None, split_matrix=[train, (0.9, 1.0), None])


def test_the_train_blend_and_its_part_of_every_prefix():
    assert megatron_core._train_blend(whole()) == (["a", "b"], [0.7, 0.3], (0, 0.9))
    assert megatron_core._train_blend(whole(train=None)) is None
    assert megatron_core._train_blend(PER_SPLIT) == (["a", "b"], [0.7, 0.3], (0.0, 1.0))
    assert megatron_core._train_blend(SimpleNamespace(blend=None, blend_per_split=None)) is None


def test_the_prefixes_of_validation_and_test():
    assert [megatron_core._eval_prefixes(whole(), split) for split in (1, 2)] == [["a", "b"], ["a", "b"]]
    assert [megatron_core._eval_prefixes(PER_SPLIT, split) for split in (1, 2)] == [["v"], []]


def test_splits_are_hidden_for_a_while():
    for config, name in ((whole(), "split_matrix"), (PER_SPLIT, "blend_per_split")):
        before = list(getattr(config, name))
        with megatron_core._splits(config, lambda split: split != 0):
            assert getattr(config, name) == [None, *before[1:]]
        assert getattr(config, name) == before


def test_a_batch_leaves_the_rerun_iterator_without_our_keys_and_its_dataset_id():
    session = SimpleNamespace(drawn=lambda batch: {key: value for key, value in batch.items() if key != "ado_key"})
    hooked = megatron_core._next(session, None, lambda self: {"tokens": 1, "dataset_id": 2, "ado_key": 3})
    assert hooked(None) == {"tokens": 1}
