"""Each cost of the mixture against its size: a table and a picture, each line measured or extrapolated, and marked.

    python benchmarks/scale.py [--quick] [--json] [--out benchmarks/scale]      writes scale.json, .txt and .png there

Sizes: datasets K up to 32,767 (as many domains); ranks 1, 2, 4, 8 as real gloo processes, beyond them a model of
rounds with its constants measured; steps up to 10^6. A line that is extrapolated continues the last two measured ones
in proportion to the size. Each line's exponent (log of the cost over log of the size, between the last two) tells what
grows worse than linearly. 10,000 ranks at once: scale_world.py.

Legend: K domains, S rows, T steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scale_table import Line, exponents, extrapolated, picture, table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own ranks

from ado_megatron.blend.domains import Domains
from ado_megatron.config import AdoConfig
from ado_megatron.measure.draw_log import DrawLog
from ado_megatron.measure.metrics_writer import MetricsWriter, fits_between, lines_between
from ado_megatron.mixer.loader import LoaderSettings
from ado_megatron.mixer.mixer import Mixer
from ado_megatron.mixer.sidecar import read_sidecar, write_sidecar
from ado_megatron.mixer.world import World
from ado_megatron.report.read import read_run
from ado_megatron.scaling_law.history import LossHistory
from ado_megatron.scaling_law.smoothing import fit_history
from ado_megatron.stream.shared_table import bytes_per_row
from tests.kit.ranks import run_ranks

BLOCK = 2048
CONFIG = AdoConfig(policy="ado", start_step=1000, early_refits=False)


def seconds(call: Callable[[], Any], repeat: int = 3) -> float:
    """CPU seconds of a call, the least of a few."""
    spent = []
    for _ in range(repeat):
        began = time.process_time()
        call()
        spent.append(time.process_time() - began)
    return min(spent)


def blend_of(K: int) -> Domains:
    """K datasets, each a domain."""
    weights_K = np.random.default_rng(0).dirichlet(np.ones(K))
    return Domains.build([f"data/d{k:05d}_text_document" for k in range(K)], weights_K, np.full(K, 10**6), CONFIG)


def mixer_of(K: int, folder: Path, steps: int = 60_000) -> Mixer:
    """A started mixer of one rank."""
    mixer = Mixer(
        CONFIG, blend_of(K), total_samples=steps * BLOCK, block_size=BLOCK, world=World.single(), run_dir=folder,
        loader=LoaderSettings(micro_batch=8), log=lambda text: None,
    )  # fmt: skip
    mixer.start()
    return mixer


def filled_history(K: int, rows: int) -> LossHistory:
    """A history of `rows` bins of noisy laws."""
    rng, history = np.random.default_rng(1), LossHistory(K, CONFIG)
    n_TxK = np.cumsum(np.full((rows, K), BLOCK * history.width / K), axis=0) + 1
    loss_TxK = (2.0 + 8.0 * n_TxK**-0.2) * rng.normal(1, 0.01, (rows, K))
    tokens_TxK = np.full((rows, K), 1000.0)
    step_T = history.ignore_steps + np.arange(rows) * history.width
    history.extend(step_T, n_TxK, loss_TxK * tokens_TxK, tokens_TxK)
    return history


def by_domains(sizes: list[int], folder: Path) -> list[Line]:
    """Costs against K: start agreement, table, publication, meter, history, sidecar."""
    lines = []
    for K in sizes:
        mixer = mixer_of(K, folder / f"k{K}")
        facts = seconds(lambda mixer=mixer: mixer.world.require_same(mixer._facts()))
        table, meter = mixer.schedule.table, mixer.meter._sums_TxKx2
        history = filled_history(K, CONFIG.resolved().max_bins - 20)
        steps, sums_TxK = history.last_step + 1 + np.arange(100), np.ones((100, K))
        append = seconds(lambda h=history, s=steps, a=sums_TxK: h.extend(s, a, a, a), 1) * 10
        mixer.rank_zero.recorder.history = history
        packed = mixer.rank_zero.pack(0, 0, mixer.refits, None)
        rows_SxK = np.array([mixer.schedule.row(b) for b in range(min(mixer.schedule.planned, 1000))])
        # after `pack`, which reads the rows that this overwrites
        publish = seconds(lambda table=table, rows_SxK=rows_SxK: table.write(rows_SxK), 1) * 1000 / len(rows_SxK)
        path = folder / f"s{K}.ado"
        write = seconds(lambda path=path, packed=packed: write_sidecar(path, *packed), 1)
        read = seconds(lambda path=path: read_sidecar(path), 1)
        for cost, value, unit in (
            ("start agreement, a rank", facts, "s"), ("table, a node", table.capacity * bytes_per_row(K), "bytes"),
            ("meter, a rank", meter.numel() * meter.element_size(), "bytes"),
            ("publication of 1,000 rows, a rank", publish, "s"),
            ("broadcast of 1,000 rows", 4000 * K, "bytes"), ("history of 1,000 steps, rank zero", append, "s"),
            ("sidecar", path.stat().st_size, "bytes"), ("sidecar written", write, "s"), ("sidecar read", read, "s"),
        ):  # fmt: skip
            lines.append(Line(cost, "K", K, value, unit))
        path.unlink()
        mixer.close()
    return lines


def fits(sizes: list[int]) -> list[Line]:
    """A fit of 1,024 points a domain, in its process beside the training."""
    lines = []
    for K in sizes:
        cut = filled_history(K, CONFIG.resolved().max_bins).snapshot(10**9)
        spent = seconds(lambda cut=cut: fit_history(cut, CONFIG.resolved()), 1)
        lines.append(Line("fit, beside the training", "K", K, spent, "s"))
    return extrapolated(lines, [10_000, 32_767])


def metrics(pairs: list[tuple[int, int]], folder: Path) -> list[Line]:
    """Bytes of metrics.jsonl of whole runs: the length of a real line and a real fit times their number."""
    lines = []
    for T, K in pairs:
        mixer = mixer_of(K, folder / f"m{T}-{K}", steps=2000)
        recorder, path = mixer.rank_zero.recorder, folder / f"m{T}-{K}" / "ado" / "metrics.jsonl"
        header = path.stat().st_size
        rng = np.random.default_rng(2)
        sums_1xKx2 = np.stack([rng.uniform(2e3, 9e3, (1, K)), np.full((1, K), 1e3)], axis=2)
        recorder.record([(0, 0, BLOCK)], sums_1xKx2, np.ones((1, 2)))
        recorder.flush(1, BLOCK)
        line = path.stat().st_size - header
        laws = fit_history(filled_history(min(K, 22), 64).snapshot(10**9), CONFIG.resolved()).to_arrays()
        whole = {name: np.resize(value, (K, *value.shape[1:])) for name, value in laws.items() if value.ndim}
        recorder.metrics.write("fit", 1, **whole)
        fit = path.stat().st_size - header - line
        total = header + T / lines_between(K, CONFIG.log_interval, T) * line
        total += T / 1000 / fits_between(K, T // 1000) * fit
        lines.append(Line(f"metrics.jsonl, {K:,} domains", "T", T, total, "bytes", "extrapolated"))
        mixer.close()
    return lines


def reports(sizes: list[tuple[int, int]], folder: Path) -> list[Line]:
    """Reading a metrics.jsonl of so many lines of K domains, as the report does."""
    lines = []
    for number, K in sizes:
        run = folder / f"r{number}-{K}"
        mixer = mixer_of(K, run, steps=1000)
        header = mixer.rank_zero.recorder.metrics._header
        mixer.close()
        writer = MetricsWriter(run / "ado" / "metrics.jsonl", {})
        writer._header = header
        writer.start(0)
        ones_K, rng = np.ones(K, dtype=int), np.random.default_rng(3)
        for step in range(1, number + 1):
            writer.write(
                "step", step, steps=1, counts_K=ones_K, tokens_K=ones_K * 2048.0, loss_K=rng.uniform(2, 9, K),
                consumed_samples=step * BLOCK, weights_K=rng.dirichlet(np.ones(K)), epochs_C=rng.uniform(0, 1, K),
            )  # fmt: skip
        writer.close()
        spent = seconds(lambda run=run: read_run(run), 1)
        lines.append(Line("metrics read for a report", "lines × K", number * K, spent, "s"))
    return extrapolated(lines, [2_000_000])


def draws(samples: int, folder: Path) -> list[Line]:
    """The draw log of one rank (--ado-audit), eight samples a step."""
    log = DrawLog(folder / "draws", 0, attempt=0, step=0, lengths_C=[10**6] * 1000, seed=0)
    rng = np.random.default_rng(4)
    key_N = (np.arange(samples) * 64) << 15 | rng.integers(0, 1000, samples)
    sample_N = rng.integers(0, 10**6, samples)

    def write() -> None:
        for step in range(samples // 8):
            part = slice(8 * step, 8 * step + 8)
            log.drawn(step, key_N[part], sample_N[part])
            log.seen(step, key_N[part])
        log.close()

    spent = seconds(write, 1)
    size = log.path.stat().st_size
    return extrapolated([Line("draw log, a rank", "samples", samples, size, "bytes")], [8 * 10**6]) + extrapolated(
        [Line("draw log written, a rank", "samples", samples, spent, "s")], [8 * 10**6]
    )


def _rank(rank: int, K: int, repeat: int) -> tuple[float, float]:
    """Wall seconds of a comparison of all ranks, and of the broadcast of 1,000 rows with it; on every rank."""
    world, rows_SxK = World.detect(True), np.full((1000, K), 2, dtype=np.int32)
    facts, found = {f"option {n}": n for n in range(80)}, []
    for _ in range(repeat):
        began = time.perf_counter()
        world.require_same(facts)
        middle = time.perf_counter()
        world.run_on_rank_zero(lambda: rows_SxK)
        found.append((middle - began, time.perf_counter() - middle))
    compared, sent = np.median(found, axis=0)
    return float(compared), float(sent)


def by_ranks(sizes: list[int], K: int, repeat: int) -> list[Line]:
    """Start agreement and broadcast on real ranks, then a model: seconds = a + b × rounds, rounds = ⌈log2 ranks⌉."""
    lines = []
    for ranks in sizes:
        compared, sent = np.max(run_ranks(_rank, ranks, K, repeat), axis=0) if ranks > 1 else (0.0, 0.0)
        lines.append(Line("comparison of all ranks, wall", "ranks", ranks, float(compared), "s"))
        lines.append(Line(f"1,000 rows of {K:,} datasets to all ranks, wall", "ranks", ranks, float(sent), "s"))
    for name in dict.fromkeys(line.cost for line in lines):
        mine = [line for line in lines if line.cost == name and line.x > 1]
        slope, start = np.polyfit([math.log2(line.x) for line in mine], [line.value for line in mine], 1)
        for ranks in (64, 1000, 10_000):
            value = max(start + slope * math.ceil(math.log2(ranks)), mine[-1].value)
            lines.append(Line(name, "ranks", ranks, float(value), "s", "extrapolated"))
    return lines


def main(argv: list[str] | None = None) -> int:
    """Measure all parts; print the table or JSON, and write both files where --out says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes alone: does it work?")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", help="folder and name, without ending, of the JSON file and the picture")
    options = parser.parse_args(argv)
    quick = options.quick
    with tempfile.TemporaryDirectory(prefix="ado-scale-") as name:
        folder = Path(name)
        lines = by_domains([4, 22] if quick else [22, 100, 1000, 10_000, 32_767], folder)
        lines += fits([4] if quick else [22, 100, 400])
        runs = [(10**3, 22), (10**6, 22), (10**3, 10_000), (10**6, 10_000)] + ([] if quick else [(10**6, 32_767)])
        lines += metrics(runs[:2] if quick else runs, folder)
        lines += reports([(4, 22)] if quick else [(1000, 22), (1000, 220), (40, 10_000)], folder)
        lines += draws(800 if quick else 80_000, folder)
        lines += by_ranks([1, 2] if quick else [1, 2, 4, 8], 22 if quick else 1000, 2 if quick else 20)
    result = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}",
        "lines": [dataclasses.asdict(line) for line in lines], "exponents": exponents(lines),
    }  # fmt: skip
    if options.out:
        Path(f"{options.out}.json").write_text(json.dumps(result, indent=1) + "\n")
        Path(f"{options.out}.txt").write_text(f"{result['machine']}, {os.cpu_count()} cores\n\n{table(lines)}\n")
        picture(lines, Path(f"{options.out}.png"))
    print(json.dumps(result) if options.json else table(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
