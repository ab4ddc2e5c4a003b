"""Global sample index and dataset in one int64, as a sample carries them to the loss.

    key = i · 2^15 + dataset_id
"""

from __future__ import annotations

from typing import TypeVar

Integers = TypeVar("Integers")  # int, or int64 numpy array or torch tensor

KEY_BITS = 15
KEY_MASK = (1 << KEY_BITS) - 1


def pack_key(i: Integers, dataset_id: Integers) -> Integers:
    """`ado_key` of global sample i (below 2^48) in a dataset (below 2^15); int64 arrays or tensors of one shape."""
    return i * (1 << KEY_BITS) + dataset_id  # type: ignore[operator, return-value]


def unpack_key(key: Integers) -> tuple[Integers, Integers]:
    """(i, dataset_id) of an `ado_key`, of the type and shape of `key`."""
    return key >> KEY_BITS, key & KEY_MASK  # type: ignore[operator, return-value]
