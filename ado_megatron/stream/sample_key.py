"""Global sample index and column in one int64, as a sample carries them to the loss.

    key = i · 2^15 + column
"""

from __future__ import annotations

KEY_BITS = 15
KEY_MASK = (1 << KEY_BITS) - 1


def pack_key(i, column):
    """`ado_key` of global sample i in a column; integers, or int64 arrays or tensors."""
    return i * (1 << KEY_BITS) + column


def unpack_key(key):
    """(i, column) of an `ado_key`; integers, or int64 arrays or tensors."""
    return key >> KEY_BITS, key & KEY_MASK
