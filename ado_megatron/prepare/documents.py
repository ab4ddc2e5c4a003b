"""Reading documents: text files, JSON lines (plain, gzip, zstandard) and directories of them.

A source yields `(text, position)`: a document and how many bytes of the files have been read so far, for the progress
bar. Every failure is a UserError that names the domain and the file.
"""
from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ado_megatron.errors import UserError

JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclass(frozen=True)
class Demo:
    """Documents made on the spot (corpora.py). `make()` lists the texts of one domain."""

    name: str
    make: Callable[[], list[str]]

    def total_bytes(self) -> int:
        return sum(len(text.encode()) for text in self.make())

    def __iter__(self) -> Iterator[tuple[str, int]]:
        position = 0
        for text in self.make():
            position += len(text.encode())
            yield text, position


@dataclass(frozen=True)
class Files:
    """The documents of one domain on disk, in the order of the sorted paths.

    `suffixes`: which files of a directory are read. A text file is one document, but one longer than
    `document_chars` is cut at the blank lines (or line ends) that follow each `document_chars` characters.
    """

    name: str
    paths: tuple[Path, ...]
    text_key: str = "text"
    document_chars: int = 8192

    @classmethod
    def find(cls, name: str, path: str, suffixes: tuple[str, ...] = (), **options) -> Files:
        """The files at `path`. UserError when there is nothing to read."""
        wanted = (".txt", *JSON_SUFFIXES, *suffixes)
        root = Path(path).expanduser()
        if not root.exists():
            raise UserError(f"domain {name}: there is no file or directory {root}")
        if root.is_file():
            if not root.name.endswith(wanted):
                raise UserError(f"domain {name}: {root} ends in none of {' '.join(wanted)} (--suffix adds one)")
            return cls(name, (root,), **options)
        found = [Path(folder) / file for folder, _, files in os.walk(root) for file in files if file.endswith(wanted)]
        if not found:
            raise UserError(f"domain {name}: no file under {root} ends in {' '.join(wanted)} (--suffix adds one)")
        return cls(name, tuple(sorted(found)), **options)

    def total_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        before = 0
        for path in self.paths:
            read = self._json_lines if path.name.endswith(JSON_SUFFIXES) else self._text
            try:
                with closing(read(path)) as documents:
                    for text, position in documents:
                        yield text, before + position
            except UnicodeDecodeError as error:
                raise UserError(f"domain {self.name}: {path} is not UTF-8 text: {error.reason}") from error
            except (OSError, EOFError) as error:  # gzip: BadGzipFile is an OSError, a cut file an EOFError
                raise UserError(f"domain {self.name}: cannot read {path}: {error}") from error
            before += path.stat().st_size

    def _text(self, path: Path) -> Iterator[tuple[str, int]]:
        with open(path, encoding="utf-8") as file:
            pending, size = [], 0
            for line in file:
                pending.append(line)
                size += len(line)
                if size >= self.document_chars and (not line.strip() or size >= 2 * self.document_chars):
                    yield "".join(pending), file.buffer.tell()
                    pending, size = [], 0
            yield "".join(pending), file.buffer.tell()

    def _json_lines(self, path: Path) -> Iterator[tuple[str, int]]:
        with open(path, "rb") as raw, _decompressed(path, raw, self.name) as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    text = json.loads(line)[self.text_key]
                except (ValueError, KeyError, TypeError, IndexError) as error:
                    raise UserError(
                        f"domain {self.name}: line {number} of {path} is no JSON object with a {self.text_key!r} key "
                        f"(--text-key chooses another): {type(error).__name__}: {error}"
                    ) from error
                if not isinstance(text, str):
                    raise UserError(f"domain {self.name}: line {number} of {path}: {self.text_key!r} is not a string")
                yield text, raw.tell()


def _decompressed(path: Path, raw: io.BufferedReader, name: str):
    """Binary lines of an open file, decompressed as its name says."""
    if path.name.endswith(".gz"):
        return gzip.open(raw, "rb")
    if path.name.endswith(".zst"):
        import zstandard

        class Reader(io.BufferedReader):
            """zstandard's own error type is no OSError: say it as one, so that callers need not know the library."""

            def readline(self, size: int | None = -1) -> bytes:
                try:
                    return super().readline(size)
                except zstandard.ZstdError as error:
                    raise OSError(str(error)) from error

            def __next__(self) -> bytes:
                line = self.readline()
                if not line:
                    raise StopIteration
                return line

        return Reader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
    return io.BufferedReader(raw)


def digest(text: str) -> int:
    """64 bits of a document, whitespace at line ends aside: the same text in two places has the same digest."""
    normal = re.sub(r"[ \t]+\n", "\n", text).strip()
    return int.from_bytes(hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def in_validation(key: int, fraction: float, seed: int = 0) -> bool:
    """Whether the document of this digest is held out. A function of its content alone, so copies never straddle."""
    mixed = hashlib.blake2b(key.to_bytes(8, "little"), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(mixed, "little") < fraction * 2**64
