"""Planning as a run does it, against megatron-core's compiled `build_blending_indices`: ratios printed, `--json`.

    python benchmarks/index.py [--json] [--blocks 1000] [--repeat 3]

1. Planning. Ours: from the call of `Planner.plan` (what rank zero executes at start and at every refit), through
   publication into shared memory, until the first sample can be read. Mixtures: static weights, and the profiles with
   laws in force from the first block on, so that the weights of every row are the policy's own. Theirs: building the
   index of as many samples in memory (their file writes and loads are left out). CPU seconds and wall seconds, least of
   `--repeat`; K = 10,000 has a tenth of the blocks. The kernel is loaded before: `kernel_s` says how long that took.
   Where laws are in force a run plans beside the training, which waits from the file that the other process has left
   to the first sample.
2. Discrepancy of the static rows at block boundaries: the largest |count − weight × samples| over all of them.
3. Memory of the table for 60,000 blocks of 2,048 samples, against their 10 bytes a sample.
4. A batch of 256 reads through AdaptiveBlend, against BlendedDataset, over the same megatron-core GPTDatasets.

Legend: K domains, S blocks, N samples.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from ado_megatron.blend.domains import Domains
from ado_megatron.config import AdoConfig
from ado_megatron.mixer.planner import Planner
from ado_megatron.npz import read_npz
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.stream.blended_dataset import AdaptiveBlend
from ado_megatron.stream.row_layout import kernels
from ado_megatron.stream.schedule import Schedule, apportion_rows
from ado_megatron.stream.shared_table import bytes_per_row

warnings.filterwarnings("ignore")
BLOCK = 2048
MIXTURES = ("static", "released", "paper", "ado")


def _theirs():
    from megatron.core.datasets import helpers

    return helpers.build_blending_indices


def time_theirs(weights_K: np.ndarray, blocks: int) -> tuple[float, float, np.ndarray]:
    """(CPU seconds, wall seconds) of their builder, and its counts_SxK."""
    size, build = blocks * BLOCK, _theirs()
    domain_N, sample_N = np.zeros(size, dtype=np.int16), np.zeros(size, dtype=np.int64)
    cpu, wall = time.process_time(), time.perf_counter()
    build(domain_N, sample_N, weights_K, len(weights_K), size, False)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    parts = domain_N.reshape(blocks, BLOCK)
    return cpu, wall, np.stack([np.bincount(part_n, minlength=len(weights_K)) for part_n in parts])


def planner_of(weights_K: np.ndarray, mixture: str) -> Planner:
    """A run's planner: static, or a profile with laws in force from the first block on."""
    num_datasets = len(weights_K)
    rng = np.random.default_rng(1)
    options = {"policy": "static"} if mixture == "static" else {"profile": mixture, "policy": "ado", "start_step": 0}
    config = AdoConfig(**options).resolved()
    prefixes = [f"d{k:05d}_text_document" for k in range(num_datasets)]
    planner = Planner(config, Domains.build(prefixes, weights_K, np.full(num_datasets, 10**7), config), BLOCK)
    if mixture != "static":
        bounds = (0, 3), (-0.5, 1), (0.05, 0.6)
        laws_Kx3 = np.stack([rng.uniform(low, high, num_datasets) for low, high in bounds], axis=1)
        planner.laws = Laws.given(laws_Kx3, config.given_transfer)
    return planner


def time_ours(weights_K: np.ndarray, mixture: str, blocks: int) -> tuple[float, float, np.ndarray]:
    """(CPU seconds, wall seconds) from `Planner.plan` until the first sample is read, and counts_SxK."""
    planner = planner_of(weights_K, mixture)
    schedule = Schedule(planner.domains.lengths_C, BLOCK, blocks, seed=0, min_rows=blocks)
    cpu, wall = time.process_time(), time.perf_counter()
    rows_SxK = planner.plan(blocks)
    schedule.publish(0, rows_SxK)
    schedule.draw(0)
    return time.process_time() - cpu, time.perf_counter() - wall, rows_SxK


def time_waiting(weights_K: np.ndarray, mixture: str, blocks: int, path: Path) -> tuple[float, float]:
    """(CPU seconds, wall seconds) from rows that another process has planned and written to `path` until the first
    sample is read: what rank zero does while the training waits."""
    np.savez(path, **planner_of(weights_K, mixture).plan_for(blocks))
    planner = planner_of(weights_K, mixture)
    schedule = Schedule(planner.domains.lengths_C, BLOCK, blocks, seed=0, min_rows=blocks)
    cpu, wall = time.process_time(), time.perf_counter()
    schedule.publish(0, planner.adopt(read_npz(path), blocks))
    schedule.draw(0)
    return time.process_time() - cpu, time.perf_counter() - wall


