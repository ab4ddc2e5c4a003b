"""Tokenizing in worker processes, in the order of the input, with a bounded number of documents in flight."""
from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import numpy as np

from ado_megatron.errors import UserError
from ado_megatron.prepare.documents import digest
from ado_megatron.prepare.tokenizer import TokenizerFile

CHUNK_CHARS = 200_000  # what a worker gets at a time

_tokenizer = None  # of a worker process, opened once


def _open_tokenizer(definition: TokenizerFile) -> None:
    global _tokenizer
    _tokenizer = definition.open()


def _encode(texts: list[str]) -> list[tuple[int, np.ndarray]]:
    return [(digest(text), _tokenizer.encode(text)) for text in texts]


def chunks(documents: Iterable[tuple[str, int]]) -> Iterator[tuple[list[str], int]]:
    """Documents with some text in them, gathered to lists of about CHUNK_CHARS; with the position after the list."""
    texts, size, position = [], 0, 0
    for text, position in documents:
        if text.strip():
            texts.append(text)
            size += len(text)
        if size >= CHUNK_CHARS:
            yield texts, position
            texts, size = [], 0
    yield texts, position


class Encoder:
    """Worker processes that tokenize. Results come in the order of the input; a few chunks a worker are in flight."""

    def __init__(self, definition: TokenizerFile, workers: int):
        self._window = 3 * workers
        self._pool = ProcessPoolExecutor(workers, get_context("spawn"), _open_tokenizer, (definition,))

    def __call__(self, documents: Iterable[tuple[str, int]]) -> Iterator[tuple[list[tuple[int, np.ndarray]], int]]:
        pending: deque = deque()
        try:
            for texts, position in chunks(documents):
                pending.append((self._pool.submit(_encode, texts), position))
                if len(pending) > self._window:
                    yield self._result(pending)
            while pending:
                yield self._result(pending)
        except BrokenProcessPool as error:
            raise UserError(
                "a tokenizing process died, most likely for want of memory; give fewer --workers"
            ) from error

    @staticmethod
    def _result(pending: deque):
        future, position = pending.popleft()
        return future.result(), position

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
