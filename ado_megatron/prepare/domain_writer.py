"""From the encoded documents of one domain to its two files, training and validation."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from ado_megatron.errors import UserError
from ado_megatron.prepare.documents import in_validation


class Builder(Protocol):
    """What is used of megatron-core's IndexedDatasetBuilder."""

    data_file: BinaryIO

    def add_document(self, tensor: np.ndarray, lengths: list[int]) -> None: ...

    def finalize(self, idx_path: str) -> None: ...


@dataclass
class Split:
    """One .bin/.idx pair in the making, with its counts."""

    prefix: Path
    builder: Builder
    documents: int = 0
    tokens: int = 0

    def add(self, ids: np.ndarray) -> None:
        self.builder.add_document(ids, [len(ids)])
        self.documents += 1
        self.tokens += len(ids)


@dataclass
class DomainWriter:
    """Sends the documents of one domain to train and validation.

    One document is held back: the one of the smallest digest so far. Should a small domain end with an empty side, it
    goes there, otherwise where its digest sends it.
    """

    name: str
    train: Split
    valid: Split
    fraction: float
    dedupe: bool
    seen: set[int] = field(default_factory=set)
    duplicates: int = 0
    held: tuple[int, np.ndarray] | None = None

    def add(self, key: int, ids: np.ndarray) -> None:
        if self.dedupe:
            if key in self.seen:
                self.duplicates += 1
                return
            self.seen.add(key)
        if self.held is None or key < self.held[0]:
            self.held, out = (key, ids), self.held
        else:
            out = (key, ids)
        if out is not None:
            self._side(out[0]).add(out[1])

    def _side(self, key: int) -> Split:
        return self.valid if in_validation(key, self.fraction) else self.train

    def finish(self) -> None:
        """Write both indices. UserError when there were fewer than two documents."""
        if self.held is None:
            raise UserError(f"domain {self.name}: there is no text in it")
        empty = [split for split in (self.train, self.valid) if not split.documents]
        if len(empty) == 2:
            raise UserError(
                f"domain {self.name}: one document only; training and validation need one each "
                "(a smaller --document-chars cuts a text file into more)"
            )
        (empty[0] if empty else self._side(self.held[0])).add(self.held[1])
        for split in (self.train, self.valid):
            split.builder.finalize(f"{split.prefix}.idx")

    def close(self) -> None:
        """Close the files, finished or not."""
        for split in (self.train, self.valid):
            split.builder.data_file.close()

    def summary(self) -> dict:
        return {
            "name": self.name,
            "prefix": self.train.prefix.name,
            "documents": self.train.documents,
            "tokens": self.train.tokens,
            "valid_prefix": self.valid.prefix.name,
            "valid_documents": self.valid.documents,
            "valid_tokens": self.valid.tokens,
            "duplicates": self.duplicates,
        }
