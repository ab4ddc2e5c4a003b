"""Recorded runs as input of a replay: an .npz trace or a run's metrics.jsonl.

Legend: K domains, T steps, R refits.
"""

from dataclasses import dataclass, field

import numpy as np

from ado_megatron.errors import UserError


@dataclass(frozen=True)
class Trace:
    """What a run measured."""

    prior_K: np.ndarray
    counts_TxK: np.ndarray  # int64, samples of each step
    loss_TxK: np.ndarray  # mean loss; NaN = absent
    names_K: list[str]
    law_steps_R: np.ndarray | None = None
    laws_RxKx3: np.ndarray | None = None
    options: dict = field(default_factory=dict)  # start_step, refit_interval, own_n, … recorded with the trace


def read_trace(path: str) -> Trace:
    """Reads an .npz trace. Raises UserError when a needed array is missing or has the wrong shape."""
    try:
        with np.load(path, allow_pickle=False) as file:
            data = dict(file)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the trace {path}: {error}") from None
    for name in ("prior_K", "counts_TxK", "loss_TxK"):
        if name not in data:
            raise UserError(f"the trace {path} has no array {name}; it has {sorted(data)}")
    num = data["prior_K"].size
    for name in ("counts_TxK", "loss_TxK"):
        if data[name].ndim != 2 or data[name].shape[1] != num or len(data[name]) != len(data["counts_TxK"]):
            raise UserError(f"the trace {path}: {name} has shape {data[name].shape}, not T x {num}")
    names = [str(name) for name in data.get("domains", [f"domain{k}" for k in range(num)])]
    options = {name: data[name].item() for name in ("start_step", "refit_interval", "ignore_steps", "own_n") if name in data}
    return Trace(data["prior_K"].astype(np.float64), data["counts_TxK"].astype(np.int64),
                 data["loss_TxK"].astype(np.float64), names, data.get("law_steps_R"), data.get("laws_RxKx3"), options)
