"""`.bin/.idx` pairs as their indices describe them, and the words of a blend.

numpy and the standard library alone.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ado_megatron.errors import UserError

SAMPLES, SAMPLE_BYTES = 8, 2048  # blocks of a .bin that stand for its content
_READERS = 16  # threads: on a shared file system most of a small read is waiting
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
    content: int  # of samples of the tokens (sampled_content)
    file: tuple[int, int]  # device and number of the .bin, the same by whatever path it is reached

    def samples(self, seq_length: int) -> int:
        """Whole samples of one epoch; each needs one token more than it has, shared with the next."""
        return max(0, (self.tokens - 1) // seq_length)

    def identity(self) -> list:
        """What makes two prefixes the same data wherever they lie; JSON values."""
        return [Path(self.path).name, self.documents, self.tokens, self.checksum, self.content]


def read_prefix(path: str) -> Prefix:
    """Read and check the index of one prefix. Raises UserError naming the file."""
    idx, bin_ = Path(path + ".idx"), Path(path + ".bin")
    for file, other in ((idx, bin_), (bin_, idx)):
        if not _is_file(file):
            has = f" (but {other} does)" if _is_file(other) else ""
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
        stat, whole = bin_.stat(), idx.stat().st_size >= 34 + 12 * sequences + 8 * documents
        content = sampled_content(bin_)
    except OSError as error:
        raise UserError(f"{idx} or {bin_} cannot be read: {error.strerror}") from error
    if code not in _DTYPES or not whole:
        raise UserError(f"{idx} is truncated or damaged; make it again")
    tokens = int(lengths.sum(dtype=np.int64))
    if stat.st_size != tokens * np.dtype(_DTYPES[code]).itemsize:
        raise UserError(
            f"{bin_} has {stat.st_size} bytes but {idx} describes {tokens * np.dtype(_DTYPES[code]).itemsize}; one of "
            "them is truncated or of another run of the tokenizer"
        )
    checksum, file_id = zlib.crc32(lengths.tobytes()), (stat.st_dev, stat.st_ino)
    return Prefix(path, int(sequences), tokens, _DTYPES[code], checksum, content, file_id)


def _is_file(path: Path) -> bool:
    """Whether there is such a file. Raises UserError for a path that cannot even be looked up, such as one too long."""
    try:
        return path.is_file()
    except OSError as error:
        name = str(path) if len(str(path)) < 160 else f"{str(path)[:60]}…{str(path)[-60:]}"
        raise UserError(f"{name} cannot be looked up: {error.strerror}") from error


def sampled_content(path: str | os.PathLike) -> int:
    """A digest (63 bits) of SAMPLES blocks of a file, evenly spread from its beginning to its end.

    It costs SAMPLES small reads whatever the size, so it is affordable for 10,000 prefixes. A file of other content is
    told apart unless it agrees in all of these blocks: another tokenizer, corpus or order of documents never does, an
    edit in one place may. Raises OSError.
    """
    digest = hashlib.blake2b(digest_size=8)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(size.to_bytes(8, "little"))
        last = max(0, size - SAMPLE_BYTES)
        for number in range(SAMPLES):
            file.seek(last * number // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return int.from_bytes(digest.digest(), "little") >> 1


@dataclass(frozen=True)
class BinFile:
    """What can be said of a `.bin` without its index. path: the prefix; content and file: as of Prefix."""

    path: str
    content: int
    file: tuple[int, int]


def look_at(prefixes: Sequence[str]) -> list[BinFile | None]:
    """The `.bin` of each prefix; None for one that is no file here, such as one in an object store. UserError for one
    that cannot be read."""

    def one(prefix: str) -> BinFile | None:
        path = Path(prefix + ".bin")
        try:
            stat = path.stat()
            return BinFile(prefix, sampled_content(path), (stat.st_dev, stat.st_ino))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error

    with ThreadPoolExecutor(_READERS) as threads:
        return list(threads.map(one, prefixes))


def check_distinct(prefixes: Sequence[Prefix | BinFile], source: str) -> None:
    """UserError if two prefixes are one file by different paths (a link, `./`, an absolute path): the domain would
    count twice."""
    seen: dict[tuple[int, int], str] = {}
    for prefix in prefixes:
        other = seen.setdefault(prefix.file, prefix.path)
        if other is not prefix.path:
            raise UserError(
                f"{source} names one domain twice: {other}.bin and {prefix.path}.bin are the same file; keep one of "
                "them, with the sum of their weights"
            )


def reads_elsewhere(blend_file: str | os.PathLike) -> str | None:
    """A sentence where a blend file of `ado-megatron prepare` names files of another directory although its own lie
    beside it: that directory was copied. None for any other file."""
    folder = Path(blend_file).absolute().parent
    try:
        words = Path(blend_file).read_text().split() if (folder / "manifest.json").is_file() else []
    except (OSError, UnicodeDecodeError):
        return None  # whoever reads it will say so
    for path in map(Path, words):
        if path.is_absolute() and path.parent.resolve() != folder.resolve() and _is_file(folder / f"{path.name}.bin"):
            return (
                f"{blend_file} names {path}, not the {path.name} beside it: the directory was copied; write the paths "
                "in it anew to read its own files"
            )
    return None


def parse_blend(words: list[str] | tuple[str, ...], source: str) -> tuple[list[float] | None, list[str]]:
    """Weights and prefixes of Megatron's `w1 p1 w2 p2 …`, or (None, prefixes) of prefixes alone.

    source: what the words come from, for messages. Raises UserError for a list of another form, a weight that is none,
    fewer than two domains, one named twice, and a name that is not UTF-8.
    """
    words = list(words)
    for word in words:
        if not is_text(word):
            raise UserError(f"{source} names {word!r}, which is not UTF-8; rename the files, or link them by a name")
    numbers = [_number(word) for word in words]
    weights: list[float] | None = [number for number in numbers[::2] if number is not None]
    if len(words) % 2 == 0 and words and len(weights or []) == len(words) // 2:
        prefixes = words[1::2]
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


def is_text(word: str) -> bool:
    """False for bytes of a path that are no UTF-8, as Python hands them over, and for a zero byte."""
    return "\0" not in word and word == word.encode("utf-8", "replace").decode()


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
