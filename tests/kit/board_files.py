"""What arrived on a board, read from its own files: TensorBoard by its own reader, W&B from the file of an offline run.

A `.wandb` file is a log in the format of LevelDB: 7 bytes of header, then blocks of 32,768 bytes with records of a
checksum, a length, a kind and a part of a protobuf message. The package has no public reader of it.
"""

import json
import struct
import zlib
from pathlib import Path

import pytest

BLOCK, HEADER = 32768, struct.Struct("<IHB")
FULL, LAST = 1, 4  # kinds of a part that ends its message
Curves = dict[str, list[tuple[int, float]]]  # by name: (step, value), as they were written


def wandb_offline(monkeypatch) -> None:
    """Skip without the package; else it writes files and asks no network."""
    pytest.importorskip("wandb", reason="pip install wandb (see launch/README.md)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def tensorboard_curves(directory: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def wandb_files(directory: Path) -> list[Path]:
    """The files of the offline runs below `directory`, oldest first."""
    return sorted(directory.rglob("offline-run-*/run-*.wandb"))


def wandb_curves(path: Path) -> Curves:
    curves: Curves = {}
    for record in _records(path):
        if record.WhichOneof("record_type") != "history":
            continue
        row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for name, value in row.items():
            curves.setdefault(name, []).append((row["_step"], value))
    return curves


def wandb_start(path: Path) -> dict[str, object]:
    """Id, project and name of the run, and its configuration."""
    (run,) = [record.run for record in _records(path) if record.WhichOneof("record_type") == "run"][:1]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    return {"id": run.run_id, "project": run.project, "name": run.display_name, "config": config}


def _records(path: Path):
    from wandb.proto import wandb_internal_pb2

    data, at, message = path.read_bytes(), 7, b""
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER.size:  # the rest of a block is filled up
            at += left
            continue
        checksum, length, kind = HEADER.unpack_from(data, at)
        part = data[at + HEADER.size : at + HEADER.size + length]
        assert zlib.crc32(bytes([kind]) + part) == checksum, f"{path} is damaged at byte {at}"
        at, message = at + HEADER.size + length, message + part
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            message = b""
            yield record
