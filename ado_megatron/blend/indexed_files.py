"""`.bin/.idx` pairs as their indices describe them, and the words of a blend.

numpy and the standard library alone.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ado_megatron.errors import UserError

_MAGIC = b"MMIDIDX\x00\x00"
_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.float64, 7: np.float32, 8: np.uint16}


@dataclass(frozen=True)
class Prefix:
    """One `.bin/.idx` pair as its index describes it."""

    path: str
    documents: int
    tokens: int
    dtype: type
    checksum: int  # of the documents' lengths

    def samples(self, seq_length: int) -> int:
        """Whole samples of one epoch; each needs one token more than it has, shared with the next."""
        return max(0, (self.tokens - 1) // seq_length)

    def identity(self) -> list:
        return [Path(self.path).name, self.documents, self.tokens, self.checksum]


def read_prefix(path: str) -> Prefix:
    """Read and check the index of one prefix. Raises UserError naming the file."""
    idx, bin_ = Path(path + ".idx"), Path(path + ".bin")
    for file, other in ((idx, bin_), (bin_, idx)):
        if not file.is_file():
            has = f" (but {other} does)" if other.is_file() else ""
            raise UserError(
                f"{file} does not exist{has}; a prefix needs PREFIX.bin and PREFIX.idx, made by `ado-megatron "
                "prepare` or Megatron's preprocess_data.py"
            )
    try:
        with open(idx, "rb") as stream:
            magic, header = stream.read(9), stream.read(25)
            if magic != _MAGIC or len(header) < 25:
                raise UserError(f"{idx} is not an index of Megatron (its first bytes are others); make it again")
            _, code, sequences, documents = struct.unpack("<QBQQ", header)
            lengths = np.fromfile(stream, dtype=np.int32, count=sequences)
        size, whole = bin_.stat().st_size, idx.stat().st_size >= 34 + 12 * sequences + 8 * documents
    except OSError as error:
        raise UserError(f"{idx} or {bin_} cannot be read: {error.strerror}") from error
    if code not in _DTYPES or not whole:
        raise UserError(f"{idx} is truncated or damaged; make it again")
    tokens = int(lengths.sum(dtype=np.int64))
    if size != tokens * np.dtype(_DTYPES[code]).itemsize:
        raise UserError(
            f"{bin_} has {size} bytes but {idx} describes {tokens * np.dtype(_DTYPES[code]).itemsize}; one of them "
            "is truncated or of another run of the tokenizer"
        )
    return Prefix(path, int(sequences), tokens, _DTYPES[code], zlib.crc32(lengths.tobytes()))


def parse_blend(words: list[str] | tuple[str, ...], source: str) -> tuple[list[float] | None, list[str]]:
    """Weights and prefixes of Megatron's `w1 p1 w2 p2 …`, or (None, prefixes) of prefixes alone. Raises UserError."""
    words = list(words)
    numbers = [_number(word) for word in words]
    if len(words) % 2 == 0 and words and all(number is not None for number in numbers[::2]):
        weights, prefixes = numbers[::2], words[1::2]
    elif all(number is None for number in numbers):
        weights, prefixes = None, words
    else:
        raise UserError(
            f"{source} must be pairs `weight prefix weight prefix …` or prefixes alone; got "
            f"{' '.join(words[:6])}{' …' if len(words) > 6 else ''}"
        )
    for weight, prefix in zip(weights or [], prefixes, strict=False):
        if not np.isfinite(weight) or weight < 0:
            raise UserError(f"the weight of {prefix} in {source} is {weight}; weights must be finite and not negative")
    if weights is not None and sum(weights) == 0:
        raise UserError(f"all weights in {source} are zero; give at least two a share")
    if len(prefixes) < 2:
        raise UserError(
            f"{source} names {len(prefixes)} domain{'s' if len(prefixes) != 1 else ''}; a mixture needs at least two"
        )
    twice = sorted({prefix for prefix in prefixes if prefixes.count(prefix) > 1})
    if twice:
        raise UserError(f"{source} names {twice[0]} twice; add its weights up")
    return weights, prefixes


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
