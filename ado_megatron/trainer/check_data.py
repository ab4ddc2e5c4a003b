"""What can be known to be wrong with the data before a process starts: paths, indices, weights, lengths, vocabulary.

Runs in the launcher's parent and again on every rank (which then agree without talking). numpy and the standard
library alone: no torch.

Legend: C datasets (one per prefix).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ado_megatron.blend.indexed_files import Prefix, check_distinct, parse_blend, read_prefix
from ado_megatron.errors import UserError
from ado_megatron.files import read_text
from ado_megatron.trainer.options import TrainerOptions

_LOOKED_AT = 1 << 20  # tokens of each end of a prefix that are held against the vocabulary


@dataclass(frozen=True)
class DataSpec:
    """Checked data of a run. weights_C: as given, None when prefixes came without; valid_C: None without validation
    data."""

    train_C: tuple[Prefix, ...]
    weights_C: tuple[float, ...] | None
    valid_C: tuple[Prefix, ...] | None
    vocab_size: int
    tokenizer: str | None


def check_data(options: TrainerOptions) -> DataSpec:
    """Read and check everything about the data. Raises UserError, one sentence, for the first thing wrong."""
    words, source, folder = _train_words(options)
    weights, prefixes = parse_blend(words, source)
    train = tuple(read_prefix(_resolve(prefix, folder)) for prefix in prefixes)
    check_distinct(train, source)
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


def _read_words(path: str | Path, flag: str) -> list[str]:
    """The words of a blend file."""
    words = read_text(path, f"{flag} {path} cannot be read").split()
    if not words:
        raise UserError(f"{flag} {path} is empty; it must hold `weight prefix weight prefix …`")
    return words


def _train_words(options: TrainerOptions) -> tuple[list[str], str, Path | None]:
    """The words of the blend, what they come from, and the prepared directory that they belong to, if any."""
    if options.data_path is not None:
        return list(options.data_path), "--data-path", None
    if options.data_args_path is not None:
        path = options.data_args_path
        return _read_words(path, "--data-args-path"), f"--data-args-path {path}", _prepared(path)
    folder = Path(options.data or "")
    if not (folder / "blend.txt").is_file():
        raise UserError(
            f"--data {folder} has no blend.txt; make the directory with `ado-megatron prepare`, or name prefixes "
            "with --data-path"
        )
    return _read_words(folder / "blend.txt", "--data"), str(folder / "blend.txt"), folder


def _prepared(path: str) -> Path | None:
    """The directory of a blend file, if `ado-megatron prepare` made it."""
    folder = Path(path).parent
    return folder if (folder / "manifest.json").is_file() else None


def _resolve(prefix: str, folder: Path | None) -> str:
    """Where a prefix of a blend lies. A prepared directory reads its own files, also after it was moved or copied: the
    paths in its blend are those of the place where it was made."""
    if folder is None:
        return prefix
    beside = folder / Path(prefix).name
    for own in (beside,) if Path(prefix).is_absolute() else (folder / prefix, beside):
        if os.path.isfile(f"{own}.idx") or os.path.isfile(f"{own}.bin"):
            return str(own)
    return prefix


def _valid_prefixes(options: TrainerOptions, folder: Path | None, num_train: int) -> tuple[Prefix, ...] | None:
    """The validation prefixes, one for each train prefix; None where there are none."""
    if options.valid_data_path is not None:
        folder = None
        words, source = list(options.valid_data_path), "--valid-data-path"
    elif options.valid_data_args_path is not None:
        path = options.valid_data_args_path
        words, source = _read_words(path, "--valid-data-args-path"), f"--valid-data-args-path {path}"
        folder = _prepared(path)
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
    valid = tuple(read_prefix(_resolve(prefix, folder)) for prefix in prefixes)
    check_distinct(valid, source)
    return valid


def _vocabulary(options: TrainerOptions, folder: Path | None) -> tuple[int, str | None]:
    """Size of the vocabulary, and the tokenizer that it is of, if known."""
    tokenizer = options.tokenizer
    if tokenizer is None and folder is not None:
        found = [name for name in ("tokenizer.model", "tokenizer.json") if (folder / name).is_file()]
        tokenizer = str(folder / found[0]) if found else None
    size = None if tokenizer is None else _tokenizer_size(tokenizer)
    if size is None and folder is not None and (folder / "manifest.json").is_file():
        size = _prepared_size(folder / "manifest.json")
    if options.vocab_size is not None and size is not None and size > options.vocab_size:
        raise UserError(
            f"the tokenizer {tokenizer or folder} has {size} tokens but --vocab-size gives the model "
            f"{options.vocab_size}; make it at least {size} or leave it out"
        )
    size = options.vocab_size or size
    if size is None:
        raise UserError("the size of the vocabulary is unknown; give --tokenizer or --vocab-size")
    return int(size), tokenizer


def _prepared_size(manifest: Path) -> int | None:
    """What `ado-megatron prepare` says of the vocabulary; None where it does not."""
    try:
        size = json.loads(read_text(manifest, f"{manifest} cannot be read")).get("vocab_size")
        return None if size is None else int(size)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{manifest} is damaged ({error}); prepare the data anew, or give --tokenizer or --vocab-size and the "
            "prefixes"
        ) from error


def _tokenizer_size(path: str) -> int:
    """The largest id of a tokenizer file and one."""
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
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"the tokenizer {path} cannot be read as a sentencepiece model or a tokenizer.json: {reason}"
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
