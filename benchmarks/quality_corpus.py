"""A corpus of fourteen unlike domains out of Debian's text packages: manual pages in seven languages, code, tables.

    python benchmarks/quality_corpus.py OUT      fetch the packages, take their text, prepare it in OUT/data

The packages are fetched by apt-get from the sources of this machine and unpacked in OUT/packages; nothing is installed.
The same versions of the packages give the same corpus anywhere; their names are kept in OUT/packages.json. Documents
are taken in the order of a hash of their path, so a cap takes a fair sample.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ado_megatron.cli import main as ado_megatron
from ado_megatron.files import atomic_write

MAX_CHARS = 40_000  # of a document
MAN = "usr/share/man"

# domain: (packages, folder, pattern of the files, characters taken at most)
DOMAINS = {
    "man_en": (("manpages", "manpages-dev"), MAN, r"\.\w+\.gz$", 2_400_000),
    "perl": (("perl-modules-5.36",), "usr/share/perl", r"\.pm$", 2_000_000),
    "c_headers": (("linux-libc-dev",), "usr/include", r"\.h$", 1_700_000),
    "prose": (("anarchism",), "usr/share/doc/anarchism", r"\.(html|txt|md)(\.gz)?$", 1_400_000),
    "man_de": (("manpages-de",), MAN, r"\.\w+\.gz$", 1_100_000),
    "vim": (("vim-runtime",), "usr/share/vim", r"\.vim$", 800_000),
    "man_fr": (("manpages-fr",), MAN, r"\.\w+\.gz$", 700_000),
    "xsl": (("docbook-xsl",), "usr/share/xml", r"\.xsl$", 500_000),
    "man_es": (("manpages-es",), MAN, r"\.\w+\.gz$", 400_000),
    "unicode": (("unicode-data",), "usr/share/unicode", r"\.txt(\.gz)?$", 300_000),
    "man_pl": (("manpages-pl",), MAN, r"\.\w+\.gz$", 240_000),
    "man_ru": (("manpages-ru",), MAN, r"\.\w+\.gz$", 180_000),
    "words": (("wamerican",), "usr/share/dict", r"american-english$", 130_000),
    "man_it": (("manpages-it",), MAN, r"\.\w+\.gz$", 100_000),
}


def fetch(folder: Path) -> None:
    """The packages, unpacked side by side, each once."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in {name for packages, *_ in DOMAINS.values() for name in packages}:
        if not list(folder.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        if not (folder / package).exists():
            (archive,) = folder.glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, folder / package], check=True)


def read(path: Path) -> str:
    """The text of a file, compressed or not; nothing when it is not UTF-8."""
    data = path.read_bytes()
    try:
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except UnicodeDecodeError:
        return ""


def documents(folder: Path, name: str, scale: float) -> Iterator[str]:
    """The documents of a domain up to its cap. Comments at the head of manual pages, the same in each, go."""
    packages, under, pattern, most = DOMAINS[name]
    most = int(most * scale)
    roots = [folder / package / under for package in packages]
    files = [(path, path.relative_to(root)) for root in roots for path in root.rglob("*")
             if path.is_file() and not path.is_symlink() and re.search(pattern, path.name)]  # fmt: skip
    size = 0
    for path, _ in sorted(files, key=lambda found: hashlib.md5(str(found[1]).encode()).digest()):
        text = read(path)
        if path.suffix == ".html":
            text = re.sub(r"\s*\n\s*", "\n", re.sub(r"<[^>]*>", "", text))
        if name.startswith("man_"):
            text = re.sub(r'^[.\']\\".*\n', "", text, flags=re.M)
        # One long table or list is many documents.
        parts = [text[at : at + 4000] for at in range(0, len(text), 4000)] if name in ("words", "unicode") else [text]
        for part in parts:
            if size >= most:
                return
            if part.strip():
                size += len(part[:MAX_CHARS])
                yield part[:MAX_CHARS]


def make(out: Path, scale: float = 1.0) -> Path:
    """The prepared directory under `out`, made unless it is there. scale: of the sizes of the domains."""
    data = out / "data"
    fetch(out / "packages")
    text = out / "text"
    text.mkdir(exist_ok=True)
    for name in DOMAINS:
        lines = (json.dumps({"text": part}) + "\n" for part in documents(out / "packages", name, scale))
        atomic_write(text / f"{name}.jsonl", "".join(lines).encode())
    names = sorted(path.name for path in (out / "packages").glob("*.deb"))
    atomic_write(out / "packages.json", json.dumps(names, indent=1).encode())
    words = [word for name in DOMAINS for word in ("--domain", f"{name}={text / name}.jsonl")]
    code = ado_megatron(["prepare", *words, "--out", str(data), "--reuse", "--vocab-size", "768", "--validation",
                         "0.08", "--sample-chars", "1600000", "--validation-tokens", "0"])  # fmt: skip
    if code:
        raise SystemExit(code)
    return data


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve())
