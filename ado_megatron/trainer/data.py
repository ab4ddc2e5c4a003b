"""Batches: megatron-core GPTDatasets of one epoch each, mixed by the adaptive blend, cut for a data-parallel rank.

Every rank of the first and the last pipeline stage reads for itself; both draw the same samples, since the stream is a
function of the sample index. A batch is `(tokens_BxL, (targets_BxL, mask_BxL, key_B))`, the form of DeepSpeed's
pipeline.

Legend: B samples of a micro-batch, L tokens, C columns (prefixes), K domains.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.utils import Split

from ado_megatron.blend.indexed_files import Prefix
from ado_megatron.measure.draw_log import DrawLog
from ado_megatron.stream.blended_dataset import AdaptiveBlend
from ado_megatron.trainer.check_data import DataSpec
from ado_megatron.trainer.options import TrainerOptions
from ado_megatron.trainer.parallel import Place
from ado_megatron.trainer.step_plan import StepPlan

PREFETCH_FACTOR = 2
SAMPLE_BYTES = 8 + 8 + 4  # of a token: the token, its target, its mask, as a worker hands them over


class _TokenizerFacts:
    """What GPTDataset asks a tokenizer for; the tokens are in the files already. No document mask is used, so neither
    is `eod`."""

    def __init__(self, vocab_size: int):
        self.vocab_size, self.eod, self.pad = vocab_size, 0, -1
        self.unique_identifiers = {"vocab_size": vocab_size}


def build_datasets(
    prefixes: Sequence[Prefix], split: Split, options: TrainerOptions, vocab_size: int
) -> list[GPTDataset]:
    """One GPTDataset a prefix, all its documents, one epoch. Rank zero writes the sample indices; call it there first.

    No collective inside: only the ranks that read come here.
    """
    cache = Path(options.data_cache) if options.data_cache else Path(options.run_dir) / "cache"
    config = GPTDatasetConfig(
        random_seed=options.seed,
        sequence_length=options.seq_length,
        blend=([prefix.path for prefix in prefixes], None),
        split="1,0,0",
        path_to_cache=str(cache),
        tokenizer=_TokenizerFacts(vocab_size),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    logging.getLogger("megatron.core").setLevel(logging.WARNING)
    datasets = []
    for prefix in prefixes:
        documents = GPTDataset.build_low_level_dataset(prefix.path, config)
        chosen = np.arange(len(documents), dtype=np.int32)
        datasets.append(GPTDataset(documents, prefix.path, chosen, None, split, config))
        if len(datasets[-1]) != prefix.samples(options.seq_length):
            raise RuntimeError(
                f"{prefix.path}: megatron-core makes {len(datasets[-1])} samples, not "
                f"{prefix.samples(options.seq_length)}"
            )
    return datasets


def build_train(data: DataSpec, options: TrainerOptions, place: Place) -> list[GPTDataset] | None:
    """The train datasets on ranks that read, None elsewhere. Collective: rank zero builds the indices, then the others
    read them."""
    datasets = None
    if place.rank == 0:
        datasets = build_datasets(data.train_C, Split.train, options, data.vocab_size)
    torch.distributed.barrier()
    if place.rank != 0 and place.reads:
        datasets = build_datasets(data.train_C, Split.train, options, data.vocab_size)
    return datasets


class _Batches:
    """Batch sampler of the rest of the run."""

    def __init__(self, plan: StepPlan, first_step: int, place: Place):
        self._arguments = (plan, first_step, place.dp, place.dp_rank)

    def __iter__(self) -> Iterator[list[int]]:
        plan, first_step, dp, dp_rank = self._arguments
        return plan.micro_batches(first_step, dp, dp_rank)


def collate(items: list[dict[str, Any]]) -> tuple[torch.Tensor, ...]:
    """(tokens_BxL, targets_BxL, mask_BxL, key_B, sample_B)."""
    stacked = [torch.stack([item[name] for item in items]) for name in ("tokens", "labels", "loss_mask")]
    numbers = [
        torch.tensor([int(item[name]) for item in items], dtype=torch.int64) for name in ("ado_key", "ado_sample")
    ]
    return *stacked, *numbers


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


class Feed:
    """The iterator that the engine pulls micro-batches from. `step` is set by the loop; a draw log hears of a batch
    when it is used."""

    def __init__(self, loader: torch.utils.data.DataLoader, draw_log: DrawLog | None):
        self._batches = iter(loader)
        self._draw_log = draw_log
        self.step = 0

    def __iter__(self) -> Feed:
        return self

    def __next__(self):
        tokens_BxL, target_BxL, mask_BxL, key_B, sample_B = next(self._batches)
        if self._draw_log is not None:
            self._draw_log.drawn(self.step, key_B.numpy(), sample_B.numpy())
        return tokens_BxL, (target_BxL, mask_BxL, key_B)

    def close(self) -> None:
        """Stop the loader's processes; before the schedule that they read goes away."""
        self._batches = iter(())


