"""`ado-megatron prepare`: text of several domains to Megatron's indexed files, a tokenizer and a blend.

    sources ──► documents ──► worker processes: token ids ──► <domain>_text_document.{bin,idx}         train
                                                          └─► <domain>_valid_text_document.{bin,idx}   held out

Which documents are held out depends on their content alone, so neither the order of the input nor the number of
workers changes a file, and copies of a document never stand on both sides. Everything is written under a temporary name
beside the output directory, which appears in one rename: a failure or an interrupt leaves what was there.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from ado_megatron.errors import UserError
from ado_megatron.option_fields import Parser
from ado_megatron.prepare.documents import Demo, Files, digest, in_validation
from ado_megatron.prepare.domain_writer import DomainWriter, Split
from ado_megatron.prepare.encode import Encoder
from ado_megatron.prepare.tokenizer import TokenizerFile, load, train_sentencepiece

MANIFEST = "manifest.json"
DEMO = dict(vocab_size=2048, validation=0.08, sample_chars=1_600_000)

def new_writer(name: str, folder: Path, vocab_size: int, fraction: float, dedupe: bool) -> DomainWriter:
    import warnings

    with warnings.catch_warnings():  # megatron-core's remarks on what it would use on a GPU
        warnings.simplefilter("ignore")
        from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    dtype = DType.optimal_dtype(vocab_size)

    def split(suffix: str) -> Split:
        prefix = folder / f"{name}{suffix}_text_document"
        return Split(prefix, IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype))

    return DomainWriter(name, split(""), split("_valid"), fraction, dedupe)


def sample_texts(sources: Sequence[Demo | Files], chars: int, validation: float) -> Iterator[str]:
    """Text to train a tokenizer on: the head of each domain, equal parts, without the documents held out."""
    for source in sources:
        left = chars // len(sources)
        for text, _ in source:
            if text.strip() and not in_validation(digest(text), validation):
                yield text[:left]
                left -= len(text)
            if left <= 0:
                break


def write_domains(sources, definition: TokenizerFile, folder: Path, options: argparse.Namespace) -> list[dict]:
    """Encode every source into `folder`; one summary a domain."""
    from tqdm import tqdm

    vocab_size = definition.open().vocab_size
    encoder = Encoder(definition, options.workers)
    summaries = []
    try:
        total = sum(source.total_bytes() for source in sources)
        with tqdm(total=total, unit="B", unit_scale=True, disable=None, desc="tokenizing") as bar:
            before = 0
            for source in sources:
                bar.set_postfix_str(source.name)
                writer = new_writer(source.name, folder, vocab_size, options.validation, options.dedupe)
                with closing(writer):
                    for encoded, position in encoder(source):
                        for key, ids in encoded:
                            writer.add(key, ids)
                        bar.update(before + position - bar.n)
                    writer.finish()
                before += source.total_bytes()
                summaries.append({**writer.summary(), "bytes": source.total_bytes()})
    finally:
        encoder.close()
    return summaries


def write_blends(folder: Path, final: Path, summaries: list[dict]) -> None:
    """blend.txt and valid_blend.txt in the form of --data-args-path; the weights are the shares of the tokens."""
    for file, side in (("blend.txt", ""), ("valid_blend.txt", "valid_")):
        prefix, tokens = f"{side}prefix", f"{side}tokens"
        total = sum(summary[tokens] for summary in summaries)
        words = [f"{summary[tokens] / total:.6f} {final / summary[prefix]}" for summary in summaries]
        (folder / file).write_text(" ".join(words) + "\n")


def table(summaries: list[dict]) -> str:
    total = sum(summary["tokens"] for summary in summaries)
    lines = [f"{'domain':<16}{'documents':>10}{'tokens':>14}{'share':>8}{'held out':>10}{'copies':>8}"]
    for s in summaries:
        lines.append(
            f"{s['name']:<16}{s['documents']:>10,}{s['tokens']:>14,}{s['tokens'] / total:>8.1%}"
            f"{s['valid_tokens']:>10,}{s['duplicates']:>8,}"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="ado-megatron prepare", description=__doc__.split("\n\n")[0])
    add = p.add_argument
    add("--domain", action="append", default=[], metavar="NAME=PATH",
        help="a domain: a .txt, .jsonl, .jsonl.gz or .jsonl.zst file, or a directory of them; once a domain")
    add("--demo", action="store_true", help="eight domains from text that the install put on this machine")
    add("--out", required=True, metavar="DIR", help="output directory: new or empty, or see --overwrite")
    add("--overwrite", action="store_true", help="replace DIR if an earlier prepare made it")
    add("--reuse", action="store_true", help="keep DIR and stop at once if the same command made it")
    add("--tokenizer", metavar="FILE",
        help="a sentencepiece model or a Hugging Face tokenizer.json; default: train sentencepiece BPE")
    add("--eod", metavar="TOKEN", help="the tokenizer's end-of-document token; default: the usual names")
    add("--vocab-size", type=int, help="pieces of a trained tokenizer; default 32000 (demo 2048)")
    add("--sample-chars", type=int, help="characters to train a tokenizer on; default 20000000")
    add("--validation", type=float, help="share of the documents held out; default 0.01 (demo 0.08)")
    add("--dedupe", action=argparse.BooleanOptionalAction, default=True, help="drop exact copies inside a domain")
    add("--text-key", default="text", help="key of the text in a JSON line; default text")
    add("--suffix", action="append", default=[], metavar=".EXT", help="files to read as text beside .txt")
    add("--document-chars", type=int, default=8192, help="cut longer text files at blank lines; default 8192")
    add("--workers", type=int, default=min(8, os.cpu_count() or 1), help="tokenizing processes")
    return p


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    options = parser().parse_args(argv)
    defaults = DEMO if options.demo else dict(vocab_size=32000, validation=0.01, sample_chars=20_000_000)
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.demo == bool(options.domain):
        raise UserError("give --domain NAME=PATH once for each domain, or --demo alone")
    if not 0 < options.validation < 1:
        raise UserError(f"--validation {options.validation} is no share between 0 and 1")
    for suffix in options.suffix:
        if not re.fullmatch(r"\.[\w.]+", suffix):
            raise UserError(f"--suffix {suffix} is no file ending such as .md")
    for name in ("vocab_size", "sample_chars", "document_chars", "workers"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")
    return options


def find_sources(options: argparse.Namespace) -> list[Demo | Files]:
    if options.demo:
        from ado_megatron.prepare.corpora import demo_domains

        return demo_domains()
    sources: list[Demo | Files] = []
    for item in options.domain:
        name, equals, path = item.partition("=")
        if not equals or not path or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise UserError(f"--domain {item}: write NAME=PATH, the name of letters, digits and _ . -")
        if name in [source.name for source in sources]:
            raise UserError(f"--domain {item}: there are two domains {name}; give each its own name")
        more = dict(text_key=options.text_key, document_chars=options.document_chars)
        sources.append(Files.find(name, path, tuple(options.suffix), **more))
    for name in [source.name for source in sources]:
        if f"{name}_valid" in [source.name for source in sources]:
            raise UserError(f"domains {name} and {name}_valid would share a file; give one of them another name")
    return sources


def recipe(options: argparse.Namespace) -> dict:
    """What decides the output, for --reuse."""
    left_out = ("out", "overwrite", "reuse", "workers")
    return {name: value for name, value in sorted(vars(options).items()) if name not in left_out}


def check_output(out: Path, options: argparse.Namespace) -> bool:
    """True when `out` is to be kept as it is (--reuse). UserError when it may not be written."""
    if re.search(r"\s", str(out)):
        raise UserError(f"--out {out}: a blend file separates paths by white space, so choose a path without any")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    manifest = out / MANIFEST
    if not manifest.is_file():
        raise UserError(f"--out {out} exists and was not made by prepare; choose another directory")
    if options.reuse and json.loads(manifest.read_text()).get("recipe") == recipe(options):
        return True
    if not options.overwrite:
        raise UserError(f"--out {out} holds prepared data already; choose another directory or add --overwrite")
    return False


def publish(folder: Path, out: Path) -> None:
    """Put the finished directory in its place; what stood there goes away only after that."""
    old = None
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent)) / "data"
        out.rename(old)
    folder.rename(out)
    if old is not None:
        shutil.rmtree(old.parent)


def prepare(options: argparse.Namespace) -> Path:
    """Run the whole of it; returns the output directory."""
    out = Path(options.out).expanduser().resolve()
    if check_output(out, options):
        print(f"{out} is already prepared as asked")
        return out
    sources = find_sources(options)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        folder.chmod(0o755)  # mkdtemp is private; other users' training jobs read the data
        if options.tokenizer:
            definition = load(options.tokenizer, options.eod)
        else:
            print(f"training a tokenizer of {options.vocab_size} pieces", flush=True)
            sample = sample_texts(sources, options.sample_chars, options.validation)
            definition = train_sentencepiece(sample, options.vocab_size)
        (folder / definition.file_name).write_bytes(definition.data)
        summaries = write_domains(sources, definition, folder, options)
        write_blends(folder, out, summaries)
        tokenizer = definition.open()
        manifest = {
            "version": 1,
            "domains": summaries,
            "tokenizer": definition.file_name,
            "vocab_size": tokenizer.vocab_size,
            "eod_id": tokenizer.eod_id,
            "recipe": recipe(options),
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        publish(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(summaries))
    print(f"blend for --data-args-path: {out / 'blend.txt'}")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    prepare(parse(argv))
    return 0
