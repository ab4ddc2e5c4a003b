"""Validation: the first samples of each validation prefix through the engine, one mean loss a domain.

Legend: B samples of a micro-batch, L tokens, C datasets (one per prefix), K domains.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from deepspeed.runtime.pipe.engine import PipelineEngine
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.datasets.utils import Split

from ado_megatron.blend.indexed_files import Prefix
from ado_megatron.mixer.world import World
from ado_megatron.trainer.data import build_on_readers
from ado_megatron.trainer.options import TrainerOptions
from ado_megatron.trainer.parallel import ParallelRank
from ado_megatron.trainer.pipeline_loss import PipelineLoss

EvaluationBatch = tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


class Evaluation:
    """The first `eval_samples` samples of each validation prefix, in micro-batches of equal shape on every
    data-parallel rank.

    valid_C: one prefix for each train prefix; one without a whole sample is left out, its loss is absent.
    domain_of_C: the domain of each. Making one is collective: rank zero builds megatron-core's indices first.
    """

    def __init__(
        self, valid_C: tuple[Prefix, ...], domain_of_C: np.ndarray, options: TrainerOptions, place: ParallelRank,
        vocab_size: int, world: World,
    ) -> None:  # fmt: skip
        self._place, self._micro = place, options.micro_batch
        kept = [c for c, prefix in enumerate(valid_C) if prefix.samples(options.seq_length) > 0]
        prefixes = [valid_C[c] for c in kept]
        built = build_on_readers(prefixes, Split.valid, options, vocab_size, place, world)
        self._datasets: list[GPTDataset] = built or []
        # (dataset, sample, domain) of every sample, the same on all ranks
        sizes = [min(options.eval_samples, prefix.samples(options.seq_length)) for prefix in prefixes]
        self._samples = [(d, s, int(domain_of_C[kept[d]])) for d, size in enumerate(sizes) for s in range(size)]
        self.micro_batches = -(-len(self._samples) // (self._micro * place.dp))

    def batches(self) -> Iterator[EvaluationBatch]:
        """`micro_batches` micro-batches; padding repeats a sample under a zero mask. The key's place holds the
        domain."""
        for number in range(self.micro_batches):
            first = (number * self._place.dp + self._place.dp_rank) * self._micro
            rows = [self._row(at) for at in range(first, first + self._micro)]
            tokens_BxL, target_BxL, mask_BxL, domain_B = (torch.stack(column) for column in zip(*rows, strict=True))
            yield tokens_BxL, (target_BxL, mask_BxL, domain_B)

    def _row(self, at: int) -> tuple[torch.Tensor, ...]:
        dataset, sample, domain = self._samples[min(at, len(self._samples) - 1)]
        item = self._datasets[dataset][sample]
        weight = 1.0 if at < len(self._samples) else 0.0
        return item["tokens"], item["labels"], item["loss_mask"] * weight, torch.tensor(domain)

    def run(self, engine: PipelineEngine, loss: PipelineLoss, world: World) -> np.ndarray:
        """Mean token loss of each domain in nats, loss_K (nan: no tokens), on every rank. Collective.

        The engine's own mean is not used: its padding counts.
        """
        batches = self.batches() if self._place.reads else None
        engine.eval_batch(batches, num_micro_batches=self.micro_batches, bcast_loss=False)
        mine_Kx2 = loss.take_valid().to(self._place.device)
        if not self._place.contributes:
            mine_Kx2 = torch.zeros_like(mine_Kx2)
        sums_Kx2 = world.all_reduce_sum(mine_Kx2).cpu().numpy()
        loss_K = np.full(len(sums_Kx2), np.nan)
        np.divide(sums_Kx2[:, 0], sums_Kx2[:, 1], out=loss_K, where=sums_Kx2[:, 1] > 0)
        return loss_K
