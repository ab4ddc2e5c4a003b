"""Batches: megatron-core GPTDatasets of one epoch each, mixed by the adaptive blend, cut for a data-parallel rank.

Every rank of the first and the last pipeline stage reads for itself; both draw the same samples, since the stream is a
function of the sample index. A batch is `(tokens_BxL, (targets_BxL, mask_BxL, key_B))`, the form of DeepSpeed's
pipeline.

Legend: B samples of a micro-batch, L tokens, C datasets (one per prefix), K domains.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.utils import Split

from ado_megatron.blend.indexed_files import Prefix
from ado_megatron.measure.draw_log import DrawLog
from ado_megatron.mixer import Mixer, World
from ado_megatron.stream.blended_dataset import AdaptiveBlend
from ado_megatron.trainer.options import TrainerOptions
from ado_megatron.trainer.parallel import ParallelRank
from ado_megatron.trainer.step_plan import StepPlan

PREFETCH_FACTOR = 2
SAMPLE_BYTES = 8 + 8 + 4  # of a token: the token, its target, its mask, as a worker hands them over
_PATIENCE = 30  # seconds that a loader process outlives a signal to end

TrainBatch = tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


class _TokenizerFacts:
    """What GPTDataset asks a tokenizer for; the tokens are in the files already. No document mask is used, so neither
    is `eod`. Cached indices are found by what is here and by the path; with the prefix's own identity, those of a file
    that has been replaced by a larger one are not taken for its own."""

    def __init__(self, vocab_size: int, prefix: Prefix) -> None:
        self.vocab_size, self.eod, self.pad = vocab_size, 0, -1
        self.unique_identifiers = {"vocab_size": vocab_size, "prefix": prefix.identity()}


def build_datasets(
    prefixes: Sequence[Prefix], split: Split, options: TrainerOptions, vocab_size: int
) -> list[GPTDataset]:
    """One GPTDataset a prefix, all its documents, one epoch. Rank zero writes the sample indices; call it there first.

    No collective inside: only the ranks that read come here. Raises OSError for an index that cannot be written.
    """
    cache = Path(options.data_cache) if options.data_cache else Path(options.run_dir) / "cache"
    config = GPTDatasetConfig(
        random_seed=options.seed,
        sequence_length=options.seq_length,
        blend=([prefix.path for prefix in prefixes], None),
        split="1,0,0",
        path_to_cache=str(cache),
        tokenizer=_TokenizerFacts(vocab_size, prefixes[0]),
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
        own = dataclasses.replace(config, tokenizer=_TokenizerFacts(vocab_size, prefix))
        datasets.append(GPTDataset(documents, prefix.path, chosen, None, split, own))
        if len(datasets[-1]) != prefix.samples(options.seq_length):
            raise RuntimeError(
                f"{prefix.path}: megatron-core makes {len(datasets[-1])} samples, not "
                f"{prefix.samples(options.seq_length)}"
            )
    return datasets


def build_on_readers(
    prefixes: Sequence[Prefix], split: Split, options: TrainerOptions, vocab_size: int, place: ParallelRank,
    world: World,
) -> list[GPTDataset] | None:  # fmt: skip
    """The datasets on ranks that read, None elsewhere. Collective: rank zero builds the indices, the others read them.

    Raises UserError on every rank where one cannot write or read an index.
    """
    built: list[GPTDataset] | None = None

    def build() -> None:
        nonlocal built
        built = build_datasets(prefixes, split, options, vocab_size)

    world.require_success(build if world.is_zero else _nothing)
    world.require_success(build if place.reads and not world.is_zero else _nothing)
    return built


def _nothing() -> None:
    """What a rank does that has no part in a step."""


class _Batches:
    """Batch sampler of the rest of the run."""

    def __init__(self, plan: StepPlan, first_step: int, place: ParallelRank) -> None:
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


def _start_worker(_: int) -> None:
    """In a loader process: one thread, and half a minute of patience with a signal that is meant for its rank.

    A signal to all processes of a job asks the rank to end its step and save, for which it needs its batches.
    """
    torch.set_num_threads(1)
    signal.set_wakeup_fd(-1)  # inherited from the rank, which would take our signals for its own
    signal.signal(signal.SIGALRM, _end_worker)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.alarm(_PATIENCE))


def _end_worker(number: int, _frame: FrameType | None) -> None:
    """Leave as at the end of a program, so that the temporary directory of the worker's sockets goes, too. Any other
    code than 0 torch would raise in the rank, which may be saving."""
    raise SystemExit(0)


class TrainIterator:
    """The iterator that the engine pulls micro-batches from. `step` is set by the loop; a draw log hears of a batch
    when it is used."""

    def __init__(self, loader: torch.utils.data.DataLoader, draw_log: DrawLog | None) -> None:
        self._batches: Iterator[tuple[torch.Tensor, ...]] = iter(loader)
        self._draw_log = draw_log
        self.step = 0

    def __iter__(self) -> TrainIterator:
        return self

    def __next__(self) -> TrainBatch:
        tokens_BxL, target_BxL, mask_BxL, key_B, sample_B = next(self._batches)
        if self._draw_log is not None:
            self._draw_log.drawn(self.step, key_B.numpy(), sample_B.numpy())
        return tokens_BxL, (target_BxL, mask_BxL, key_B)

    def close(self) -> None:
        """Stop the loader's processes; before the schedule that they read goes away."""
        self._batches = iter(())


def make_train_iterator(
    datasets: list[GPTDataset] | None, mixer: Mixer, options: TrainerOptions, plan: StepPlan, place: ParallelRank,
    first_step: int,
) -> TrainIterator | None:  # fmt: skip
    """The train batches of this rank from `first_step` on; None on ranks that read none."""
    if datasets is None:
        return None
    blend = AdaptiveBlend(datasets, mixer.schedule, id_key="dataset_id", domain_of_C=mixer.domains.domain_of_C)
    workers: dict[str, Any] = {}
    if options.num_workers > 0:
        context = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
        workers = {
            "multiprocessing_context": context,
            "prefetch_factor": PREFETCH_FACTOR,
            "worker_init_fn": _start_worker,
        }
    loader = torch.utils.data.DataLoader(
        blend,
        batch_sampler=_Batches(plan, first_step, place),
        num_workers=options.num_workers,
        collate_fn=collate,
        pin_memory=place.device.type == "cuda",
        **workers,
    )
    return TrainIterator(loader, mixer.draw_log)
