"""Validation and test losses by domain, of the framework's own evaluation (--ado-validation).

The framework's validation and test blends stay its own: same samples, same order, same printed loss. Each sample also
carries the number of its prefix; the loss site adds its loss to what that prefix belongs to; one sum over the world at
the end of an evaluation becomes an object of metrics.jsonl:

    {"type": "validation" or "test", "step": …, "loss_K": […|null], "tokens_K": […],
     "others": {NAME: {"loss": …, "tokens": …}}}

A prefix belongs to the train domain of the same prefix or name (`Domains.extended`); `others` are those of none.

Legend: K train domains, N names of a split (the train domains, then the others), E datasets (prefixes of all splits).
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ado_megatron.errors import UserError
from ado_megatron.measure.meter import DomainMeter
from ado_megatron.measure.metrics_writer import MetricsWriter
from ado_megatron.mixer.mixer import Mixer
from ado_megatron.stream.sample_key import KEY_MASK

EVALUATED = "ado_evaluated"  # in a sample of an evaluation: its dataset
KINDS = ("validation", "test")


class EvaluatedSet(torch.utils.data.Dataset):
    """The framework's dataset, whose samples also carry their dataset once it is bound; in all else it is unchanged.

    dataset_id: of all samples, in the split's blend; None: as the framework's blend has it.
    """

    def __init__(self, stock: Any, kind: str, dataset_id: int | None):
        self.kind = kind
        self._stock, self._dataset_id = stock, dataset_id
        self._first: int | None = None

    def bind(self, first: int) -> None:
        """first: number of the split's first prefix. Before the loader's workers start."""
        self._first = first

    def __len__(self) -> int:
        return len(self._stock)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self._stock[index]
        if self._first is None:
            return item
        dataset_id = int(self._stock.dataset_index[index]) if self._dataset_id is None else self._dataset_id
        return {**item, EVALUATED: np.int64(self._first + dataset_id)}

    def __getattr__(self, name: str) -> Any:
        if name == "_stock" or name.startswith("__"):  # while a copy is made; `__getitems__` would go past ours
            raise AttributeError(name)
        return getattr(self._stock, name)


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What one evaluation measured of one split: mean loss (nan without tokens) and tokens of each name."""

    kind: str
    names_N: tuple[str, ...]
    loss_N: np.ndarray
    tokens_N: np.ndarray

    @property
    def losses(self) -> dict[str, float]:
        """Loss by name, of what had tokens."""
        return {name: loss for name, loss in zip(self.names_N, self.loss_N.tolist(), strict=True) if loss == loss}


class Validation:
    """The evaluation's side of a session. Measures nothing until `open`."""

    def __init__(self):
        self._sets: list[EvaluatedSet] = []  # not yet bound
        self._prefixes: dict[str, tuple[str, ...]] = {}
        self._names: dict[str, tuple[str, ...]] = {}
        self._first: dict[str, int] = {}
        self._meter: DomainMeter | None = None
        self._unmeasured: deque[torch.Tensor] = deque()  # datasets of micro-batches whose loss is still to come

    def watch(self, kind: str, stock: Any, prefixes: Sequence[str]) -> Any:
        """The framework's dataset of a split, whose samples say their dataset; of a list, one a prefix, each."""
        self._prefixes[kind] = tuple(prefixes)
        if isinstance(stock, list):
            return [self._watched(kind, one, dataset_id) for dataset_id, one in enumerate(stock)]
        return self._watched(kind, stock, None if hasattr(stock, "dataset_index") else 0)

    def _watched(self, kind: str, stock: Any, dataset_id: int | None) -> EvaluatedSet | None:
        if stock is None:
            return None
        self._sets.append(EvaluatedSet(stock, kind, dataset_id))
        return self._sets[-1]

    def open(self, mixer: Mixer) -> None:
        """Make the meter (first call) and bind the sets built since. Collective, all ranks."""
        if self._meter is None:
            prefixes, total = mixer.world.broadcast(self._prefixes), 0
            number_of_E: list[int] = []
            for kind in KINDS:
                names_N, numbers = mixer.domains.extended(prefixes.get(kind, ()), mixer.config)
                self._names[kind], self._first[kind] = names_N, len(number_of_E)
                number_of_E += [total + number for number in numbers]
                total += len(names_N)
            if len(number_of_E) > KEY_MASK + 1:  # the meter takes datasets out of keys
                raise UserError(
                    f"--ado-validation tells {KEY_MASK + 1} prefixes apart, but the validation and test blends have "
                    f"{len(number_of_E)}; leave it out"
                )
            self._meter = DomainMeter(
                1, np.array(number_of_E, dtype=np.int64), total, contributes=mixer.world.contributes,
                device=mixer.world.device, evaluation=True,
            )  # fmt: skip
        for one in self._sets:
            one.bind(self._first[one.kind])
        self._sets.clear()

    def drawn(self, batch: Any) -> Any:
        """The batch without the numbers of its datasets, which are kept for the loss site; any other batch as it is."""
        if not isinstance(batch, dict) or EVALUATED not in batch:
            return batch
        batch = dict(batch)
        dataset_B = batch.pop(EVALUATED)
        if self._meter is not None and self._meter.contributes:
            self._unmeasured.append(dataset_B)
        return batch

    def measure(self, loss: torch.Tensor, mask: torch.Tensor) -> None:
        """Per-token losses and mask of the oldest micro-batch drawn and not yet measured, [B, …], without gradients."""
        if self._meter is not None and self._unmeasured:  # else nothing is watched
            dataset_B = self._unmeasured.popleft()
            self._meter.add(loss.reshape(len(dataset_B), -1), mask.reshape(len(dataset_B), -1), dataset_B)

    def finish(self, step: int, mixer: Mixer) -> list[Evaluated]:
        """What was measured since the last call, by split; also written to metrics.jsonl. Collective: one sum."""
        if self._meter is None:
            return []
        if self._unmeasured:
            left = len(self._unmeasured)
            raise RuntimeError(f"the evaluation of step {step} drew {left} micro-batches whose loss was not measured")
        sums_x2 = mixer.world.all_reduce_sum(self._meter.take(1))[0].cpu().numpy()
        ends = np.cumsum([len(self._names[kind]) for kind in KINDS])
        evaluated = []
        for kind, (loss_N, tokens_N) in zip(KINDS, (part.T for part in np.split(sums_x2, ends[:-1])), strict=True):
            if tokens_N.any():
                mean_N = np.divide(loss_N, tokens_N, out=np.full(len(loss_N), np.nan), where=tokens_N > 0)
                evaluated.append(Evaluated(kind, self._names[kind], mean_N, tokens_N))
        if mixer.rank_zero is not None:
            for one in evaluated:
                _write(one, step, len(mixer.domains.names_K), mixer.rank_zero.recorder.metrics)
        return evaluated


def _write(one: Evaluated, step: int, num: int, metrics: MetricsWriter) -> None:
    """num: train domains, the first of the names."""
    values: dict[str, Any] = {"loss_K": one.loss_N[:num], "tokens_K": one.tokens_N[:num]}
    others = zip(one.names_N[num:], one.loss_N[num:], one.tokens_N[num:], strict=True)
    if len(one.names_N) > num:
        values["others"] = {name: {"loss": loss, "tokens": tokens} for name, loss, tokens in others}
    metrics.write(one.kind, step, **values)
