"""What rank zero does between two steps at a refit, whatever the policy: its longest step, and where the time went.

    python benchmarks/refit.py [--domains 22 1000] [--interval 1000] [--json]

One rank, no training: the real mixer measures every sample of every step, reduces, fits in a process of its own and
publishes, once as a static run (which has no refit) and once under each policy that follows laws. Timed are its calls
of a step, in seconds of the clock and in CPU seconds of the thread, which other processes disturb less. The steps take
no time, so the next one begins when the fit is done; step_overhead.py has the same under a training.

The step that takes most CPU after each of two refits: the snapshot (`reduce`: the sum over ranks, history, metrics;
`start`: history and planner handed to a process) and the publication (`laws`: read and recorded, alarms; `adopt`: the
rows that the process has planned are checked, or planned here; `publish`: they are written and compared).

Legend: K domains, B samples of a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ado_megatron.blend.domains import Domains
from ado_megatron.config import AdoConfig
from ado_megatron.mixer.loader import LoaderSettings
from ado_megatron.mixer.mixer import Mixer
from ado_megatron.mixer.rank_zero import RankZero
from ado_megatron.mixer.world import World
from ado_megatron.stream.sample_key import pack_key
from ado_megatron.stream.schedule import Schedule

BLOCK = 2048
ARMS = {
    "static": {"policy": "static"}, "released": {"profile": "released"}, "paper": {"profile": "paper"},
    "ado": {"policy": "ado"}, "plan": {"policy": "plan"}, "measure": {"policy": "measure"},
}  # fmt: skip
PARTS = {
    "reduce": (Mixer, "_reduce"), "start": (RankZero, "begin_fit"), "laws": (RankZero, "finish_fit"),
    "adopt": (RankZero, "plan"), "publish": (Schedule, "publish"),
}  # fmt: skip
PHASES = {"snapshot": "start", "publication": "laws"}  # by the part that only they have
SPENT: Counter[str] = Counter()  # CPU seconds of a step by part


def time_parts() -> None:
    """Put the clocks in."""
    for part, (where, name) in PARTS.items():
        call = getattr(where, name)

        def timed(*args: Any, part: str = part, call: Any = call, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                SPENT[part] += time.thread_time() - began

        setattr(where, name, timed)


def mixer_of(K: int, arm: str, interval: int, folder: Path) -> Mixer:
    """A started mixer of one rank over K domains."""
    config = AdoConfig(**ARMS[arm], refit_interval=interval, start_step=1, early_refits=False, ignore_steps=0)
    weights_K = np.random.default_rng(0).dirichlet(np.full(K, 2.0))
    blend = Domains.build([f"data/d{k:05d}_text_document" for k in range(K)], weights_K, np.full(K, 10**7), config)
    mixer = Mixer(
        config, blend, total_samples=3 * interval * BLOCK, block_size=BLOCK, world=World.single(), run_dir=folder,
        loader=LoaderSettings(micro_batch=8), log=lambda text: None,
    )  # fmt: skip
    mixer.start()
    return mixer


def measure(K: int, arm: str, interval: int, folder: Path) -> dict[str, Any]:
    """Two refits and the steps between: what they took, and of which parts the snapshot and the publication were."""
    mixer, rng, steps = mixer_of(K, arm, interval, folder), np.random.default_rng(1), []
    seen_K, mask_Bx1 = np.ones(K), torch.ones(BLOCK, 1)
    for step in range(2 * interval + mixer.refits.fit_lag + 2):
        SPENT.clear()
        begun = time.perf_counter(), time.thread_time()
        mixer.begin_step(step)
        spent = time.perf_counter() - begun[0], time.thread_time() - begun[1]
        dataset_B = mixer.schedule.block(step)[0]
        key_B = torch.from_numpy(pack_key(step * BLOCK + np.arange(BLOCK), dataset_B))
        loss_B = (2.0 + 8.0 * seen_K**-0.2)[dataset_B] * rng.normal(1, 0.05, BLOCK)
        seen_K += np.bincount(dataset_B, minlength=K)
        mixer.meter.add(torch.from_numpy(loss_B[:, None].astype(np.float32)), mask_Bx1, key_B)
        begun = time.perf_counter() - spent[0], time.thread_time() - spent[1]
        mixer.end_step(step, (step + 1) * BLOCK)
        steps.append({"wall": time.perf_counter() - begun[0], "cpu": time.thread_time() - begun[1]} | dict(SPENT))
        while any(not fit.done() for _, fit in mixer.rank_zero._fits.values()):
            time.sleep(0.02)
    laws = mixer.rank_zero.planner.laws
    mixer.close()
    row: dict[str, Any] = {"K": K, "arm": arm, "laws": 0 if laws is None else int(laws.ok_K.sum())}
    for what, part in PHASES.items():
        most = max((step for step in steps if part in step), key=lambda step: step["cpu"], default={})
        row[what] = {name: round(1e3 * spent, 2) for name, spent in most.items()}
    for clock in ("wall", "cpu"):
        row[f"median_{clock}_ms"] = 1e3 * statistics.median(step[clock] for step in steps)
        row[f"longest_{clock}_ms"] = 1e3 * max(step[clock] for step in steps)
    return row


def line_of(row: dict[str, Any]) -> str:
    """A row of the table."""
    parts = {what: " ".join(f"{n} {v:.1f}" for n, v in row[what].items() if n != "wall") or "none" for what in PHASES}
    return (
        f"K = {row['K']:5} {row['arm']:9} longest step {row['longest_cpu_ms']:6.2f} ms CPU, "
        f"{row['longest_wall_ms']:.2f} wall, median {row['median_cpu_ms']:.3f}; {row['laws']} laws; "
        f"snapshot: {parts['snapshot']}; publication: {parts['publication']}"
    )


def main(argv: list[str] | None = None) -> int:
    """Every number of domains under every policy; print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", type=int, nargs="+", default=[22, 1000])
    parser.add_argument("--arms", nargs="+", default=[*ARMS], choices=ARMS)
    parser.add_argument("--interval", type=int, default=1000, help="steps between two refits")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    time_parts()
    rows = []
    with tempfile.TemporaryDirectory(prefix="ado-refit-") as name:
        for K in options.domains:
            for arm in options.arms:
                rows.append(measure(K, arm, options.interval, Path(name) / f"{K}-{arm}"))
                if not options.json:
                    print(line_of(rows[-1]), flush=True)
    if options.json:
        print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
