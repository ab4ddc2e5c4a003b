"""The key of a sample: index and dataset in one int64, for Python integers, arrays and tensors alike."""

import numpy as np
import pytest
import torch

from ado_megatron.stream.sample_key import KEY_BITS, KEY_MASK, pack_key, unpack_key
from ado_megatron.stream.schedule import MAX_DATASETS

LAST = (1 << 48) - 1  # the last index whose key fits 63 bits


def test_keys_by_hand():
    assert pack_key(0, 0) == 0 and pack_key(0, 7) == 7
    assert pack_key(1, 0) == 32768 and pack_key(3, 5) == 98309
    assert unpack_key(98309) == (3, 5)


def test_every_dataset_has_room():
    assert MAX_DATASETS - 1 <= KEY_MASK == 2**KEY_BITS - 1


@pytest.mark.parametrize("i", [0, 1, 2**31, 2**40 + 3, LAST])
@pytest.mark.parametrize("dataset_id", [0, 1, MAX_DATASETS - 1])
def test_a_key_is_undone_and_fits_an_int64(i, dataset_id):
    assert unpack_key(pack_key(i, dataset_id)) == (i, dataset_id)
    assert pack_key(i, dataset_id) < 2**63


def test_arrays_and_tensors_keep_their_type_and_their_values():
    i_N, dataset_N = np.array([0, 5, LAST]), np.array([3, 0, MAX_DATASETS - 1])
    wanted = [pack_key(int(i), int(c)) for i, c in zip(i_N, dataset_N, strict=True)]
    for make in (np.asarray, torch.tensor):
        key_N = pack_key(make(i_N), make(dataset_N))
        assert "int64" in str(key_N.dtype) and key_N.tolist() == wanted
        back = unpack_key(key_N)
        assert [part.tolist() for part in back] == [i_N.tolist(), dataset_N.tolist()]
