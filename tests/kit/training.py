"""Small data and small runs for the trainer's tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

VOCAB = 200
SMALL = dict(
    layers=2,
    hidden=32,
    heads=4,
    seq_length=16,
    micro_batch=2,
    global_batch=8,
    steps=8,
    eval_interval=0,
    progress=False,
    tensorboard=False,
)


def write_prefix(prefix: str | Path, documents: list[np.ndarray]) -> str:
    """A Megatron `.bin/.idx` pair of the documents' token ids (uint16)."""
    prefix = str(prefix)
    lengths = np.array([len(document) for document in documents], dtype=np.int32)
    pointers = (
        np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64) * 2]).astype(np.int64)
        if len(lengths)
        else np.zeros(0, np.int64)
    )
    with open(prefix + ".bin", "wb") as stream:
        for document in documents:
            stream.write(np.asarray(document, dtype=np.uint16).tobytes())
    with open(prefix + ".idx", "wb") as stream:
        stream.write(b"MMIDIDX\x00\x00" + np.uint64(1).tobytes() + np.uint8(8).tobytes())
        stream.write(np.uint64(len(lengths)).tobytes() + np.uint64(len(lengths) + 1).tobytes())
        stream.write(lengths.tobytes() + pointers.tobytes() + np.arange(len(lengths) + 1, dtype=np.int64).tobytes())
    return prefix


def write_data(folder: Path, domains: int = 3, tokens: int = 6000, seed: int = 0) -> Path:
    """A directory as `ado-megatron prepare` makes it: domains of different entropy, train and validation."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    train, valid = [], []
    for k in range(domains):
        for suffix, total, words in (
            ("_text_document", tokens // (k + 1), train),
            ("_valid_text_document", 700, valid),
        ):
            text = (rng.integers(0, 10 * (k + 1), total) * 5 + k) % VOCAB
            documents = np.split(text, np.arange(90 + 7 * k, total, 90 + 7 * k))
            write_prefix(folder / f"domain{k}{suffix}", documents)
            words += [f"{[0.6, 0.3, 0.1][k % 3]}", f"domain{k}{suffix}"]
    (folder / "blend.txt").write_text(" ".join(train) + "\n")
    (folder / "valid_blend.txt").write_text(" ".join(valid) + "\n")
    (folder / "manifest.json").write_text(json.dumps({"vocab_size": VOCAB}))
    return folder


class _Recorder:
    """Stands where a draw log would: keeps (step, key, sample) of every sample in the order it was used."""

    def __init__(self):
        self.rows: list[tuple[int, int, int]] = []

    def drawn(self, step, key_B, sample_B):
        self.rows += [(step, int(key), int(sample)) for key, sample in zip(key_B, sample_B, strict=True)]


def train_rank(rank: int, run_dir: str, data: str, trainer: dict | None = None, ado: dict | None = None) -> dict:
    """One rank of a small run, for run_ranks: what it measured, by name."""
    from ado_megatron.config import AdoConfig
    from ado_megatron.trainer.loop import Trainer
    from ado_megatron.trainer.options import TrainerOptions

    options = TrainerOptions(**(SMALL | dict(run_dir=run_dir, data=data) | (trainer or {})))
    ranks_trainer = Trainer(options, AdoConfig(**(dict(policy="ado", log_interval=1) | (ado or {}))), record=True)
    recorder = _Recorder()
    if ranks_trainer.batches is not None and ranks_trainer.batches._draw_log is None:
        ranks_trainer.batches._draw_log = recorder
    outcome = ranks_trainer.train()
    ranks_trainer.close()
    return dict(vars(outcome), drawn=recorder.rows, place=(ranks_trainer.place.pp_rank, ranks_trainer.place.dp_rank))


def metrics(run_dir: str | Path, kind: str) -> list[dict]:
    lines = (Path(run_dir) / "ado" / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["type"] == kind]
