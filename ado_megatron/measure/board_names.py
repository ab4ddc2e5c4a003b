"""The names under which a run appears in TensorBoard, W&B and MLflow: one table for `pretrain` and all frameworks.

Whoever writes to a board builds its scalars here; launch/README.md shows the table, and the tests hold it against what
arrives. A name keeps its meaning from one version to the next.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple


class BoardName(NamedTuple):
    """One row. DOMAIN in `name` stands for the name of a domain. by: who writes it ("all", or "pretrain" alone)."""

    name: str
    meaning: str
    by: str = "all"


TABLE = (
    BoardName("ado/weight/DOMAIN", "weight in force for the next batch; the weights of a step sum to 1"),
    BoardName("ado/validation/DOMAIN", "validation loss in nats a token (a framework's: with `--ado-validation`)"),
    BoardName("ado/test/DOMAIN", "test loss in nats a token, with `--ado-validation`", "frameworks"),
    BoardName("ado/loss/DOMAIN", "training loss in nats a token, mean since the last value (as of the last reduction)"),
    BoardName("ado/tokens/DOMAIN", "tokens trained on so far, of those that were measured"),
    BoardName("ado/epochs/DOMAIN", "epochs drawn so far"),
    BoardName("ado/forecast/DOMAIN", "loss at the end of the run by the law in force, if the weights stay"),
    BoardName("ado/target_loss", "training losses of late, weighted by the target"),
    BoardName("ado/target_forecast", "its value at the end of the run by the laws in force, if the weights stay"),
    BoardName("ado/changes", "changes by `ado-megatron set` so far: a rise is one, metrics.jsonl says which"),
    BoardName("ado/alarms", "alarms so far: a rise is one, the log and metrics.jsonl say which"),
    BoardName("train/loss", "loss of the step in nats a token", "pretrain"),
    BoardName("train/lr", "learning rate of the step", "pretrain"),
    BoardName("train/grad_norm", "norm of the step's gradient before clipping", "pretrain"),
)
_NAMES = frozenset(row.name for row in TABLE)


def by_domain(kind: str, values: Mapping[str, float]) -> dict[str, float]:
    """{"ado/weight/wiki": 0.4, …} of {"wiki": 0.4, …} and "weight". ValueError for a kind that the table lacks."""
    name = _known(f"ado/{kind}/DOMAIN")
    return {name.replace("DOMAIN", domain): float(value) for domain, value in values.items()}


def of_run(**values: float) -> dict[str, float]:
    """{"ado/alarms": 2.0, …} of alarms=2, …. ValueError for a name that the table lacks."""
    return {_known(f"ado/{name}"): float(value) for name, value in values.items()}


def of_step(**values: float) -> dict[str, float]:
    """{"train/loss": 2.5, …} of loss=2.5, …. ValueError for a name that the table lacks."""
    return {_known(f"train/{name}"): float(value) for name, value in values.items()}


def mlflow_name(name: str) -> str:
    """A name as MLflow takes it: of a domain's name only letters, digits and `_-. :` are left."""
    *kinds, last = name.split("/", 2)
    return "/".join([*kinds, re.sub(r"[^\w.\- :]", "_", last)])


def _known(name: str) -> str:
    if name not in _NAMES:
        raise ValueError(f"{name} is not in the table of board_names.py")
    return name