def discrepancy(counts_SxK: np.ndarray, weights_K: np.ndarray) -> float:
    """The largest |cumulative count − weight × samples| over block boundaries and domains."""
    samples_S = BLOCK * np.arange(1, len(counts_SxK) + 1)
    return float(np.abs(np.cumsum(counts_SxK, axis=0) - samples_S[:, None] * weights_K).max())


def planning(blocks: int, repeat: int, folder: Path) -> list[dict]:
    """Part 1 and 2, for K = 22, 1,000 and 10,000."""
    results = []
    for num_datasets in (22, 1000, 10_000):
        size = blocks if num_datasets < 10_000 else max(1, blocks // 10)
        weights_K = np.random.default_rng(0).dirichlet(np.ones(num_datasets))
        theirs = [time_theirs(weights_K, size) for _ in range(1 if num_datasets == 10_000 else repeat)]
        theirs_cpu, theirs_wall = (min(times[n] for times in theirs) for n in (0, 1))  # what disturbs only adds
        for mixture in MIXTURES:
            ours = [time_ours(weights_K, mixture, size) for _ in range(repeat)]
            cpu, wall = (min(times[n] for times in ours) for n in (0, 1))
            row = {
                "K": num_datasets, "mixture": mixture, "blocks": size, "ours_cpu_s": cpu, "ours_wall_s": wall,
                "ms_a_row": 1e3 * cpu / size, "theirs_cpu_s": theirs_cpu, "theirs_wall_s": theirs_wall,
                "ratio_cpu": theirs_cpu / cpu, "ratio_wall": theirs_wall / wall,
            }  # fmt: skip
            if mixture != "static":
                waits = [time_waiting(weights_K, mixture, size, folder / "rows.npz") for _ in range(repeat)]
                row["waits_cpu_s"], row["waits_wall_s"] = (min(times[n] for times in waits) for n in (0, 1))
                row["ratio_waits"] = theirs_wall / row["waits_wall_s"]
            else:
                row["ours_discrepancy"] = discrepancy(ours[0][2], weights_K)
                row["theirs_discrepancy"] = discrepancy(theirs[0][2], weights_K)
            results.append(row)
    return results


def memory() -> dict:
    """Part 3."""
    schedule = Schedule(np.full(22, 10**9), BLOCK, 60_000, seed=0)
    return {"ours_bytes": schedule.table.capacity * bytes_per_row(22), "theirs_bytes": 60_000 * BLOCK * 10}


class _Tokenizer:
    unique_identifiers = {"name": "none"}  # noqa: RUF012
    eod, pad, vocab_size = 0, -1, 50_000


def _gpt_datasets(directory: str, sequence_length: int, num_datasets: int = 8):
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    from megatron.core.datasets.utils import Split

    rng, datasets = np.random.default_rng(0), []
    for c in range(num_datasets):
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
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    started = time.process_time()
    compiled = kernels() is not None
    kernel_s = time.process_time() - started
    with tempfile.TemporaryDirectory(prefix="ado-index-") as name:
        planned = planning(options.blocks, options.repeat, Path(name))
    result = {
        "kernel": compiled, "kernel_s": kernel_s, "planning": planned, "memory": memory(),
        "reads": [reads(n, options.repeat) for n in (512, 2048)],
    }  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return 0
    print(f"kernel {'loaded' if compiled else 'missing'} in {result['kernel_s']:.2f} CPU s")
    for row in result["planning"]:
        print(
            f"K = {row['K']}, {row['mixture']}, {row['blocks']} blocks: ours {row['ours_cpu_s'] * 1e3:.1f} ms CPU "
            f"({row['ms_a_row']:.3f} a row), {row['ours_wall_s'] * 1e3:.1f} wall; theirs "
            f"{row['theirs_cpu_s'] * 1e3:.1f} ms CPU: {row['ratio_cpu']:.1f} times as fast"
        )
        if "waits_cpu_s" in row:
            print(
                f"  the training waits {row['waits_wall_s'] * 1e3:.1f} ms ({row['waits_cpu_s'] * 1e3:.1f} CPU): "
                f"{row['ratio_waits']:.0f} times as fast"
            )
        if "ours_discrepancy" in row:
            print(f"  discrepancy {row['ours_discrepancy']:.3f}, theirs {row['theirs_discrepancy']:.3f}")
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
