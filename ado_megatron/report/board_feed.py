"""What rank zero writes in metrics.jsonl, as scalars for TensorBoard and W&B.

The rank that writes to a framework's boards is the last one, which knows no losses by domain and no laws; it reads them
where rank zero has put them, so no rank says anything to another. A file that this rank does not see gives nothing.

Legend: K domains.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ado_megatron.files import BestEffort
from ado_megatron.measure.board_names import by_domain, of_run
from ado_megatron.measure.metrics import MetricsFollower
from ado_megatron.report.ahead import loss_at_end_K, supply_at_end
from ado_megatron.report.data import Run, token_mean
from ado_megatron.report.read import RunReader

_MOST = 64  # intervals kept: a board needs the newest
_NEWS = {"step", "fit", "change", "alarm"}  # records that change what is shown; others come at every step


class BoardFeed:
    """Follows one run's file; `look` gives the scalars that came with what is new in it."""

    def __init__(self, directory: str | Path):
        """directory: RUN/ado."""
        self._follower = MetricsFollower(Path(directory) / "metrics.jsonl")
        self._reader: RunReader | None = None
        self._step = 0  # up to which intervals are told
        self._effort = BestEffort("what boards show of metrics.jsonl", errors=(Exception,))

    def look(self) -> dict[str, float]:
        """By name; {} when there is nothing new. Never raises: what people look at stops no training."""
        found: dict[str, float] = {}
        self._effort.attempt(lambda: found.update(self._look()))
        return found

    def _look(self) -> dict[str, float]:
        news = self._follower.look()
        records = news.records
        if news.afresh:
            self._reader, records = RunReader(self._follower.path.parent.parent, records[0], _MOST), records[1:]
        if self._reader is None or not records:
            return {}
        for record in records:
            self._reader.add(record)
        told = self._reader.steps and any(record["type"] in _NEWS for record in records)
        return self._scalars(self._reader.run()) if told else {}

    def _scalars(self, run: Run) -> dict[str, float]:
        ahead, laws = supply_at_end(run), run.laws()
        values = {
            "tokens": run.tokens_SxK.sum(0), "epochs": run.supply.drawn_K / np.maximum(run.supply.length_K, 1),
            "forecast": np.where(laws.step_K > 0, loss_at_end_K(run, ahead), np.nan),
        }  # fmt: skip
        new = int((run.step_S > self._step).sum())
        if new:
            late = run.tail(new)
            values["loss"] = token_mean(late.loss_SxK, late.tokens_SxK)
        self._step = int(run.step_S[-1])
        scalars: dict[str, float] = {}
        for kind, value_K in values.items():
            pairs = zip(run.names_K, value_K, strict=True)
            scalars |= by_domain(kind, {name: value for name, value in pairs if np.isfinite(value)})
        counts = {f"{kind}s": float(sum(event.kind == kind for event in run.events)) for kind in ("alarm", "change")}
        return scalars | of_run(**counts, **_target_loss(run, values["forecast"]))


def _target_loss(run: Run, forecast_K: np.ndarray) -> dict[str, float]:
    """Σ τ L of the newest losses, and of those at the end by the laws; nothing where one that counts is not known."""
    if run.target_K is None:
        return {}
    counts_K = run.target_K > 0
    found = {"target_loss": run.last_loss_K(), "target_forecast": forecast_K}
    return {name: float(run.target_K[counts_K] @ loss_K[counts_K]) for name, loss_K in found.items()
            if np.isfinite(loss_K[counts_K]).all()}  # fmt: skip
