"""The loss history of a run: appended step by step at O(K), turned into the points of a fit.

Legend: K domains, T rows (steps, or bins of steps), n samples seen.

Two forms, chosen by the config's `smoothing`:
- "bins": rows are bins of consecutive steps, b = step // width. When the bins are used up, the width doubles and
  neighbours are added together, so memory and the cost of a fit stay bounded however long the run. Sums are kept, so
  a bin weighs its tokens, and the rows depend on the steps alone, not on when they were appended or saved.
- "savgol" and "none": rows are steps, all kept. A step without samples of a domain repeats its last loss (the first
  step: the mean over all domains), as in the released code.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.scaling_law.options import LawOptions

_FIRST_ROWS = 256
_SUMS = ("steps", "total", "n", "loss", "tokens")
_ROWS = ("step", "last", *_SUMS)
_SCALARS = ("binned", "width", "last_step", "max_bins", "ignore_steps", "num_domains")


class LossHistory:
    """Rows of (step, n, loss, tokens) for K domains. Not thread-safe; arrays handed out are copies."""

    def __init__(self, num_domains: int, config: LawOptions | None = None):
        """config decides the form (None: the defaults)."""
        config = (config or LawOptions()).resolved()
        self.num_domains = num_domains
        self.binned = config.smoothing == "bins"
        self.ignore_steps = config.ignore_steps if self.binned else 0
        self.width = config.stride if self.binned else 1
        self.max_bins = config.max_bins
        self.last_step = -1
        self._rows = 0
        self._step = np.zeros(0, np.int64)
        self._last = np.zeros(0, np.int64)
        self._steps = np.zeros(0, np.int64)  # steps in a row
        self._total = np.zeros(0)  # samples of all domains, summed over the steps of a row
        self._n = np.zeros((0, num_domains))
        self._loss = np.zeros((0, num_domains))
        self._tokens = np.zeros((0, num_domains))

    def append(
        self, step: int, n_K: ArrayLike, samples_K: ArrayLike, loss_sum_K: ArrayLike, tokens_K: ArrayLike
    ) -> None:
        """Adds one training step.

        n_K: samples laid out of each domain up to the end of this step. samples_K: those of this step.
        loss_sum_K, tokens_K: sum of the token losses in nats and number of tokens; 0 tokens = absent.
        Raises ValueError when the step is not after the last one, or a shape is not K.
        """
        n_1xK, loss_sum_1xK, tokens_1xK = (np.asarray(a, np.float64)[None] for a in (n_K, loss_sum_K, tokens_K))
        if np.shape(samples_K) != (self.num_domains,):
            raise ValueError(f"step {step}: every array must have shape ({self.num_domains},)")
        self.extend(np.array([step]), n_1xK, loss_sum_1xK, tokens_1xK)

    def extend(
        self, step_T: np.ndarray, n_TxK: np.ndarray, loss_sum_TxK: np.ndarray, tokens_TxK: np.ndarray
    ) -> None:
        """Adds training steps, exactly as `append` would one by one.

        step_T: ascending. n_TxK, loss_sum_TxK, tokens_TxK: rows as `append` takes them.
        Raises ValueError when a step is not after the one before, or a shape is not T x K.
        """
        shape = (len(step_T), self.num_domains)
        if any(array.shape != shape for array in (n_TxK, loss_sum_TxK, tokens_TxK)):
            raise ValueError(f"step {step_T[0]}: every array must have shape ({self.num_domains},)")
        before_T = np.concatenate([[self.last_step], step_T[:-1]])
        if (step_T <= before_T).any():
            t = int(np.argmax(step_T <= before_T))
            raise ValueError(f"step {step_T[t]} is not after step {before_T[t]}")
        if not len(step_T):
            return
        self.last_step = int(step_T[-1])
        n_TxK = np.asarray(n_TxK, np.float64)
        if not self.binned:
            self._append_rows(step_T, n_TxK, loss_sum_TxK, tokens_TxK)
            return
        with np.errstate(invalid="ignore"):  # a loss that is not finite and positive counts as absent
            seen_TxK = (tokens_TxK > 0) & np.isfinite(tokens_TxK) & np.isfinite(loss_sum_TxK) & (loss_sum_TxK > 0)
        tokens_TxK, loss_sum_TxK = np.where(seen_TxK, tokens_TxK, 0.0), np.where(seen_TxK, loss_sum_TxK, 0.0)
        sums = {"n": tokens_TxK * n_TxK, "loss": loss_sum_TxK, "tokens": tokens_TxK, "total": n_TxK.sum(1)}
        sums["steps"] = np.ones(len(step_T), np.int64)
        first = int(np.searchsorted(step_T, self.ignore_steps))
        while first < len(step_T):
            while step_T[first] // self.width >= self.max_bins:
                self._halve()
            stop = int(np.searchsorted(step_T, self.width * self.max_bins))
            self._append_bins(step_T[first:stop], {name: value[first:stop] for name, value in sums.items()})
            first = stop

    def _append_rows(
        self, step_T: np.ndarray, n_TxK: np.ndarray, loss_sum_TxK: np.ndarray, tokens_TxK: np.ndarray
    ) -> None:
        """A row a step; a domain without tokens repeats its last loss (at first the mean of all domains)."""
        first, seen_TxK = self._rows, tokens_TxK > 0
        for step in step_T.tolist():
            self._new_row(step)
        if first:
            absent_K = self._loss[first - 1]
        else:
            total = tokens_TxK[0][seen_TxK[0]].sum()
            absent_K = np.full(
                self.num_domains, loss_sum_TxK[0][seen_TxK[0]].sum() / total if total > 0 else np.nan
            )  # fmt: skip
        loss_TxK = loss_sum_TxK / np.where(seen_TxK, tokens_TxK, 1.0)
        last_TxK = np.maximum.accumulate(np.where(seen_TxK, np.arange(len(step_T))[:, None], -1), axis=0)
        repeated_TxK = np.take_along_axis(loss_TxK, np.maximum(last_TxK, 0), axis=0)
        rows = slice(first, self._rows)
        self._loss[rows] = np.where(last_TxK < 0, absent_K, repeated_TxK)
        self._n[rows], self._tokens[rows], self._last[rows] = n_TxK, tokens_TxK, step_T
        self._total[rows], self._steps[rows] = n_TxK.sum(1), 1

    def _append_bins(self, step_T: np.ndarray, sums: dict[str, np.ndarray]) -> None:
        """Sums of steps go to their bins, which are of the present width; of the first one, which may have a row
        already, they are added to it step by step."""
        start_T = step_T // self.width * self.width
        first_R = np.flatnonzero(np.diff(start_T, prepend=-1))
        row = self._rows - 1
        if row < 0 or self._step[row] != start_T[0]:
            row = self._new_row(int(start_T[0]))
        for start in start_T[first_R[1:]].tolist():
            self._new_row(start)
        for name, value in sums.items():
            array = getattr(self, "_" + name)
            value[0] += array[row]
            for r, part in enumerate(np.split(value, first_R[1:])):
                array[row + r] = _sum_in_order(part)
        self._last[row : row + len(first_R)] = step_T[np.append(first_R[1:], len(step_T)) - 1]

    def _new_row(self, step: int) -> int:
        """An empty row that starts at `step`; the arrays double when they are full."""
        if self._rows == len(self._step):
            size = max(2 * self._rows, _FIRST_ROWS)
            for name in _ROWS:
                old = getattr(self, "_" + name)
                new = np.zeros((size, *old.shape[1:]), old.dtype)
                new[: self._rows] = old[: self._rows]
                setattr(self, "_" + name, new)
        self._step[self._rows] = step
        self._rows += 1
        return self._rows - 1

    def _halve(self) -> None:
        """Doubles the width: bins that share their new start are added."""
        self.width *= 2
        starts_T = self._step[: self._rows] // self.width * self.width
        first_R = np.flatnonzero(np.diff(starts_T, prepend=-1))
        rows = first_R.size
        if rows:
            for name in _SUMS:
                array = getattr(self, "_" + name)
                merged = np.add.reduceat(array[: self._rows], first_R, axis=0)
                array[: self._rows] = 0
                array[:rows] = merged
            self._last[:rows] = np.maximum.reduceat(self._last[: self._rows], first_R)
            self._step[:rows] = starts_T[first_R]
        self._rows = rows

    def snapshot(self, step: int) -> dict[str, np.ndarray]:
        """The rows with all their steps before `step`, as arrays: what `fit_history` takes. n, total and loss
        are means over the row's steps. Not to be written to: rows of single steps never change, and are not copied."""
        rows = int(np.searchsorted(self._last[: self._rows], step))
        n, loss, tokens = self._n[:rows], self._loss[:rows], self._tokens[:rows]
        if self.binned:
            n, loss = (a / np.where(tokens > 0, tokens, 1.0) for a in (n, loss))
            loss[tokens == 0] = np.nan
            tokens = tokens.copy()
        total = self._total[:rows] / self._steps[:rows]
        arrays = {"step_T": self._step[:rows].copy(), "total_T": total, "n_TxK": n, "loss_TxK": loss,
                  "tokens_TxK": tokens}  # fmt: skip
        for array in arrays.values():
            array.setflags(write=False)
        return arrays

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The whole state, for a checkpoint."""
        rows = {name: getattr(self, "_" + name)[: self._rows].copy() for name in _ROWS}
        return rows | {name: np.array(getattr(self, name)) for name in _SCALARS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> LossHistory:
        """The inverse of to_arrays: appending goes on as if there had been no break."""
        history = cls(int(arrays["num_domains"]))
        for name in _SCALARS:
            setattr(history, name, arrays[name].item())
        for name in _ROWS:
            setattr(history, "_" + name, np.array(arrays[name]))
        history._rows = len(history._step)
        return history


def _sum_in_order(value_TxK: np.ndarray) -> np.ndarray:
    """The rows added one after the other; numpy adds a single column in another order, whose last bits differ."""
    if value_TxK[0].size > 1:
        return np.add.reduce(value_TxK, axis=0)
    return np.add.accumulate(value_TxK, axis=0)[-1]
