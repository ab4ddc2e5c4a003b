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
import stat as stat_module
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ado_megatron.errors import UserError

JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclass(frozen=True)
class Demo:
    """Documents made on the spot (corpora.py). `make()` lists the texts of one domain."""

    name: str
    make: Callable[[], Sequence[str]]

    def can_be_cut(self) -> bool:
        """Whether `document_chars` makes more documents of it."""
        return False

    def total_bytes(self) -> int:
        """Bytes of all documents."""
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
    def find(cls, name: str, path: str, suffixes: tuple[str, ...] = (), **options: Any) -> Files:
        """The files at `path`. UserError when there is nothing to read, or something that is no file."""
        wanted = (".txt", *JSON_SUFFIXES, *suffixes)
        root = Path(path).expanduser()
        if not os.path.lexists(root):
            raise UserError(f"domain {name}: there is no file or directory {root}")
        if not root.is_dir():
            _require_file(name, root)
            if not root.name.endswith(wanted):
                raise UserError(f"domain {name}: {root} ends in none of {' '.join(wanted)} (--suffix adds one)")
            return cls(name, (root,), **options)
        found = [file for file in _walk(root) if file.name.endswith(wanted)]
        for file in found:
            _require_file(name, file)
        if not found:
            raise UserError(f"domain {name}: no file under {root} ends in {' '.join(wanted)} (--suffix adds one)")
        return cls(name, tuple(sorted(found)), **options)

    def total_bytes(self) -> int:
        """Bytes of all files, as they lie on the disk."""
        return sum(path.stat().st_size for path in self.paths)

    def can_be_cut(self) -> bool:
        """Whether a smaller `document_chars` makes more documents of it: a text file with a line end inside."""
        for path in self.paths:
            if not path.name.endswith(JSON_SUFFIXES):
                with open(path, "rb") as file:
                    if b"\n" in file.read(1 << 20).strip():
                        return True
        return False

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
            except (OSError, EOFError, zlib.error) as error:  # gzip: cut is an EOFError, flipped any of them
                raise UserError(f"domain {self.name}: cannot read {path}: {error}") from error
            before += path.stat().st_size

    def _text(self, path: Path) -> Generator[tuple[str, int], None, None]:
        with open(path, "rb") as raw, io.TextIOWrapper(raw, encoding="utf-8") as file:
            pending: list[str] = []
            size = 0
            for line in file:
                pending.append(line)
                size += len(line)
                if size >= self.document_chars and (not line.strip() or size >= 2 * self.document_chars):
                    yield "".join(pending), raw.tell()
                    pending, size = [], 0
            yield "".join(pending), raw.tell()

    def _json_lines(self, path: Path) -> Generator[tuple[str, int], None, None]:
        with open(path, "rb") as raw, _decompressed(path, raw) as lines:
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


def _walk(root: Path) -> Iterator[Path]:
    """All files under a directory, also in directories that are linked to; one that was read already is left out, so a
    link to a directory above ends."""
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders.sort()  # which of two paths to a directory comes first must not depend on the file system
        yield from (Path(folder, name) for name in names)


def _require_file(name: str, path: Path) -> None:
    """UserError for what cannot be read to an end: a pipe, a device, a link to one or to nothing."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        what = f"a link to {os.readlink(path)}, which" if path.is_symlink() else "a file that"
        raise UserError(f"domain {name}: {path} is {what} cannot be found ({error.strerror}); remove it") from error
    if not stat_module.S_ISREG(mode):
        raise UserError(f"domain {name}: {path} is a pipe or a device and no file; write its text to a file")


def _decompressed(path: Path, raw: io.BufferedReader) -> io.BufferedIOBase:
    """Binary lines of an open file, decompressed as its name says."""
    if path.name.endswith(".gz"):
        return gzip.open(raw, "rb")
    return io.BufferedReader(ZstdFrames(raw) if path.name.endswith(".zst") else raw)


class ZstdFrames(io.RawIOBase):
    """The content of a file of zstandard frames, which must end with the end of one.

    zstandard's own reader ends without a word where the file does. Its errors are said as OSErrors, so that callers
    need not know the library; a file that is cut off is an EOFError, as of gzip.
    """

    def __init__(self, raw: io.BufferedReader) -> None:
        import zstandard

        self._raw, self._error, self._new = raw, zstandard.ZstdError, zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None  # the one that has begun
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill as much of `buffer` as is at hand; 0 at the end."""
        while not self._ready:
            data = self._raw.read(1 << 14)
            if not data:
                if self._frame is not None:
                    raise EOFError("it ends inside a zstandard frame, so it was cut off")
                return 0
            self._frame = self._frame or self._new()
            try:
                self._ready = memoryview(self._frame.decompress(data))
            except self._error as error:
                raise OSError(str(error)) from error
            if self._frame.eof:  # the next frame begins in what was read
                self._raw.seek(-len(self._frame.unused_data), os.SEEK_CUR)
                self._frame = None
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


def digest(text: str) -> int:
    """64 bits of a document, whitespace at line ends aside: the same text in two places has the same digest."""
    normal = re.sub(r"[ \t]+\n", "\n", text).strip()
    return int.from_bytes(hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def place(key: int, seed: int = 0) -> int:
    """Where the document of this digest stands among all that may be held out: 64 bits, the smallest ones first."""
    mixed = hashlib.blake2b(key.to_bytes(8, "little"), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(mixed, "little")


def in_validation(key: int, fraction: float, seed: int = 0) -> bool:
    """Whether the document of this digest is held out. A function of its content alone, so copies never straddle."""
    return place(key, seed) < fraction * 2**64
