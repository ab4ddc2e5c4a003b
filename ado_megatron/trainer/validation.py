"""What can be known to be wrong with the data before a process starts: paths, indices, weights, lengths, vocabulary.

Runs in the launcher's parent and again on every rank (which then agree without talking). numpy and the standard
library alone: no torch.

Legend: C columns, one a prefix.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ado_megatron.errors import UserError
from ado_megatron.trainer.options import TrainerOptions

_MAGIC = b"MMIDIDX\x00\x00"
_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.float64, 7: np.float32, 8: np.uint16}
_LOOKED_AT = 1 << 20  # tokens of each end of a prefix that are held against the vocabulary


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


@dataclass(frozen=True)
class DataSpec:
    """Checked data of a run. weights_C: as given, None when prefixes came without; valid_C: None without validation
    data."""

    train_C: tuple[Prefix, ...]
    weights_C: tuple[float, ...] | None
    valid_C: tuple[Prefix, ...] | None
    vocab_size: int
    tokenizer: str | None


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


def check_data(options: TrainerOptions) -> DataSpec:
    """Read and check everything about the data. Raises UserError, one sentence, for the first thing wrong."""
    words, source, folder = _train_words(options)
    weights, prefixes = parse_blend(words, source)
    train = tuple(read_prefix(_resolve(prefix, folder)) for prefix in prefixes)
    for prefix in train:
        if prefix.samples(options.seq_length) < 1:
            raise UserError(
                f"{prefix.path} has {prefix.tokens} tokens, fewer than one sample of --seq-length "
                f"{options.seq_length} needs ({options.seq_length + 1}); drop the domain or shorten the samples"
            )
    valid = _valid_prefixes(options, folder, len(train))
    vocab_size, tokenizer = _vocabulary(options, folder)
    for prefix in train + (valid or ()):
        _check_tokens(prefix, vocab_size)
    return DataSpec(train, None if weights is None else tuple(weights), valid, vocab_size, tokenizer)


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _read_words(path: str | Path, flag: str) -> list[str]:
    try:
        words = Path(path).read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not words:
        raise UserError(f"{flag} {path} is empty; it must hold `weight prefix weight prefix …`")
    return words


def _train_words(options: TrainerOptions) -> tuple[list[str], str, Path | None]:
    if options.data_path is not None:
        return list(options.data_path), "--data-path", None
    if options.data_args_path is not None:
        return (
            _read_words(options.data_args_path, "--data-args-path"),
            f"--data-args-path {options.data_args_path}",
            None,
        )
    folder = Path(options.data)
    if not (folder / "blend.txt").is_file():
        raise UserError(
            f"--data {folder} has no blend.txt; make the directory with `ado-megatron prepare`, or name prefixes "
            "with --data-path"
        )
    return _read_words(folder / "blend.txt", "--data"), str(folder / "blend.txt"), folder


def _resolve(prefix: str, folder: Path | None) -> str:
    """A prefix of a prepared directory may be relative to it, also after the directory was moved."""
    if folder is not None and not Path(prefix + ".idx").is_file():
        return str(folder / prefix) if (folder / (prefix + ".idx")).is_file() else str(folder / Path(prefix).name)
    return prefix


def _valid_prefixes(options: TrainerOptions, folder: Path | None, num_train: int) -> tuple[Prefix, ...] | None:
    if options.valid_data_path is not None:
        words, source = list(options.valid_data_path), "--valid-data-path"
    elif options.valid_data_args_path is not None:
        words, source = _read_words(options.valid_data_args_path, "--valid-data-args-path"), "--valid-data-args-path"
    elif folder is not None and (folder / "valid_blend.txt").is_file():
        words, source = _read_words(folder / "valid_blend.txt", "--data"), str(folder / "valid_blend.txt")
    else:
        return None
    _, prefixes = parse_blend(words, source)
    if len(prefixes) != num_train:
        raise UserError(
            f"{source} names {len(prefixes)} prefixes but there are {num_train} to train on; give one for each, in "
            "the same order"
        )
    return tuple(read_prefix(_resolve(prefix, folder)) for prefix in prefixes)


def _vocabulary(options: TrainerOptions, folder: Path | None) -> tuple[int, str | None]:
    tokenizer = options.tokenizer
    if tokenizer is None and folder is not None:
        found = [name for name in ("tokenizer.model", "tokenizer.json") if (folder / name).is_file()]
        tokenizer = str(folder / found[0]) if found else None
    size = None if tokenizer is None else _tokenizer_size(tokenizer)
    if size is None and folder is not None and (folder / "manifest.json").is_file():
        size = json.loads((folder / "manifest.json").read_text()).get("vocab_size")
    if options.vocab_size is not None and size is not None and size > options.vocab_size:
        raise UserError(
            f"the tokenizer {tokenizer or folder} has {size} tokens but --vocab-size gives the model "
            f"{options.vocab_size}; make it at least {size} or leave it out"
        )
    size = options.vocab_size or size
    if size is None:
        raise UserError("the size of the vocabulary is unknown; give --tokenizer or --vocab-size")
    return int(size), tokenizer


def _tokenizer_size(path: str) -> int:
    try:
        if path.endswith(".json"):
            content = json.loads(Path(path).read_text())
            entries = content["model"]["vocab"]
            last = max(entries.values()) if isinstance(entries, dict) else len(entries) - 1
            return 1 + max([last, *(token["id"] for token in content.get("added_tokens", []))])
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_file=path).vocab_size()
    except ImportError as error:
        raise UserError(
            f"reading the tokenizer {path} needs the package sentencepiece; install it or give --vocab-size alone"
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the tokenizer {path} cannot be read as a sentencepiece model or a tokenizer.json: "
            f"{str(error).splitlines()[0][:120]}"
        ) from error


def _check_tokens(prefix: Prefix, vocab_size: int) -> None:
    """Look at both ends of the tokens: an id outside the vocabulary would stop the run far inside, with an index
    error."""
    if prefix.tokens == 0:
        return
    tokens = np.memmap(prefix.path + ".bin", dtype=prefix.dtype, mode="r")
    high = max(int(tokens[:_LOOKED_AT].max()), int(tokens[-_LOOKED_AT:].max()))
    low = min(int(tokens[:_LOOKED_AT].min()), int(tokens[-_LOOKED_AT:].min()))
    if high >= vocab_size or low < 0:
        wrong = high if high >= vocab_size else low
        raise UserError(
            f"{prefix.path}.bin holds the token id {wrong} but the vocabulary has {vocab_size}; it was made with "
            "another tokenizer, or --vocab-size is too small"
        )
