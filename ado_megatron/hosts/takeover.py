"""From the framework's own static blend to ours, and back, in the middle of a run.

The framework's blend is a known map: sample i of the run → the next sample of dataset dataset_index[i], and each is
read 0, 1, 2, … in its order. For example, weights 2 : 1 and eight samples a step:

    i                     0  1  2  3  4  5  6  7 |  8 …      a checkpoint after one step: consumed = 8
    dataset_index[i]      0  1  0  0  1  0  0  1 |  0 …      so far five samples of dataset 0, three of dataset 1
    sample of the dataset 0  0  1  2  1  3  4  2 |  5 …

Where the framework lays out one epoch of a dataset, its order is also ours (asked of the framework for one epoch,
shuffled by it in the same way), and our first pass is read in its order, too (Schedule, `in_order`). So ours goes on
with sample 5 of dataset 0 and sample 3 of dataset 1 (`count_drawn` gives [5, 3]), in whatever shares the laws ask for,
and each dataset is read to its end before its second epoch begins: of 20 samples in dataset 1 ours reads 3 … 19.

Where the run asks for more than an epoch, the framework shuffles several into one order that has no epochs in it: of a
dataset of 20 samples of which the run needs 33 it lays out 40, in which sample 20 may be the first text again. Then the
framework's dataset takes the place of ours for good: what is left of its order, 3 … 39, is read once, and later passes
are of 40 samples, two epochs, each. The sidecar keeps what the framework was asked for (the origin: {"size": 99,
"weights": [["wiki", 2.0], ["law", 1.0]]}), since the order depends on it.

Legend: C datasets, N samples of the run.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ado_megatron.errors import UserError
from ado_megatron.mixer.sidecar import read_sidecar

NEW, ADAPTIVE, SHADOW, STOCK = "a new run", "an adaptive run", "shadow mode", "the framework alone"
_CHUNK = 1 << 24  # samples counted at a time


def sidecar_path(checkpoints: str | Path, iteration: int) -> Path:
    """The mixer's state that belongs to the checkpoint of `iteration` in a framework's checkpoint directory."""
    return Path(checkpoints) / "ado" / f"state_{iteration}.ado"


def drawn_by(load: str | None, iteration: int, token: str | None = None) -> tuple[str, dict[str, Any] | None]:
    """Who drew the samples of the run up to the checkpoint of `iteration` in `load`, and the run's origin if it has
    one: {"size": train samples, "weights": [[prefix without directory, weight], …]} asked of the framework.
    token: of the sidecar that was written with the checkpoint, if that keeps it. SidecarError for another sidecar."""
    if iteration == 0:
        return NEW, None
    path = sidecar_path(load or ".", iteration)
    if not path.is_file():
        return STOCK, None
    meta = read_sidecar(path, token)[0]
    return (SHADOW if meta["config"]["shadow"] else ADAPTIVE), meta.get("origin")


def weights_at(origin: Mapping[str, Any], prefixes_C: Sequence[str]) -> list[float]:
    """The weights of the origin, in the order of prefixes_C. UserError for a prefix that it does not have."""
    weights = {name: weight for name, weight in origin["weights"]}
    for prefix in prefixes_C:
        if PurePath(prefix).name not in weights:
            raise UserError(
                f"{prefix} cannot be added: the run goes on in the order in which the framework laid out its epochs, "
                "without this prefix"
            )
    return [weights[PurePath(prefix).name] for prefix in prefixes_C]


def say_if_leaving(arguments: Sequence[str]) -> None:
    """Before the framework runs alone: one line from rank zero if its checkpoint is of an adaptive run."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--load")
    load = parser.parse_known_args(arguments)[0].load
    try:
        iteration = int((Path(load or ".") / "latest_checkpointed_iteration.txt").read_text())
    except (OSError, ValueError):  # none, or one that only the framework knows how to read
        return
    if load and drawn_by(load, iteration)[0] == ADAPTIVE and os.environ.get("RANK", "0") == "0":
        print(
            f"ado: {sidecar_path(load, iteration)} is of an adaptive run: the stock blend reads samples of the running "
            "epoch again, unless --data-path holds the weights that --ado-export-static wrote with this checkpoint; "
            "--ado-policy static in the place of --ado-off keeps any weights without repeating",
            flush=True,
        )


def layout_facts(args: Any) -> dict[str, Any]:
    """What the framework's order of samples depends on, of its arguments; without directories, since data may move."""
    facts = {name: getattr(args, name, None) for name in ("split", "seed", "seq_length", "train_samples")}
    if facts["train_samples"] is None:
        facts["train_iters × global_batch_size"] = (args.train_iters or 0) * args.global_batch_size
    for name in ("data_path", "train_data_path", "data_args_path", "per_split_data_args_path"):
        words = getattr(args, name, None)
        words = [words] if isinstance(words, str) else words
        facts[name] = words and [PurePath(str(word).strip()).name for word in words]
    return facts


def check_same_layout(saved: Mapping[str, Any] | None, ours: Mapping[str, Any]) -> None:
    """UserError for arguments with which the framework would have laid out another order than the checkpoint's run had.
    saved: its layout_facts, None if the framework did not tell."""
    for name, theirs in (saved or {}).items():
        if ours.get(name) != theirs:
            raise UserError(
                f"the checkpoint was trained by the framework's own blend with {name} {theirs}, this run has "
                f"{ours.get(name)}; which samples that blend drew depends on it: resume with the same, and change it "
                "at the next resume"
            )


