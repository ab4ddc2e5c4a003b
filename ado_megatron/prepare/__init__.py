"""`ado-megatron prepare`: text comes in, Megatron's indexed files, a tokenizer and a blend go out.

In: text files, JSON lines (plain, gzip, zstandard) or directories of them, one path a domain; or --demo. Out: a
directory with `<domain>_text_document.{bin,idx}` to train on, `<domain>_valid_text_document.{bin,idx}` held out, the
tokenizer, blend.txt and valid_blend.txt, and manifest.json, which says how it was made.

    ado_megatron.prepare.command.main(["--domain", "wiki=wiki.jsonl.zst", "--domain", "code=src/", "--out", "DATA"])

    command.py        options, and the way from sources to the directory
    documents.py      reading: files to documents
    corpora.py        the demo's documents
    tokenizer.py      training or loading one
    encode.py         documents to token ids, in worker processes
    domain_writer.py  token ids to the two files of a domain; what is held out
    output.py         the directory as a whole: it appears at once
"""

from ado_megatron.prepare.command import main

__all__ = ["main"]
