"""Made-up documents, and `ado-megatron prepare` over them."""

import gzip
import json
import random

import zstandard

from ado_megatron import cli

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu".split()


def texts(number, seed=0, words=60):
    draw = random.Random(seed)
    return [f"{i} " + " ".join(draw.choice(WORDS) for _ in range(words)) + "\n  end\t.\n" for i in range(number)]


def write_jsonl(path, documents, key="text"):
    lines = "".join(json.dumps({key: text}) + "\n" for text in documents).encode()
    if path.name.endswith(".gz"):
        lines = gzip.compress(lines)
    if path.name.endswith(".zst"):  # two frames, as tools that append write them
        half = lines.index(b"\n", len(lines) // 2) + 1
        lines = zstandard.compress(lines[:half]) + zstandard.compress(lines[half:])
    path.write_bytes(lines)
    return path


def run(tmp_path, model_file, *domains, more=()):
    words = [word for domain in domains for word in ("--domain", domain)]
    line = ["prepare", *words, "--out", str(tmp_path / "out"), "--tokenizer", str(model_file), "--workers", "1", *more]
    return cli.main(line)
