"""Tokenizing in worker processes, in the order of the input, with a bounded number of documents in flight."""
from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import numpy as np

from ado_megatron.errors import UserError
from ado_megatron.prepare.documents import digest
from ado_megatron.prepare.tokenizer import Tokenizer, TokenizerFile
from ado_megatron.processes import die_with_parent

CHUNK_CHARS = 200_000  # what a worker gets at a time
HUGE_CHARS = 50_000_000  # a document that can take a worker's memory by itself

Encoded = list[tuple[int, np.ndarray]]  # digest and token ids (int32) of each document

_tokenizer: Tokenizer | None = None  # of a worker process, opened once


def _start_worker(definition: TokenizerFile, parent: int) -> None:
    """In a worker: end with the parent, whatever ends it, and leave Ctrl-C to it."""
    global _tokenizer
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _tokenizer = definition.open()


def _encode(texts: list[str]) -> Encoded:
    assert _tokenizer is not None, "the worker was not started"
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

    def __init__(self, definition: TokenizerFile, workers: int) -> None:
        self._window = 3 * workers
        arguments = (definition, os.getpid())
        self._pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, arguments)

    def __call__(self, documents: Iterable[tuple[str, int]]) -> Iterator[tuple[Encoded, int]]:
        """(documents, position after them) of each chunk. Raises UserError when a worker dies."""
        pending: deque[tuple[Future[Encoded], int]] = deque()
        longest = 0
        try:
            for texts, position in chunks(documents):
                longest = max(longest, *map(len, texts), 0)
                pending.append((self._pool.submit(_encode, texts), position))
                if len(pending) > self._window:
                    yield self._result(pending)
            while pending:
                yield self._result(pending)
        except BrokenProcessPool as error:
            what_helps = "give fewer --workers"
            if longest > HUGE_CHARS:
                what_helps = f"a document here has {longest:,} characters in one piece: cut it into several"
            raise UserError(f"a tokenizing process died, most likely for want of memory; {what_helps}") from error

    @staticmethod
    def _result(pending: deque[tuple[Future[Encoded], int]]) -> tuple[Encoded, int]:
        future, position = pending.popleft()
        return future.result(), position

    def close(self) -> None:
        """Stop the workers."""
        self._pool.shutdown(wait=True, cancel_futures=True)
