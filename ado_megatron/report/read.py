"""A run's metrics.jsonl as the arrays of data.py; every value is checked, and what is wrong names file and line.

Legend: K domains, C datasets, S logging intervals.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ado_megatron.blend.epoch_caps import with_share
from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.measure.metrics import read_metrics
from ado_megatron.measure.record import LARGEST, MOST, Record
from ado_megatron.report.data import Fit, Gap, Run, Supply

MOST_SAMPLES = 1 << 40  # of a domain in one interval: their sum over a run stays within 64 bits
MOST_CAP = 2.0**63  # how "no cap" is written
MOST_OF_LAW = 1e4  # of a law's logarithms and exponent
PROGRESS = ("step", "loss", "lr", "grad_norm", "samples_per_second")


def read_run(path: str | Path) -> Run:
    """The run in a run directory.

    UserError when there is no metrics.jsonl with at least one interval, and, naming file and line, for a damaged one.
    """
    run_dir = Path(path).expanduser()
    file = run_dir / "ado" / "metrics.jsonl"
    if not file.exists():
        raise UserError(f"{run_dir} is no run directory with measurements: there is no {file}")
    header, *records = read_metrics(file)
    steps = [record for record in records if record["type"] == "step"]
    if not steps:
        raise UserError(f"{file} has no measured interval yet; wait for --ado-log-interval steps")
    for before, record in zip(steps, steps[1:], strict=False):
        if record["step"] <= before["step"]:
            raise record.bad(f"its step {record['step']} does not come after step {before['step']}")
    return _run(run_dir.resolve(), header, steps, records)


def _run(path: Path, header: Record, steps: list[Record], records: list[Record]) -> Run:
    names = header.texts("domains")
    num = len(names)
    validations = [record for record in records if record["type"] == "validation"]
    progress = [record for record in records if record["type"] == "progress"]

    def rows(name: str, low: float = -LARGEST, high: float = LARGEST, whole: bool = False) -> np.ndarray:
        return np.array([record.array(name, num, low=low, high=high, whole=whole) for record in steps])

    return Run(
        path=path,
        names_K=names,
        prior_K=_weights(header, "prior_K", num),
        config=_config(header),
        step_S=np.array([record["step"] for record in steps]),
        counts_SxK=rows("counts_K", 0, MOST_SAMPLES, whole=True),
        tokens_SxK=np.nan_to_num(rows("tokens_K", 0, MOST)),
        loss_SxK=rows("loss_K"),
        weights_SxK=np.array([_weights(record, "weights_K", num) for record in steps]),
        supply=_supply(header, steps[-1], num),
        fits=[_fit(record, num, _config(header).given_transfer) for record in records if record["type"] == "fit"],
        validation_step_V=np.array([record["step"] for record in validations], dtype=int),
        validation_VxK=np.array([record.array("loss_K", num) for record in validations]).reshape(-1, num),
        progress={key: np.array([record.number(key, np.nan) for record in progress]) for key in PROGRESS},
        gaps=[_gap(record) for record in records if record["type"] == "gap"],
    )


def _weights(record: Record, name: str, num: int) -> np.ndarray:
    weights_K = record.array(name, num, low=0, high=MOST)
    if not weights_K.sum() > 0:  # nan, too
        raise record.bad(f"{name} has no weight above zero, or one that is not known")
    return weights_K


def _config(header: Record) -> AdoConfig:
    values = header.value("config")
    if not isinstance(values, dict):
        raise header.bad("its config is no object")
    try:
        return AdoConfig.from_dict(values).resolved()
    except UserError as error:
        raise header.bad(f"its config holds what no run has: {error}") from error


def _supply(header: Record, last: Record, num: int) -> Supply:
    datasets = _length(header, "domain_of_C")
    domain_of_C = header.array("domain_of_C", datasets, low=0, high=num - 1, whole=True)
    if len(np.unique(domain_of_C)) != num:
        raise header.bad(f"domain_of_C does not name each of {num} domains")
    length_C = header.array("lengths_C", datasets, low=0, high=MOST)
    share_C = header.array("share_C", datasets, low=0) if "share_C" in header else length_C
    caps_C = None if header.get("caps_C") is None else header.array("caps_C", datasets, low=0, high=MOST_CAP)
    epochs_C, consumed = last.array("epochs_C", datasets, low=0, high=MOST), last.integer("consumed_samples")
    block_size = header.integer("block_size", 1)
    return Supply(
        length_K=with_share(domain_of_C, share_C, length_C),
        drawn_K=with_share(domain_of_C, share_C, np.rint(length_C * epochs_C)),
        cap_K=None if caps_C is None else with_share(domain_of_C, share_C, caps_C),
        samples_left=max(header.integer("num_blocks") * block_size - consumed, 0),
        block_size=block_size,
    )


def _length(record: Record, name: str) -> int:
    values = record.value(name)
    if not isinstance(values, list):
        raise record.bad(f"{name} is no list")
    return len(values)


def _fit(record: Record, num: int, transfer: float) -> Fit:
    """transfer: of laws that were recorded before laws had one."""

    def row(name: str, *more: int, most: float = LARGEST) -> np.ndarray:
        if record.get(name) is None:
            return np.full((num, *more), np.nan)
        return record.array(name, num, *more, low=-most, high=most)

    failed = record.get("failed")
    transfer_K = np.full(num, transfer)
    if "transfer_K" in record:  # JSON has no ∞: it is null
        transfer_K = np.where(np.isnan(row("transfer_K")), np.inf, row("transfer_K"))
    return Fit(
        step=record["step"],
        law_Kx3=np.stack([row(name, most=MOST_OF_LAW) for name in ("log_beta_K", "log_epsilon_K", "alpha_K")], axis=1),
        transfer_K=transfer_K,
        ok_K=_truths(record, "ok_K", num),
        reason_K=_reasons(record, num),
        rms_K=row("rms_K"),
        stderr_Kx3=row("stderr_Kx3", 3),
        speed_stderr_K=row("speed_stderr_K"),
        credit_K=row("credit_K"),
        seconds=float(np.nan_to_num(record.number("seconds", 0.0))),
        wait_seconds=float(np.nan_to_num(record.number("wait_seconds", 0.0))),
        failed=None if failed is None else str(failed),
    )


def _truths(record: Record, name: str, num: int) -> np.ndarray:
    """A list of true and false; all false where the record has none (a failed fit)."""
    values = record.get(name, [False] * num)
    if not isinstance(values, list) or len(values) != num or not all(isinstance(value, bool) for value in values):
        raise record.bad(f"{name} does not hold {num} times true or false")
    return np.array(values, dtype=bool)


def _reasons(record: Record, num: int) -> list[str]:
    values = record.get("reason_K") or [""] * num
    if not isinstance(values, list) or len(values) != num:
        raise record.bad(f"reason_K does not hold {num} texts")
    return [str(reason or "") for reason in values]


def _gap(record: Record) -> Gap:
    return Gap(record.integer("from_step"), record["step"], record.integer("records", 1))
