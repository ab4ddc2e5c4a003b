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
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

from ado_megatron.errors import UserError
from ado_megatron.option_fields import Parser
from ado_megatron.prepare.documents import Demo, Files, digest, in_validation
from ado_megatron.prepare.domain_writer import DomainWriter, OneDocument, Split
from ado_megatron.prepare.encode import Encoder
from ado_megatron.prepare.output import (
    MANIFEST,
    check_output,
    partial_directory,
    publish,
    recipe,
    sweep,
    table,
    too_few_held_out,
    write_blends,
)
from ado_megatron.prepare.tokenizer import TokenizerFile, load, train_sentencepiece

DEMO = dict(vocab_size=2048, validation=0.08, sample_chars=1_600_000, validation_tokens=0)
DEFAULTS = dict(vocab_size=32000, validation=0.01, sample_chars=20_000_000, validation_tokens=4096)
LOG = logging.getLogger(__name__)

def new_writer(name: str, folder: Path, vocab_size: int, options: argparse.Namespace) -> DomainWriter:
    """A writer of megatron-core's files for one domain, with ids as small as the vocabulary allows."""
    import warnings

    with warnings.catch_warnings():  # megatron-core's remarks on what it would use on a GPU
        warnings.simplefilter("ignore")
        from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    dtype = DType.optimal_dtype(vocab_size)

    def split(suffix: str) -> Split:
        prefix = folder / f"{name}{suffix}_text_document"
        return Split(prefix, IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype))

    return DomainWriter(
        name, split(""), split("_valid"), options.validation, options.dedupe, options.validation_tokens
    )


def sample_texts(sources: Sequence[Demo | Files], chars: int, validation: float) -> Iterator[str]:
    """Text to train a tokenizer on: the head of each domain, equal parts, without the documents held out by
    their digests (the few more of --validation-tokens are not known yet)."""
    for source in sources:
        left = chars // len(sources)
        for text, _ in source:
            if text.strip() and not in_validation(digest(text), validation):
                yield text[:left]
                left -= len(text)
            if left <= 0:
                break


def write_domains(
    sources: Sequence[Demo | Files], definition: TokenizerFile, folder: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Encode every source into `folder`; one summary a domain. Raises UserError, and OSError on a full disk."""
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
                writer = new_writer(source.name, folder, vocab_size, options)
                with closing(writer):
                    for encoded, position in encoder(source):
                        for key, ids in encoded:
                            writer.add(key, ids)
                        bar.update(before + position - bar.n)
                    _finish(writer, source)
                before += source.total_bytes()
                summaries.append({**writer.summary(), "bytes": source.total_bytes()})
    finally:
        encoder.close()
    return summaries


def _finish(writer: DomainWriter, source: Demo | Files) -> None:
    """Write the indices; of a single document, say what helps."""
    try:
        writer.finish()
    except OneDocument as error:
        if source.can_be_cut():
            raise UserError(f"{error} (a smaller --document-chars cuts a text file into more)") from error
        raise UserError(f"{error} (text files are cut at line ends, and there is none in it)") from error


def parser() -> argparse.ArgumentParser:
    """The command line; its complaints are UserErrors."""
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
    add("--validation-tokens", type=int,
        help="hold out this many tokens of each domain, though of a small one at most a tenth; default 4096 (demo 0)")
    add("--dedupe", action=argparse.BooleanOptionalAction, default=True, help="drop exact copies inside a domain")
    add("--text-key", default="text", help="key of the text in a JSON line; default text")
    add("--suffix", action="append", default=[], metavar=".EXT", help="files to read as text beside .txt")
    add("--document-chars", type=int, default=8192, help="cut longer text files at blank lines; default 8192")
    add("--workers", type=int, default=min(8, os.cpu_count() or 1), help="tokenizing processes")
    return p


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, with defaults and checked. Raises UserError."""
    options = parser().parse_args(argv)
    defaults = DEMO if options.demo else DEFAULTS
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
    if options.validation_tokens < 0:
        raise UserError(f"--validation-tokens {options.validation_tokens} must not be negative")
    for name in ("vocab_size", "sample_chars", "document_chars", "workers"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")
    return options


def find_sources(options: argparse.Namespace) -> Sequence[Demo | Files]:
    """The domains that the options name. Raises UserError."""
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


def prepare(options: argparse.Namespace) -> Path:
    """Run the whole of it; returns the output directory. Raises UserError, after which nothing is left behind."""
    out = Path(options.out).expanduser().resolve()
    sweep(out)
    if check_output(out, options):
        print(f"{out} is already prepared as asked")
        return out
    sources = find_sources(options)
    try:
        with partial_directory(out) as folder:
            definition = _tokenizer(options, sources)
            (folder / definition.file_name).write_bytes(definition.data)
            summaries = write_domains(sources, definition, folder, options)
            write_blends(folder, out, summaries)
            _write_manifest(folder, definition, summaries, options)
            publish(folder, out)
    except OSError as error:  # what cannot be read is a UserError already
        reason = error.strerror or str(error)
        raise UserError(f"--out {out} cannot be written: {reason}; nothing was changed there") from error
    print(table(summaries))
    for sentence in too_few_held_out(summaries, options.validation_tokens):
        LOG.warning("%s", sentence)
    print(f"blend for --data-args-path: {out / 'blend.txt'}")
    return out


def _tokenizer(options: argparse.Namespace, sources: Sequence[Demo | Files]) -> TokenizerFile:
    """The user's tokenizer, or one trained on the head of each domain."""
    if options.tokenizer:
        return load(options.tokenizer, options.eod)
    print(f"training a tokenizer of {options.vocab_size} pieces", flush=True)
    sample = sample_texts(sources, options.sample_chars, options.validation)
    return train_sentencepiece(sample, options.vocab_size)


def _write_manifest(
    folder: Path, definition: TokenizerFile, summaries: list[dict[str, Any]], options: argparse.Namespace
) -> None:
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


def _terminate(number: int, _frame: FrameType | None) -> None:
    """On SIGTERM: leave as on Ctrl-C, so that workers and the partial directory go, and exit with 143."""
    raise SystemExit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of `ado-megatron prepare`; argv: the words after it. Raises UserError."""
    options = parse(argv)
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if in_main_thread else None
    try:
        prepare(options)
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)
    return 0
