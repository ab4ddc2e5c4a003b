"""Recorded runs as input of a replay: an .npz trace or a run's metrics.jsonl.

Legend: K domains, T steps, R refits.
"""

import pathlib
import zipfile
from dataclasses import dataclass, field

import numpy as np

from ado_megatron.errors import UserError
from ado_megatron.files import load_npz
from ado_megatron.measure.metrics import check_record, read_metrics

# array, kinds of its numbers, dimensions
_FORM = (("prior_K", "fiu", 1), ("counts_TxK", "fiu", 2), ("loss_TxK", "fiu", 2), ("law_steps_R", "iu", 1),
         ("laws_RxKx3", "fiu", 3), ("domains", "US", 1))  # fmt: skip
MOST_STEPS = 10_000_000  # of a trace
_OPTIONS = ("start_step", "refit_interval", "ignore_steps", "own_n")


@dataclass(frozen=True)
class Trace:
    """What a run measured."""

    prior_K: np.ndarray
    counts_TxK: np.ndarray  # int64, samples of each step
    loss_TxK: np.ndarray  # mean loss in nats; NaN = absent
    names_K: list[str]
    law_steps_R: np.ndarray | None = None  # laws recorded with the trace: a replay uses them and fits none
    laws_RxKx3: np.ndarray | None = None
    options: dict = field(default_factory=dict)  # options of `released` recorded with the trace
    prefixes_K: list[str] | None = None  # --data-path prefixes, where a domain is one prefix


def read_trace(path: str) -> Trace:
    """Reads PATH: an .npz with prior_K, counts_TxK and loss_TxK, a metrics.jsonl, or a run directory that holds one.

    Raises UserError when it is none of these, or an array is missing or has the wrong shape.
    """
    found = pathlib.Path(path)
    for candidate in (found / "ado" / "metrics.jsonl", found / "metrics.jsonl", found):
        if candidate.is_file():
            return _checked(path, _read_npz(candidate) if zipfile.is_zipfile(candidate) else _read_metrics(candidate))
    raise UserError(f"no trace at {path}: give an .npz trace, a metrics.jsonl or a run directory")


def _read_npz(path) -> Trace:
    try:
        data = load_npz(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the trace {path}: {error}") from None
    for name in ("prior_K", "counts_TxK", "loss_TxK"):
        if name not in data:
            raise UserError(f"the trace {path} has no array {name}; it has {sorted(data)}")
    for name, kinds, ndim in _FORM:
        if name in data and (data[name].dtype.kind not in kinds or data[name].ndim != ndim):
            raise UserError(f"the trace {path}: {name} is {data[name].dtype} of {data[name].ndim} dimensions; it must "
                            f"hold numbers in {ndim}")  # fmt: skip
    if ("laws_RxKx3" in data) != ("law_steps_R" in data):
        raise UserError(f"the trace {path} needs both of law_steps_R and laws_RxKx3, or neither")
    names = [str(name) for name in data.get("domains", [f"domain{k}" for k in range(data["prior_K"].size)])]
    options = {name: data[name].item() for name in _OPTIONS if name in data and data[name].size == 1}
    with np.errstate(invalid="ignore"):
        counts_TxK = data["counts_TxK"].astype(np.int64)
    return Trace(data["prior_K"].astype(np.float64), counts_TxK,
                 data["loss_TxK"].astype(np.float64), names, data.get("law_steps_R"), data.get("laws_RxKx3"), options)


def _read_metrics(path) -> Trace:
    """A line covers the steps since the line before: its counts are spread evenly over them, its loss is theirs."""
    records = read_metrics(path)
    header = next((record for record in records if record["type"] == "run"), None)
    steps = [record for record in records if record["type"] == "step"]
    if header is None or not steps:
        raise UserError(f"{path} has no run header or no step records; is it the metrics.jsonl of a run?")
    for record in (header, *steps):
        check_record(record, path, header)
    names = [str(name) for name in header["domains"]]
    counts, losses, last = [], [], 0
    for record in sorted(steps, key=lambda record: record["step"]):
        size = max(int(record["step"]) - last, 1)
        if size > MOST_STEPS:
            raise UserError(f"line {record.line} of {path} covers {size:,} steps; a replay takes {MOST_STEPS:,}")
        last = int(record["step"])
        edges = np.floor(np.outer(np.arange(size + 1), record["counts_K"]) / size + 1e-9).astype(np.int64)
        counts.append(np.diff(edges, axis=0))
        loss_K = np.array([np.nan if loss is None else loss for loss in record["loss_K"]], np.float64)
        losses.append(np.tile(loss_K, (size, 1)))
    columns = header.get("columns", [])
    prefixes = [str(prefix) for prefix in columns] if len(columns) == len(names) else None
    return Trace(np.array(header["prior_K"], np.float64), np.concatenate(counts), np.concatenate(losses), names,
                 prefixes_K=prefixes)


def _checked(path, trace: Trace) -> Trace:
    """The trace, if its shapes fit together."""
    num = trace.prior_K.size
    shape = (len(trace.counts_TxK), num)
    for name in ("counts_TxK", "loss_TxK"):
        if getattr(trace, name).shape != shape:
            raise UserError(f"the trace {path}: {name} has shape {getattr(trace, name).shape}, not T x {num}")
    if trace.laws_RxKx3 is not None and trace.laws_RxKx3.shape != (len(trace.law_steps_R), num, 3):
        raise UserError(f"the trace {path}: laws_RxKx3 has shape {trace.laws_RxKx3.shape}")
    if len(trace.names_K) != num:
        raise UserError(f"the trace {path} has {len(trace.names_K)} domain names for {num} domains")
    if (trace.counts_TxK < 0).any() or trace.counts_TxK.sum(dtype=np.float64) > 2**53:
        raise UserError(f"the trace {path}: counts_TxK has negative counts, or more than there can be")
    if not (np.isfinite(trace.prior_K).all() and (trace.prior_K >= 0).all() and 0 < trace.prior_K.sum() < np.inf):
        raise UserError(f"the trace {path}: prior_K must be finite, not negative and not all zero")
    if num == 0 or len(trace.counts_TxK) == 0:
        raise UserError(f"the trace {path} holds no domain or no step")
    return trace
