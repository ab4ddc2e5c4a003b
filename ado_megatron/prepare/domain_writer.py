"""From the encoded documents of one domain to its two files, training and validation."""
from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from ado_megatron.errors import UserError
from ado_megatron.prepare.documents import in_validation, place

MOST = 0.1  # of a domain's tokens that are held out for the sake of `valid_tokens`


class OneDocument(UserError):
    """A domain of a single document, which cannot be both trained on and held out."""


class Builder(Protocol):
    """What is used of megatron-core's IndexedDatasetBuilder."""

    data_file: BinaryIO

    def add_document(self, tensor: np.ndarray, lengths: list[int]) -> None:
        """Append a document of one sequence."""

    def finalize(self, idx_path: str) -> None:
        """Write the index."""


@dataclass
class Split:
    """One .bin/.idx pair in the making, with its counts."""

    prefix: Path
    builder: Builder
    documents: int = 0
    tokens: int = 0

    def add(self, ids: np.ndarray) -> None:
        """Append a document, token ids in int32. Raises OSError on a full disk."""
        self.builder.add_document(ids, [len(ids)])
        self.documents += 1
        self.tokens += len(ids)


@dataclass
class DomainWriter:
    """Sends the documents of one domain to train and validation.

    A document is held out when its digest says so (`fraction` of all). If these are fewer tokens than `valid_tokens`,
    or than MOST of the domain if that is less, the documents next in the order of their digests are held out as well,
    at least one. Both depend on the content alone. The candidates wait in memory: `valid_tokens` and one document.
    """

    name: str
    train: Split
    valid: Split
    fraction: float
    dedupe: bool
    valid_tokens: int = 0
    seen: set[int] = field(default_factory=set)
    duplicates: int = 0
    order: list[tuple[int, int]] = field(default_factory=list)  # heap of (−place, digest) of the candidates
    waiting: dict[int, list[np.ndarray]] = field(default_factory=dict)  # digest → ids of all copies
    waiting_tokens: int = 0
    last: tuple[int, np.ndarray] | None = None  # of those held out by their digests, the one of the last place

    def add(self, key: int, ids: np.ndarray) -> None:
        """Take one document: its digest and its token ids, int32."""
        if self.dedupe:
            if key in self.seen:
                self.duplicates += 1
                return
            self.seen.add(key)
        if in_validation(key, self.fraction):
            self._hold_out(place(key), ids)
        else:
            if key not in self.waiting:
                heapq.heappush(self.order, (-place(key), key))
            self.waiting.setdefault(key, []).append(ids)
            self.waiting_tokens += len(ids)
        self._let_go()

    def _hold_out(self, at: int, ids: np.ndarray) -> None:
        """Into validation, but for the last one in order, which a domain without any other document trains on."""
        before, out = self.last, ids
        if before is None or at > before[0]:
            self.last = at, ids
            if before is None:
                return
            out = before[1]
        self.valid.add(out)

    def _let_go(self) -> None:
        """Send to train what will not be needed: the candidates before it are enough."""
        need = max(self.valid_tokens - self.valid.tokens, 1)
        while len(self.order) > 1:
            copies = self.waiting[self.order[0][1]]
            tokens = sum(map(len, copies))
            if self.waiting_tokens - tokens < need:
                break
            self.waiting_tokens -= tokens
            del self.waiting[heapq.heappop(self.order)[1]]
            for ids in copies:
                self.train.add(ids)

    def finish(self) -> None:
        """Write both indices. UserError when there were fewer than two documents."""
        self._settle()
        for split in (self.train, self.valid):
            split.builder.finalize(f"{split.prefix}.idx")

    def _settle(self) -> None:
        """Decide about the documents that wait."""
        documents = self.train.documents + self.valid.documents + sum(map(len, self.waiting.values())) + bool(self.last)
        if documents == 0:
            raise UserError(f"domain {self.name}: there is no text in it")
        if documents == 1:
            raise OneDocument(f"domain {self.name}: one document only; training and validation need one each")
        if self.last is not None:
            none_left = self.train.documents + len(self.waiting) == 0
            (self.train if none_left else self.valid).add(self.last[1])
        total = self.train.tokens + self.valid.tokens + self.waiting_tokens
        floor = max(1, min(self.valid_tokens, int(MOST * total)))
        for number, (_, key) in enumerate(sorted(self.order, reverse=True), 1):
            only_one_for_train = number == len(self.order) and self.train.documents == 0
            enough = self.valid.tokens >= floor or only_one_for_train
            for ids in self.waiting[key]:
                (self.train if enough else self.valid).add(ids)
        self.waiting.clear()
        self.order.clear()

    def close(self) -> None:
        """Close the files, finished or not."""
        for split in (self.train, self.valid):
            split.builder.data_file.close()

    def summary(self) -> dict[str, Any]:
        """Names and counts, for the manifest."""
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
