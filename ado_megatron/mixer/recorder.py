"""Rank zero's memory of what was measured: the loss history that is fitted, and metrics.jsonl that is read by people.

Legend: K domains, C datasets, T steps, W ranks.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ado_megatron.blend.domains import Domains
from ado_megatron.config import AdoConfig
from ado_megatron.measure.carried import carried
from ado_megatron.measure.metrics_writer import MetricsWriter, StepGroups, fits_between, lines_between
from ado_megatron.measure.record import LARGEST
from ado_megatron.mixer.planner import Planner
from ado_megatron.mixer.resume import Saved
from ado_megatron.scaling_law.fit_process import FitOutcome
from ado_megatron.scaling_law.history import LossHistory
from ado_megatron.stream.schedule import Schedule


class Recorder:
    """Appends reduced steps to the history and to metrics.jsonl."""

    def __init__(self, path: Path, config: AdoConfig, domains: Domains, planner: Planner, schedule: Schedule):
        self._config, self._domains, self._planner, self._schedule = config, domains, planner, schedule
        self.history = LossHistory(len(domains.names_K), config)
        num_domains, blocks = len(domains.names_K), schedule.num_blocks
        self._groups = StepGroups(num_domains, lines_between(num_domains, config.log_interval, blocks))
        self._fits, self._fits_between = 0, fits_between(num_domains, blocks // config.refit_interval)
        header = {
            "domains": list(domains.names_K), "prior_K": domains.prior_K, "columns": list(domains.prefixes_C),
            "lengths_C": domains.lengths_C, "domain_of_C": domains.domain_of_C, "share_C": domains.share_C,
            "caps_C": planner.caps_C, "block_size": planner.block_size, "target_K": planner.target_K,
            "num_blocks": schedule.num_blocks, "config": config.to_dict(),
        }  # fmt: skip
        self.metrics = MetricsWriter(path, header)
        self._measured = np.zeros(len(domains.names_K), np.int64), np.zeros(len(domains.names_K))
        self._ranks_WxN: np.ndarray | None = None
        self._keep: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda record: record

    def restore(self, saved: Saved) -> None:
        """Go on from a saved history; one of another form (bins, steps) cannot be continued and starts afresh."""
        history = LossHistory.from_arrays(saved.history())
        if history.binned == self.history.binned:
            self.history = history
        if not saved.same_data:
            old_K, old_C = saved.old_domain_K().tolist(), saved.old_dataset_C().tolist()
            self._keep = functools.partial(carried, old_K=old_K, old_C=old_C)

    def start(self, step: int) -> None:
        """Begin to write, or go on after `step` steps."""
        self.metrics.start(step, self._keep)

    def record(
        self, steps: list[tuple[int, int, int]], sums_TxKx2: np.ndarray, ranks_WxN: np.ndarray
    ) -> None:  # fmt: skip
        """Append steps (0-based step, samples consumed before, after it) with their loss sums and token counts.
        ranks_WxN: what each rank measured of them (rank_tokens.py)."""
        self._ranks_WxN = ranks_WxN if self._ranks_WxN is None else self._ranks_WxN + ranks_WxN
        step_T, before_T, after_T = np.array(steps, dtype=np.int64).T
        n_TxK = self._n_TxK(after_T)
        samples_TxK = n_TxK - self._n_TxK(before_T)
        self._measured = self._measured[0] + samples_TxK.sum(0), self._measured[1] + sums_TxKx2[:, :, 1].sum(0)
        self.history.extend(step_T, n_TxK, sums_TxKx2[:, :, 0], sums_TxKx2[:, :, 1])
        ended = self._groups.extend(step_T, samples_TxK, sums_TxKx2)
        drawn_SxC = self._schedule.cumulative_many(after_T[[t for t, _ in ended]])
        lines = [
            (int(step_T[t]) + 1, values | self._where(int(after_T[t]), drawn_C))
            for (t, values), drawn_C in zip(ended, drawn_SxC, strict=True)
        ]
        self.metrics.write_all("step", lines)
        # The last measured block may go on (batch ramp), and metrics may still ask for its weights.
        self._planner.forget_before(steps[-1][2] // self._planner.block_size - 1)

    def _n_TxK(self, consumed_T: np.ndarray) -> np.ndarray:
        """Samples of each domain among the first `consumed` of the stream, int64."""
        return self._domains.by_domain_many(self._schedule.cumulative_many(consumed_T))

    def measured(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Samples and tokens of each domain that this process has recorded: samples_K (int64), tokens_K; and what each
        rank measured of them."""
        return *self._measured, self._ranks_WxN

    def flush(self, step: int, consumed_samples: int) -> None:
        """Write the steps of an unfinished logging interval (before a checkpoint, at the end)."""
        values = self._groups.flush()
        if values is not None:
            where = self._where(consumed_samples, self._schedule.cumulative(consumed_samples))
            self.metrics.write("step", step, **values, **where)

    def _where(self, consumed_samples: int, drawn_C: np.ndarray) -> dict[str, Any]:
        """What a line says of the position at its end. drawn_C: samples of each dataset up to there."""
        block = max(consumed_samples - 1, 0) // self._planner.block_size
        values: dict[str, Any] = {"consumed_samples": consumed_samples, "weights_K": self._planner.weights_K(block)}
        values["time"] = round(time.time(), 3)  # when it was written: at a reduction, not at the step
        values["epochs_C"] = drawn_C / np.maximum(self._domains.lengths_C, 1)
        if self._config.shadow:
            values["shadow_weights_K"] = self._planner.shadow_K(block)
        return values

    def write_fit(self, step: int, history_steps: int, applies_at_block: int, outcome: FitOutcome) -> None:
        """One object a fit: the laws with their diagnostics, how long it took and how long the training waited; of very
        many laws only some (fits_between).

        step: steps done when the laws came; history_steps: steps that they were fitted on.
        """
        self._fits += 1
        if outcome.laws is not None and (self._fits - 1) % self._fits_between:
            return
        values: dict[str, Any] = {"history_steps": history_steps, "applies_at_block": applies_at_block}
        values |= {"seconds": outcome.seconds, "wait_seconds": outcome.waited}
        if outcome.laws is None:
            values["failed"] = outcome.reason
        else:
            values |= {name: _readable(value) for name, value in outcome.laws.to_arrays().items()}
            n_K = np.maximum(self._domains.by_domain(self._planner.laid_out_C), 1)
            laws = outcome.laws if self._planner.laws is None else self._planner.laws
            values["speed_K"] = laws.speed(laws.effective_n(n_K))
        values |= {name: a for name, a in self._planner.state.to_arrays().items() if name == "credit_K"}
        self.metrics.write("fit", step, **values)


def _readable(values: np.ndarray) -> np.ndarray:
    """With nan for what no reader takes: the error of a law of which nothing is known may be any number."""
    return np.where(np.abs(values) <= LARGEST, values, np.nan) if values.dtype.kind == "f" else values
