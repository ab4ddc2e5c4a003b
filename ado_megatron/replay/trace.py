"""Recorded runs as input of a replay: an .npz trace or a run's metrics.jsonl.

Legend: K domains, T steps, R refits.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ado_megatron.errors import UserError
from ado_megatron.files import open_regular
from ado_megatron.measure.metrics import read_metrics
from ado_megatron.measure.record import LARGEST, MOST, Record
from ado_megatron.npz import read_npz

MOST_CELLS = 1 << 27  # steps times domains: a gibibyte an array
_OPTIONS = {"start_step": "iu", "refit_interval": "iu", "ignore_steps": "iu", "own_n": "b"}  # name → kinds of numpy


@dataclass(frozen=True)
class Trace:
    """What a run measured."""

    prior_K: np.ndarray
    counts_TxK: np.ndarray  # int64, samples of each step
    loss_TxK: np.ndarray  # mean loss in nats; NaN = absent
    names_K: list[str]
    law_steps_R: np.ndarray | None = None  # laws recorded with the trace: a replay uses them and fits none
    laws_RxKx3: np.ndarray | None = None
    options: dict[str, Any] = field(default_factory=dict)  # options of `released` recorded with the trace
    prefixes_K: list[str] | None = None  # --data-path prefixes, where a domain is one prefix


def read_trace(path: str | Path) -> Trace:
    """Reads PATH: an .npz with prior_K, counts_TxK and loss_TxK, a metrics.jsonl, or a run directory that holds one.

    Raises UserError, naming the file, when it is none of these, when it is damaged, or when an array is missing or has
    another shape or other values than it should.
    """
    found = Path(path)
    for candidate in (found / "ado" / "metrics.jsonl", found / "metrics.jsonl", found):
        if candidate.exists() and not candidate.is_dir():
            with open_regular(candidate) as file:
                is_npz = zipfile.is_zipfile(file) or candidate.suffix == ".npz"
            return _checked(candidate, _read_npz(candidate) if is_npz else _read_metrics(candidate))
    raise UserError(f"no trace at {path}: give an .npz trace, a metrics.jsonl or a run directory")


# ---------------------------------------------------------------- .npz


def _read_npz(path: Path) -> Trace:
    try:
        data = read_npz(path, 3 * 8 * MOST_CELLS)
    except ValueError as error:
        raise UserError(f"cannot read the trace {path}: {error}; record it again") from error
    for name in ("prior_K", "counts_TxK", "loss_TxK"):
        if name not in data:
            raise UserError(f"the trace {path} has no array {name}; it has {sorted(data)}")
    if ("laws_RxKx3" in data) != ("law_steps_R" in data):
        raise UserError(f"the trace {path} needs both of law_steps_R and laws_RxKx3, or neither")
    prior_K = _numbers(path, data, "prior_K", 1)
    domains = data.get("domains", np.array([f"domain{k}" for k in range(prior_K.size)]))
    names = [str(name) for name in domains.ravel()]
    laws, steps = None, None
    if "law_steps_R" in data:
        steps, laws = _whole(path, data, "law_steps_R", 1), _numbers(path, data, "laws_RxKx3", 3, nan=True)
    counts_TxK, loss_TxK = _whole(path, data, "counts_TxK", 2), _numbers(path, data, "loss_TxK", 2, nan=True)
    return Trace(prior_K, counts_TxK, loss_TxK, names, steps, laws, _recorded_options(path, data))


def _numbers(path: Path, data: dict[str, np.ndarray], name: str, dimensions: int, nan: bool = False) -> np.ndarray:
    """An array as float64, without infinities; without NaN but where it is allowed."""
    array = data[name]
    if array.dtype.kind not in "iuf" or array.ndim != dimensions:
        what = f"has shape {array.shape} and holds {array.dtype}"
        raise UserError(f"the trace {path}: {name} {what}, not numbers in {dimensions} dimensions")
    array = array.astype(np.float64)
    good = (np.abs(array) <= LARGEST) | (np.isnan(array) & nan)
    if not good.all():
        raise UserError(f"the trace {path}: {name} holds {array[~good][0]}, which cannot be used")
    return array


def _whole(path: Path, data: dict[str, np.ndarray], name: str, dimensions: int) -> np.ndarray:
    """An array of whole numbers of a size that counts can have, int64."""
    array = _numbers(path, data, name, dimensions)
    good = (array == np.rint(array)) & (np.abs(array) <= MOST)
    if not good.all():
        raise UserError(f"the trace {path}: {name} holds {array[~good][0]}, which is no count")
    return array.astype(np.int64)


def _recorded_options(path: Path, data: dict[str, np.ndarray]) -> dict[str, Any]:
    options = {}
    for name, kinds in _OPTIONS.items():
        if name in data:
            if data[name].size != 1 or data[name].dtype.kind not in kinds:
                raise UserError(f"the trace {path}: {name} is {data[name].dtype} of shape {data[name].shape}, no value")
            options[name] = data[name].ravel()[0].item()
    return options


# ---------------------------------------------------------------- metrics.jsonl


def _read_metrics(path: Path) -> Trace:
    """A line covers the steps since the line before: its counts are spread evenly over them, its loss is theirs."""
    header, *records = read_metrics(path)
    names = header.texts("domains")
    prior_K = header.array("prior_K", len(names), low=0)
    counts, losses, done, gap = [], [], 0, True  # before its first line a run may have been another one
    for record in records:
        if record["type"] == "gap":
            gap = True
        elif record["type"] == "step":
            size, before = _steps_of(record, done, gap)
            done, gap = record["step"], False
            if done * len(names) > MOST_CELLS:
                raise record.bad(f"{done} steps of {len(names)} domains are more than a replay can hold")
            most = min(1 << 40, (1 << 62) // size)
            counts_K = record.array("counts_K", len(names), low=0, high=most, whole=True)
            edges = np.floor(np.outer(np.arange(size + 1), counts_K) / size + 1e-9).astype(np.int64)
            counts += [np.zeros((before, len(names)), np.int64), np.diff(edges, axis=0)]
            loss_K = record.array("loss_K", len(names))
            losses += [np.full((before, len(names)), np.nan), np.tile(loss_K, (size, 1))]
    if not counts:
        raise UserError(f"{path} has no step records; is it the metrics.jsonl of a run that has trained?")
    prefixes = header.texts("columns") if "columns" in header else []
    return Trace(prior_K, np.concatenate(counts), np.concatenate(losses), names,
                 prefixes_K=prefixes if len(prefixes) == len(names) else None)


def _steps_of(record: Record, done: int, gap: bool) -> tuple[int, int]:
    """(steps that a record measured, steps before them that nobody did), `done` steps after the start of the run.

    gap: records may be missing between the one before and this.
    """
    since = record["step"] - done
    if since <= 0:
        raise record.bad(f"its step {record['step']} does not come after step {done}")
    size = record.integer("steps", 1) if "steps" in record else since
    if size > since or (size < since and not gap):
        raise record.bad(f"it measured {size} steps, but is {since} after the record before it")
    return size, since - size


def _checked(path: Path, trace: Trace) -> Trace:
    """The trace, if its shapes fit together."""
    num = trace.prior_K.size
    shape = (len(trace.counts_TxK), num)
    if num * len(trace.counts_TxK) > MOST_CELLS:
        raise UserError(f"the trace {path}: {shape[0]} steps of {num} domains are more than a replay can hold")
    for name in ("counts_TxK", "loss_TxK"):
        if getattr(trace, name).shape != shape:
            raise UserError(f"the trace {path}: {name} has shape {getattr(trace, name).shape}, not T x {num}")
    if not shape[0]:
        raise UserError(f"the trace {path} has no steps")
    laws, steps = trace.laws_RxKx3, trace.law_steps_R
    if laws is not None and steps is not None and laws.shape != (len(steps), num, 3):
        raise UserError(f"the trace {path}: laws_RxKx3 has shape {laws.shape}")
    if len(trace.names_K) != num:
        raise UserError(f"the trace {path} has {len(trace.names_K)} domain names for {num} domains")
    if (trace.counts_TxK < 0).any():
        raise UserError(f"the trace {path}: counts_TxK has negative counts")
    if not (trace.prior_K >= 0).all() or not trace.prior_K.sum() > 0:
        raise UserError(f"the trace {path}: prior_K must hold no negative weights and one above zero")
    return trace
