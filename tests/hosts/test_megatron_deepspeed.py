"""What is read from Megatron-DeepSpeed's arguments and datasets."""

from types import SimpleNamespace

import numpy as np
import pytest

from ado_megatron.errors import UserError
from ado_megatron.hosts import megatron_deepspeed


def test_a_path_option_is_a_prefix_or_weights_and_prefixes_in_turn():
    prefixes = megatron_deepspeed._prefixes
    assert prefixes(None) == [] and prefixes([" a "]) == ["a"] and prefixes(["0.7", "a", "0.3", " b"]) == ["a", "b"]


def dataset(*documents):
    return SimpleNamespace(doc_idx=np.array(documents))


def test_every_prefix_must_have_one_epoch_of_documents():
    check = megatron_deepspeed._check_one_epoch
    check([dataset(3, 1, 2), dataset(0)], ["a", "b"], 32)
    with pytest.raises(UserError, match="1 of the prefixes a, b have no document in the train split"):
        check([dataset(3, 1, 2)], ["a", "b"], 32)
    with pytest.raises(UserError, match="b: the train split holds less than one sample of 32 tokens"):
        check([dataset(3, 1, 2), dataset(0, 1, 1, 0)], ["a", "b"], 32)
