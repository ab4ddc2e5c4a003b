"""Eight real domains out of the text that the install itself put on this machine: no download, no licence question.

They differ in entropy (about 1.0 to 3.3 gzip bits a character) and in size: each has the share of the tokens that
its kind has when everything is taken, python 51 % … licences 0.7 %, scaled down to about 12 million characters.
Documents are taken in the order of a hash of their relative path, so a cap takes a fair sample and the same versions of
the packages give the same corpus anywhere.
"""
from __future__ import annotations

import ast
import functools
import hashlib
import os
import random
import re
import sysconfig
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from ado_megatron.errors import UserError
from ado_megatron.prepare.documents import Demo

MAX_CHARS = 40_000  # a single huge file must not be a domain
SKIP = {"__pycache__", "idlelib", "pydoc_data", "turtledemo", "encodings", "test", "tests", "site-packages", "lib2to3"}


def site_packages() -> Path:
    """Where the installed packages lie."""
    return Path(sysconfig.get_paths()["purelib"])


def stdlib() -> Path:
    """Where the standard library lies."""
    return Path(sysconfig.get_paths()["stdlib"])


def files(root: Path, suffixes: tuple[str, ...], skip: frozenset[str] | set[str] = frozenset()) -> Iterator[Path]:
    """Files under `root`, in the order of a hash of their path relative to it."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in skip]
        found += [Path(folder, name) for name in names if name.endswith(suffixes)]
    return iter(sorted(found, key=lambda path: hashlib.md5(str(path.relative_to(root)).encode()).digest()))


def read(path: Path) -> str:
    """The text of a file, or nothing when it is not UTF-8 or not readable: the demo takes what it can."""
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return ""


@functools.lru_cache(maxsize=4096)
def code_and_docstrings(path: Path) -> tuple[str, tuple[str, ...]]:
    """A Python file as (code without docstrings, comment lines and blank lines; its docstrings over 200 characters)."""
    source = read(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return "", ()
    docs: list[str] = []
    dropped: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module, ast.AsyncFunctionDef)):
            continue
        doc = ast.get_docstring(node)
        if doc is not None:
            dropped.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
            if len(doc) > 200:
                docs.append(doc + "\n\n")
    kept = (
        line
        for number, line in enumerate(source.split("\n"), 1)
        if number not in dropped and line.strip() and not line.lstrip().startswith("#")
    )
    return "\n".join(kept) + "\n", tuple(docs)


def python_files() -> Iterator[Path]:
    """Source files of the standard library and of large packages."""
    packages = ("torch/nn", "torch/optim", "torch/distributed", "torch/utils", "torch/_dynamo", "networkx", "scipy")
    roots = [(stdlib(), SKIP), *((site_packages() / package, SKIP) for package in packages)]
    for root, skip in roots:
        yield from files(root, (".py",), skip)


def python() -> Iterator[str]:
    """Python code without docstrings and comments, a document a file."""
    paths = list(python_files())
    random.Random(3).shuffle(paths)  # packages interleaved, so that a cap cuts none of them off
    return (code_and_docstrings(path)[0] for path in paths)


def docstrings() -> Iterator[str]:
    """The long docstrings of the same files and of sympy."""
    paths = [*python_files(), *files(site_packages() / "sympy", (".py",), {"tests"})]
    random.Random(4).shuffle(paths)
    return (doc for path in paths for doc in code_and_docstrings(path)[1])


def sympy_tests() -> Iterator[str]:
    """Code of sympy's tests: formulas."""
    return (code_and_docstrings(p)[0] for p in files(site_packages() / "sympy", (".py",)) if p.parent.name == "tests")


def cpp_headers() -> Iterator[str]:
    """C++ headers of torch without comments."""
    for path in files(site_packages() / "torch" / "include", (".h", ".hpp", ".cuh")):
        text = re.sub(r"/\*.*?\*/", "", read(path), flags=re.S)
        yield "".join(f"{line}\n" for line in text.split("\n") if line.strip() and not line.lstrip().startswith("//"))


def decimal_tests() -> Iterator[str]:
    """Test cases of decimal arithmetic, a hundred lines a document."""
    for path in files(stdlib() / "test" / "decimaltestdata", (".decTest",)):
        lines = [line for line in read(path).split("\n") if line.strip() and not line.startswith("--")]
        yield from ("\n".join(lines[at : at + 100]) + "\n" for at in range(0, len(lines), 100))


