"""The index, against megatron-core's compiled `build_blending_indices`: one run, ratios printed, `--json` for machines.

    python benchmarks/index.py [--json] [--blocks 1000] [--repeat 5]

1. From given weights, the same for all blocks, to the first sample that a loader can read: apportion the rows, publish
   them in shared memory, read. Against building theirs for the same number of samples in memory (their file writes
   and loads are left out), best of each. Weights are drawn from Dirichlet distributions: 100 (nearly equal), 1 and 0.3
   (many rare domains).
2. Discrepancy at block boundaries: the largest |count − weight × samples| over all boundaries and domains.
3. Memory of the table for 60,000 blocks of 2,048 samples, against their 10 bytes a sample.
4. A batch of 256 reads through AdaptiveBlend, against BlendedDataset, over the same megatron-core GPTDatasets.

Legend: K domains, S blocks.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from ado_megatron.stream.blended_dataset import AdaptiveBlend
from ado_megatron.stream.schedule import Schedule, apportion_rows
from ado_megatron.stream.shared_table import bytes_per_row

warnings.filterwarnings("ignore")
BLOCK = 2048


def _theirs():
    from megatron.core.datasets import helpers

    return helpers.build_blending_indices


def time_theirs(weights_K: np.ndarray, blocks: int) -> tuple[float, np.ndarray]:
    """Seconds of their builder, and its counts_SxK."""
    size, build = blocks * BLOCK, _theirs()
    domain_N, sample_N = np.zeros(size, dtype=np.int16), np.zeros(size, dtype=np.int64)
    started = time.perf_counter()
    build(domain_N, sample_N, weights_K, len(weights_K), size, False)
    seconds = time.perf_counter() - started
    return seconds, np.stack([np.bincount(part, minlength=len(weights_K)) for part in domain_N.reshape(blocks, BLOCK)])


def time_ours(weights_K: np.ndarray, blocks: int) -> tuple[float, np.ndarray]:
    """Seconds until a sample can be read (the first read included), and our counts_SxK.

    A forked worker waits for the last block meanwhile and must read it too; its poll, of up to 20 ms, is not counted.
    """
    columns = len(weights_K)
    schedule = Schedule(np.full(columns, 10**7), BLOCK, blocks, seed=0, min_rows=blocks)
    receive, send = os.pipe()
    worker = os.fork()
    if worker == 0:
        schedule.draw(blocks * BLOCK - 1)
        os.write(send, np.float64(time.perf_counter()).tobytes())
        os._exit(0)
    time.sleep(0.05)  # it waits now, in its longest pause of 20 ms
    started = time.perf_counter()
    counts_SxK, _ = apportion_rows(weights_K, BLOCK, blocks, np.zeros(columns))
    schedule.publish(0, counts_SxK)
    schedule.draw(0)
    own = time.perf_counter() - started
    other = float(np.frombuffer(os.read(receive, 8))[0]) - started
    os.waitpid(worker, 0)
    os.close(receive)
    os.close(send)
    assert other > 0
    return own, counts_SxK


def discrepancy(counts_SxK: np.ndarray, weights_K: np.ndarray) -> float:
    """The largest |cumulative count − weight × samples| over block boundaries and domains."""
    samples_S = BLOCK * np.arange(1, len(counts_SxK) + 1)
    return float(np.abs(np.cumsum(counts_SxK, axis=0) - samples_S[:, None] * weights_K).max())


def layouts(blocks: int, repeat: int) -> list[dict]:
    """Part 1 and 2, for K = 22 and 1,000."""
    results = []
    for columns in (22, 1000):
        for shape in (100.0, 1.0, 0.3):
            weights_K = np.random.default_rng(0).dirichlet(np.full(columns, shape))
            theirs = [time_theirs(weights_K, blocks) for _ in range(3)]
            ours = [time_ours(weights_K, blocks) for _ in range(repeat)]
            their_s, our_s = min(s for s, _ in theirs), min(s for s, _ in ours)  # what disturbs only adds
            results.append(
                {
                    "K": columns, "dirichlet": shape, "theirs_s": their_s, "ours_s": our_s, "ratio": their_s / our_s,
                    "theirs_discrepancy": discrepancy(theirs[0][1], weights_K),
                    "ours_discrepancy": discrepancy(ours[0][1], weights_K),
                }
            )  # fmt: skip
    return results


def memory() -> dict:
    """Part 3."""
    schedule = Schedule(np.full(22, 10**9), BLOCK, 60_000, seed=0)
    return {"ours_bytes": schedule.table.capacity * bytes_per_row(22), "theirs_bytes": 60_000 * BLOCK * 10}


class _Tokenizer:
    unique_identifiers = {"name": "none"}  # noqa: RUF012
    eod, pad, vocab_size = 0, -1, 50_000


def _gpt_datasets(directory: str, sequence_length: int, columns: int = 8):
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    from megatron.core.datasets.utils import Split

    rng, datasets = np.random.default_rng(0), []
    for c in range(columns):
        prefix = str(Path(directory) / f"domain{c}")
        builder = IndexedDatasetBuilder(prefix + ".bin", dtype=np.int32)
        for _ in range(300):
            tokens = rng.integers(1, 50_000, int(rng.integers(200, 4000)))
            builder.add_document(torch.from_numpy(tokens), [len(tokens)])
        builder.finalize(prefix + ".idx")
        config = GPTDatasetConfig(
            random_seed=1, sequence_length=sequence_length, blend=([prefix], None), split="1,0,0",
            path_to_cache=directory, tokenizer=_Tokenizer(), reset_position_ids=False, reset_attention_mask=False,
            eod_mask_loss=False, create_attention_mask=False,
        )  # fmt: skip
        low = GPTDataset.build_low_level_dataset(prefix, config)
        datasets.append(GPTDataset(low, prefix, np.arange(300, dtype=np.int32), None, Split.train, config))
    return datasets, config


def reads(sequence_length: int, repeat: int) -> dict:
    """Part 4: median seconds of batches of 256 consecutive samples; ours and theirs take turns, on the same indices."""
    from megatron.core.datasets.blended_dataset import BlendedDataset

    with tempfile.TemporaryDirectory() as directory:
        datasets, config = _gpt_datasets(directory, sequence_length)
        size = min(len(dataset) for dataset in datasets) * len(datasets) // 2 // BLOCK * BLOCK or 1024
        weights = [1.0 / len(datasets)] * len(datasets)
        config.path_to_cache = None  # in memory
        theirs = BlendedDataset(datasets, weights, size, config)
        block = min(BLOCK, size)
        schedule = Schedule([len(dataset) for dataset in datasets], block, size // block, seed=0)
        rows_SxK, _ = apportion_rows(weights, block, size // block, np.zeros(len(datasets)))
        schedule.publish(0, rows_SxK)
        ours, ratios, ours_s, theirs_s = AdaptiveBlend(datasets, schedule), [], [], []
        for n in range(repeat * (size // 256)):
            batch = range(n * 256 % size, n * 256 % size + 256)
            if batch.start == 0:
                schedule._blocks.clear()  # pay for laying blocks out, every time round
                ours._forget()
            pair = []
            for dataset in (ours, theirs) if n % 2 else (theirs, ours):
                started = time.perf_counter()
                for i in batch:
                    dataset[i]
                pair.append(time.perf_counter() - started)
            mine, other = pair if n % 2 else pair[::-1]
            ours_s.append(mine)
            theirs_s.append(other)
            ratios.append(mine / other)
        return {
            "sequence_length": sequence_length, "ours_us": 1e6 * statistics.mean(ours_s) / 256,
            "theirs_us": 1e6 * statistics.mean(theirs_s) / 256, "ratio": sum(ours_s) / sum(theirs_s),
            "median_ratio": statistics.median(ratios),
        }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run all parts, print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--blocks", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    layout = layouts(options.blocks, options.repeat)
    result = {"layouts": layout, "memory": memory(), "reads": [reads(n, options.repeat) for n in (512, 2048)]}
    if options.json:
        print(json.dumps(result))
        return 0
    for row in layout:
        print(
            f"K = {row['K']}, Dirichlet {row['dirichlet']:g}: theirs {row['theirs_s'] * 1e3:.1f} ms, ours "
            f"{row['ours_s'] * 1e3:.2f} ms: {row['ratio']:.0f} times faster; discrepancy "
            f"{row['theirs_discrepancy']:.3f} theirs, {row['ours_discrepancy']:.3f} ours"
        )
    held = result["memory"]
    print(f"60,000 blocks, K = 22: {held['ours_bytes'] / 1e6:.1f} MB; theirs {held['theirs_bytes'] / 1e6:.0f} MB")
    for row in result["reads"]:
        print(
            f"{row['sequence_length']} tokens: ours {row['ours_us']:.1f} us, theirs {row['theirs_us']:.1f} us, "
            f"ratio {row['ratio']:.3f} (median batch {row['median_ratio']:.3f})"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
