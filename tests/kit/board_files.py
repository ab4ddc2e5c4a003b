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


def mlflow_files(monkeypatch, directory: Path) -> None:
    """Skip without the package; else it writes below `directory` and asks no network."""
    pytest.importorskip("mlflow", reason="pip install mlflow-skinny (see launch/README.md)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", directory.as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def mlflow_curves(directory: Path, experiment: str) -> tuple[dict[str, str], Curves]:
    """(parameters, curves) of the only run of an experiment, by the package's own client."""
    from mlflow import MlflowClient

    client = MlflowClient(directory.as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return run.data.params, {name: [(one.step, one.value) for one in points] for name, points in histories.items()}


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