def unicode_names() -> Iterator[str]:
    """Lines of a table of characters, shuffled."""
    dull = ("CJK", "HANGUL SYLL", "YI SYLL", "EGYPTIAN", "CUNEIFORM", "TANGUT", "BAMUM", "ANATOLIAN")
    lines = []
    for code in range(0x20, 0x20000):
        char = chr(code)
        name = unicodedata.name(char, "")
        if name and not name.startswith(dull):
            kind, side = unicodedata.category(char), unicodedata.bidirectional(char)
            lines.append(f"{code:04X};{name};{kind};{side};{unicodedata.decomposition(char)}\n")
    random.Random(0).shuffle(lines)
    return ("".join(lines[at : at + 64]) for at in range(0, len(lines), 64))


def arithmetic() -> Iterator[str]:
    """Sums, differences and products of numbers up to 999, made up."""
    draw = random.Random(1)
    operations = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}

    def line() -> str:
        a, b, sign = draw.randint(1, 999), draw.randint(1, 999), draw.choice("+-*")
        return f"{a} {sign} {b} = {operations[sign](a, b)}\n"

    return ("".join(line() for _ in range(100)) for _ in range(600))


def licences() -> Iterator[str]:
    """Licence files of the installed packages, each paragraph once, in documents of about 1,000 characters."""
    wanted = re.compile(r"LICEN|COPYING|NOTICE|METADATA|AUTHORS", re.I)
    paths = [p for p in files(site_packages(), ("",)) if wanted.match(p.name) and p.suffix != ".py"]
    seen, document = set(), ""
    for path in [stdlib() / "LICENSE.txt", *paths]:
        for paragraph in re.split(r"\n\s*\n", read(path)):
            key = re.sub(r"\s+", " ", paragraph.strip().lower())
            if key and key not in seen:
                seen.add(key)
                document += paragraph + "\n\n"
            if len(document) > 1000:
                yield document
                document = ""


def stubs() -> Iterator[str]:
    """Type stubs of torch and numpy."""
    return (read(path) for package in ("torch", "numpy") for path in files(site_packages() / package, (".pyi",)))


def codecs() -> Iterator[str]:
    """Tables of character encodings."""
    return (read(path) for path in files(stdlib() / "encodings", (".py",)))


# name -> (documents, characters taken at most). Natural shares of what a full install holds, scaled by 0.115.
CATALOGUE: dict[str, tuple[Callable[[], Iterator[str]], int]] = {
    "python": (python, 6_200_000),
    "cpp": (cpp_headers, 2_250_000),
    "docstrings": (docstrings, 1_900_000),
    "sympy_tests": (sympy_tests, 930_000),
    "decimal": (decimal_tests, 420_000),
    "unicode": (unicode_names, 119_000),
    "arithmetic": (arithmetic, 107_000),
    "licences": (licences, 73_000),
}
# Some distributions leave parts of the standard library out (Debian: the decimal test data); these step in.
SUBSTITUTES = {"stubs": (stubs, 227_000), "codecs": (codecs, 152_000)}


@functools.cache
def take(name: str) -> tuple[str, ...]:
    """The documents of a domain up to its cap, each text once."""
    make, cap = {**CATALOGUE, **SUBSTITUTES}[name]
    texts, seen, size = [], set(), 0
    for text in make():
        text = text[:MAX_CHARS]
        if not text.strip() or text in seen:
            continue
        seen.add(text)
        texts.append(text)
        size += len(text)
        if size >= cap:
            break
    return tuple(texts)


def demo_domains(minimum: int = 8) -> list[Demo]:
    """The catalogue as sources. UserError when this machine holds fewer than `minimum` domains with some text."""
    names = [name for name in CATALOGUE if sum(map(len, take(name))) >= 40_000]
    names += [name for name in SUBSTITUTES if sum(map(len, take(name))) >= 40_000][: max(0, minimum - len(names))]
    if len(names) < minimum:
        raise UserError(
            f"the demo needs text of {minimum} kinds and finds {len(names)} here ({', '.join(names)}); "
            "use --domain NAME=PATH with text of your own"
        )
    return [Demo(name, functools.partial(take, name)) for name in names]
