"""Tokenizers as prepare needs them: train or load a sentencepiece model, or load a Hugging Face tokenizer.json.

`encode(text)` gives the ids of one document, end-of-document id included. Objects are rebuilt in worker processes from
`(kind, bytes, eod)`, so nothing but bytes crosses a process border.
"""
from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ado_megatron.errors import UserError

EOD_CANDIDATES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")


@dataclass(frozen=True)
class TokenizerFile:
    """What defines a tokenizer: `kind` ("sentencepiece" or "huggingface"), the file's bytes, the end-of-document token
    (None: sentencepiece's own end of sentence; for Hugging Face the first known one)."""

    kind: str
    data: bytes
    eod: str | None = None

    @property
    def file_name(self) -> str:
        """What the file is called in a prepared directory."""
        return "tokenizer.model" if self.kind == "sentencepiece" else "tokenizer.json"

    def open(self) -> Tokenizer:
        """The tokenizer itself. Raises UserError without an end-of-document token."""
        return Tokenizer(self)


def load(path: str, eod: str | None = None) -> TokenizerFile:
    """A tokenizer file of the user. UserError when it cannot be read as one."""
    file = Path(path).expanduser()
    if file.is_dir() and (file / "tokenizer.json").exists():
        file = file / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"there is no tokenizer file {file}")
    definition = TokenizerFile("huggingface" if file.suffix == ".json" else "sentencepiece", file.read_bytes(), eod)
    try:
        definition.open()
    except UserError:
        raise
    except Exception as error:  # both libraries raise bare Exception or RuntimeError on a damaged file
        raise UserError(f"{file} cannot be read as a {definition.kind} tokenizer: {error}") from error
    return definition


class Tokenizer:
    """An opened tokenizer: `vocab_size`, `eod_id`, `encode(text) -> int32 array`."""

    def __init__(self, definition: TokenizerFile) -> None:
        if definition.kind == "sentencepiece":
            self._open_sentencepiece(definition)
        else:
            self._open_huggingface(definition)

    def _open_sentencepiece(self, definition: TokenizerFile) -> None:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_proto=definition.data)
        self.vocab_size = processor.vocab_size()
        self.eod_id = processor.piece_to_id(definition.eod) if definition.eod else processor.eos_id()
        if self.eod_id < 0 or (definition.eod and processor.is_unknown(self.eod_id)):
            raise UserError(
                f"the sentencepiece model has no end-of-document token {definition.eod or '</s>'}; name one with --eod"
            )
        self._ids: Callable[[str], list[int]] = processor.encode

    def _open_huggingface(self, definition: TokenizerFile) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise UserError("a Hugging Face tokenizer file needs: pip install 'ado-megatron[tokenizers]'") from error
        tokenizer = tokenizers.Tokenizer.from_str(definition.data.decode())
        self.vocab_size = tokenizer.get_vocab_size()
        names = (definition.eod,) if definition.eod else EOD_CANDIDATES
        found = [token for name in names if (token := tokenizer.token_to_id(name)) is not None]
        if not found:
            raise UserError(f"the tokenizer has none of {' '.join(names)}; name its end-of-document token with --eod")
        self.eod_id = found[0]
        self._ids = lambda text: tokenizer.encode(text, add_special_tokens=False).ids

    def encode(self, text: str) -> np.ndarray:
        """Token ids of one document and the end-of-document id, int32."""
        text = text.encode("utf-8", "replace").decode()  # a lone surrogate out of JSON has no bytes of its own
        return np.asarray([*self._ids(text), self.eod_id], dtype=np.int32)


def train_sentencepiece(texts: Iterable[str], vocab_size: int, *, threads: int = 1) -> TokenizerFile:
    """A byte-level-complete BPE model: what it decodes is what was encoded, white space and all.

    Raises UserError when the sample is too small for the vocabulary.
    """
    import sentencepiece

    lines = (line[at : at + 2000] for text in texts for line in text.split("\n") for at in range(0, len(line), 2000))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=model, vocab_size=vocab_size, model_type="bpe",
            byte_fallback=True, character_coverage=0.9995, normalization_rule_name="identity",
            remove_extra_whitespaces=False, add_dummy_prefix=False, allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n"], max_sentence_length=8192, num_threads=threads, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise UserError(
            f"no tokenizer of {vocab_size} pieces can be trained on this text; give a smaller --vocab-size "
            f"(sentencepiece says: {str(error).splitlines()[0]})"
        ) from error
    return TokenizerFile("sentencepiece", model.getvalue())