@dataclasses.dataclass(frozen=True)
class BlendFacts:
    """What rank zero tells the others, one each a dataset: prefixes, the user's weights, samples of one epoch (lengths)
    and of the dataset, which may hold several (passes); and the origin, if datasets are the framework's."""

    prefixes: tuple[str, ...]
    weights: tuple[float, ...]
    lengths: tuple[int, ...]
    passes: tuple[int, ...]
    origin: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class StockBlend:
    """The framework's own blend, laid out once more. dataset_index_N: of each sample of the run. datasets: ours,
    or the framework's where that is another. origin: what the framework was asked for, None if all are ours."""

    dataset_index_N: np.ndarray
    datasets: Sequence[Any]
    origin: dict[str, Any] | None

    @classmethod
    def of(
        cls, blend: Any, ours: Sequence[Any], indices: Sequence[str], prefixes: Sequence[str],
        weights: Sequence[float], size: int,
    ) -> StockBlend:  # fmt: skip
        """From the framework's blended dataset, asked for with prefixes, weights and size, and our one-epoch datasets.
        indices: the names of the arrays that decide what a sample of a domain dataset is."""
        blend[0]  # some frameworks map their index at the first read
        datasets = [
            own if _same(stock, own, indices) else stock for stock, own in zip(blend.datasets, ours, strict=True)
        ]
        pairs = [[PurePath(prefix).name, float(weight)] for prefix, weight in zip(prefixes, weights, strict=True)]
        kept = all(used is own for used, own in zip(datasets, ours, strict=True))
        return cls(blend.dataset_index, datasets, None if kept else {"size": size, "weights": pairs})


def count_drawn(dataset_index_N: np.ndarray, consumed: int, num_datasets: int) -> np.ndarray:
    """Samples of each dataset among the first `consumed` of the framework's blend. UserError where it has fewer."""
    if consumed > len(dataset_index_N):
        raise UserError(
            f"the checkpoint stands at {consumed} samples, but the framework's blend has {len(dataset_index_N)}; give "
            "the options of the run that wrote it"
        )
    drawn_C = np.zeros(num_datasets, dtype=np.int64)
    for first in range(0, consumed, _CHUNK):
        part_N = dataset_index_N[first : min(first + _CHUNK, consumed)]
        drawn_C += np.bincount(part_N, minlength=num_datasets)
    return drawn_C


def _same(stock: Any, own: Any, indices: Sequence[str]) -> bool:
    """Two layouts of one dataset read the same in the same order."""
    if len(stock) != len(own):
        return False
    for dataset in (stock, own):
        dataset[0]  # some frameworks map the indices at the first read
    return all(np.array_equal(getattr(stock, name), getattr(own, name)) for name in indices)


def epochs_of(dataset: Any, documents: str) -> int:
    """How many epochs a domain dataset holds. documents: its array of documents, which are a range of numbers."""
    dataset[0]
    document_M = getattr(dataset, documents)
    return len(document_M) // (int(document_M.max()) - int(document_M.min()) + 1)


def last_adaptive(load: str | None, iteration: int) -> Path | None:
    """The newest sidecar up to the checkpoint of `iteration`, if an adaptive run wrote it."""
    numbers = [path.stem.removeprefix("state_") for path in sidecar_path(load or ".", 0).parent.glob("state_*.ado")]
    found = max((int(number) for number in numbers if number.isdigit() and int(number) <= iteration), default=None)
    if found is None or drawn_by(load, found)[0] != ADAPTIVE:
        return None
    return sidecar_path(load or ".", found)


def check_stock_continues(path: Path, blend: BlendFacts, dataset_index_N: np.ndarray) -> None:
    """UserError unless the framework's blend goes on where the adaptive run of the sidecar `path` ended: with the
    weights of --ado-export-static it has drawn the same by then, and it lays out one epoch of every dataset, as that
    run did."""
    meta, arrays = read_sidecar(path)
    state, drawn_C = meta["schedule"], arrays["schedule/start_C"]
    if _one_order(meta, drawn_C) and int(state["first_block"]) * meta["block_size"] == meta["consumed_samples"]:
        by_host_C = count_drawn(dataset_index_N, meta["consumed_samples"], len(blend.prefixes))
        drawn, by_host = _by_name(meta["prefixes_C"], drawn_C), _by_name(blend.prefixes, by_host_C)
        lengths = _by_name(meta["prefixes_C"], meta["lengths_C"])
        if drawn == by_host and all(lengths.get(n) == m for n, m in _by_name(blend.prefixes, blend.passes).items()):
            return
    raise UserError(
        f"{path} was written by an adaptive run, and the framework's own blend does not go on where that ended: it "
        "would with the weights of --ado-export-static at that checkpoint, if the run needs at most one epoch of each "
        "prefix; if the file is of another run, remove it"
    )


def _one_order(meta: Mapping[str, Any], drawn_C: np.ndarray) -> bool:
    """The adaptive run has read each dataset in the dataset's own order, and less than an epoch of it."""
    in_order = meta["schedule"].get("in_order") and not meta.get("origin")
    return bool(in_order) and bool((drawn_C <= np.asarray(meta["lengths_C"])).all())


def _by_name(prefixes_C: Sequence[str], value_C: Sequence[int] | np.ndarray) -> dict[str, int]:
    """Values that are not zero, by prefix without its directory."""
    return {PurePath(prefix).name: int(n) for prefix, n in zip(prefixes_C, value_C, strict=True) if n}