def make_feed(
    datasets: list[GPTDataset] | None, mixer, options: TrainerOptions, plan: StepPlan, place: Place, first_step: int
) -> Feed | None:
    """The train batches of this rank from `first_step` on; None on ranks that read none."""
    if datasets is None:
        return None
    blend = AdaptiveBlend(datasets, mixer.schedule, host_key="dataset_id", domain_of_C=mixer.domains.domain_of_C)
    workers = {}
    if options.num_workers > 0:
        context = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
        workers = {
            "multiprocessing_context": context,
            "prefetch_factor": PREFETCH_FACTOR,
            "worker_init_fn": _one_thread,
        }
    loader = torch.utils.data.DataLoader(
        blend,
        batch_sampler=_Batches(plan, first_step, place),
        num_workers=options.num_workers,
        collate_fn=collate,
        pin_memory=place.device.type == "cuda",
        **workers,
    )
    return Feed(loader, mixer.draw_log)


class Validation:
    """The first `eval_samples` samples of each validation prefix, in micro-batches of equal shape on every
    data-parallel rank."""

    def __init__(self, data: DataSpec, domain_of_C: np.ndarray, options: TrainerOptions, place: Place):
        """Collective: rank zero builds the indices first."""
        self._datasets: list[GPTDataset] = []
        self._place, self._micro = place, options.micro_batch
        # Empty validation sets have no index to build; their loss is absent.
        kept = [c for c, prefix in enumerate(data.valid_C) if prefix.samples(options.seq_length) > 0]
        prefixes = [data.valid_C[c] for c in kept]
        if place.rank == 0:
            self._datasets = build_datasets(prefixes, Split.valid, options, data.vocab_size)
        torch.distributed.barrier()
        if place.rank != 0 and place.reads:
            self._datasets = build_datasets(prefixes, Split.valid, options, data.vocab_size)
        # (dataset, sample, domain) of every sample, the same on all ranks
        sizes = [min(options.eval_samples, prefix.samples(options.seq_length)) for prefix in prefixes]
        self._samples = [(d, s, int(domain_of_C[kept[d]])) for d, size in enumerate(sizes) for s in range(size)]
        self.micro_batches = -(-len(self._samples) // (self._micro * place.dp))

    def batches(self) -> Iterator:
        """`micro_batches` micro-batches; padding repeats a sample under a zero mask. The key's place holds the
        domain."""
        for number in range(self.micro_batches):
            first = (number * self._place.dp + self._place.dp_rank) * self._micro
            rows = [self._row(at) for at in range(first, first + self._micro)]
            tokens, target, mask, domain = (torch.stack(column) for column in zip(*rows, strict=True))
            yield tokens, (target, mask, domain)

    def _row(self, at: int) -> tuple[torch.Tensor, ...]:
        dataset, sample, domain = self._samples[min(at, len(self._samples) - 1)]
        item = self._datasets[dataset][sample]
        weight = 1.0 if at < len(self._samples) else 0.0
        return item["tokens"], item["labels"], item["loss_mask"] * weight, torch.tensor(domain)
