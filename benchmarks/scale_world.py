"""Thousands of ranks in one process: a `World` of that size, in which the real mixer of every rank runs.

    python benchmarks/scale_world.py [--ranks 10000] [--steps 50] [--domains 100] [--json]

Every rank calls its own `Mixer` as a training would: `start`, then `begin_step`, `meter.add` of its own sample and
`end_step`. Ranks take turns, each until its next collective (simulated_world.py); a step takes a second of their clock.
A block has one sample a rank; eight ranks share a table, as on a node. Printed, for a hundredth, a tenth and all of the
ranks: that all hold the same rows, that the sums are whole, how many collectives a step made, what the mixer costs in a
step without one (CPU seconds of a rank's thread; of rank zero's, too). Then the sentences with which all ranks end
where one began with another option, holds another row, or cannot write.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import json
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from simulated_world import Hub, SimulatedWorld

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own fit without a process

from ado_megatron.blend.domains import Domains
from ado_megatron.config import AdoConfig
from ado_megatron.mixer import node_table, rank_zero, stop_notice
from ado_megatron.mixer.loader import LoaderSettings
from ado_megatron.mixer.mixer import Mixer
from ado_megatron.mixer.world import Traffic
from ado_megatron.stream.sample_key import pack_key
from tests.kit.mixing import FitInPlace

ON_NODE = 8


class Simulation:
    """The mixers of all ranks over K domains. another: of which rank an option differs (None: of none)."""

    def __init__(self, ranks: int, domains: int, steps: int, folder: Path, another: int | None = None):
        self.ranks, self.steps, self.messages = ranks, steps, []
        self.hub, rng = Hub(ranks), np.random.default_rng(0)
        config = AdoConfig(policy="ado", refit_interval=10, start_step=10, ignore_steps=0, stride=1, early_refits=False)
        other = dataclasses.replace(config, min_share=1e-4)
        prefixes = [f"data/d{k:05d}_text_document" for k in range(domains)]
        blend = Domains.build(prefixes, rng.dirichlet(np.ones(domains)), rng.integers(10**5, 10**6, domains), config)
        node_table.node_name = lambda: f"node {int(threading.current_thread().name) // ON_NODE}"
        self.mixers = [
            Mixer(
                other if rank == another else config, blend, total_samples=steps * ranks, block_size=ranks,
                world=SimulatedWorld(rank, ranks, True, torch.device("cpu"), Traffic(), hub=self.hub), run_dir=folder,
                loader=LoaderSettings(dp=ranks, dp_rank=rank), log=self.messages.append,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        self.step = 0  # of all ranks, and so the time
        for mixer in self.mixers:
            mixer._stop = stop_notice.StopNotice(self.hub.store, lambda: float(self.step))
        self.cpu_RxS = np.zeros((ranks, steps))
        self.calls_RxS = np.zeros((ranks, steps), dtype=np.int64)
        self.ended: dict[int, tuple[int, Exception]] = {}  # by rank: the step in which it raised, and what

    def run(self, each_step: Callable[[Mixer, int], None] = lambda mixer, step: None) -> Simulation:
        """All ranks to their end. each_step: what else happens to a rank before a step."""
        self.hub.run(lambda rank: self._rank(self.mixers[rank], each_step))
        return self

    def _rank(self, mixer: Mixer, each_step: Callable[[Mixer, int], None]) -> None:
        step, rank, keys = -1, mixer.world.rank, self.mixers[0].schedule
        mask_BxL = torch.ones(1, 4)
        try:
            mixer.start()
            for step in range(self.steps):
                mixer.world.hub.meet(rank, None, lambda parts: None)  # the training's own collectives keep step
                self.step = step
                each_step(mixer, step)
                # the dataset that the loader would have read; of one rank, since laying a block out is the loader's
                dataset = keys.locate(step * self.ranks + rank)[0]
                key_B, loss_BxL = torch.tensor([pack_key(step * self.ranks + rank, dataset)]), torch.full((1, 4), 3.0)
                calls, began = mixer.world.traffic.calls, time.thread_time()
                mixer.begin_step(step)
                mixer.meter.add(loss_BxL, mask_BxL, key_B)
                mixer.end_step(step, (step + 1) * self.ranks)
                self.cpu_RxS[rank, step] = time.thread_time() - began
                self.calls_RxS[rank, step] = mixer.world.traffic.calls - calls
        except Exception as error:  # noqa: BLE001 - what every rank is to raise
            self.ended[rank] = step, error

    def close(self) -> None:
        """Stop what rank zero has under way."""
        self.mixers[0].rank_zero.cancel_fits()
        self.mixers[0]._lock.release()

    def sentences(self) -> tuple[set[int], set[str]]:
        """The steps in which ranks ended, and with which words; of ranks that did not, nothing."""
        ends = self.ended.values()
        return {step for step, _ in ends}, {f"{type(error).__name__}: {error}" for _, error in ends}


def healthy(ranks: int, domains: int, steps: int, folder: Path) -> dict[str, Any]:
    """A run in which nothing is wrong: agreement, sums, collectives, cost of a step."""
    began, cpu = time.perf_counter(), time.process_time()
    simulation = Simulation(ranks, domains, steps, folder).run()
    mixers, seen_R = simulation.mixers, np.arange(0, ranks, max(1, ranks // 16))
    table = mixers[0].schedule
    same = [mixers[r].schedule.locate(i) == table.locate(i) for r in seen_R for i in (0, (steps - 1) * ranks + int(r))]
    quiet_S = simulation.calls_RxS.max(axis=0) == 0
    result = {
        "ranks": ranks, "domains": domains, "steps": steps, "ended": len(simulation.ended),
        "digests": len({mixer.schedule.digest for mixer in mixers}), "reads_agree": all(same),
        "tables": len({(m.schedule.table._lender or m.schedule.table.address)[-1] for m in mixers}),
        "steps_without_a_collective": int(quiet_S.sum()),
        "collectives_a_rank": int(simulation.calls_RxS[0].sum()),
        "tokens_reduced": float(mixers[0].rank_zero.recorder.history._tokens.sum()),
        "tokens_drawn": 4.0 * ranks * int(np.flatnonzero(~quiet_S).max() + 1 if (~quiet_S).any() else 0),
        "us_a_rank_and_step": 1e6 * float(np.median(simulation.cpu_RxS[1:, quiet_S])),
        "us_of_rank_zero_and_step": 1e6 * float(np.median(simulation.cpu_RxS[0, quiet_S])),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - began,
        "weights_moved": bool((mixers[0].schedule.row(0) != mixers[0].schedule.row(steps - 1)).any()),
    }  # fmt: skip
    simulation.close()
    del simulation, mixers, table
    gc.collect()  # its tables are files
    return result


def publish_another(mixer: Mixer, step: int) -> None:
    """In step 5 what this rank is sent next is not what it holds."""
    if step == 5:
        publish = mixer.schedule.publish
        mixer.schedule.publish = lambda first, rows: publish(first, np.roll(rows, 1, axis=1))


def fail_to_write(mixer: Mixer, step: int) -> None:
    """In step 3 its draw log cannot be written."""
    if step == 3:
        mixer.draw_log = SimpleNamespace(failure="the disk is full")


def faults(ranks: int, domains: int, folder: Path) -> Iterator[dict[str, Any]]:
    """What all ranks raise: where one began with another option, holds another row, and cannot write its draw log."""
    odd = ranks * 3 // 4
    for name, act in (
        ("another option", None), ("another row", publish_another),
        ("a draw log that cannot be written", fail_to_write),
    ):  # fmt: skip
        simulation = Simulation(ranks, domains, 30, folder / name, another=odd if act is None else None)
        simulation.run(lambda mixer, step, act=act: act(mixer, step) if mixer.world.rank == odd else None)
        steps, sentences = simulation.sentences()
        ended = len(simulation.ended)
        result = {"fault": name, "ended": ended, "after_steps": sorted(steps), "sentences": sorted(sentences)}
        if simulation.mixers[0].rank_zero is not None:
            simulation.close()
        del simulation
        gc.collect()  # its tables are files
        yield result


def main(argv: list[str] | None = None) -> int:
    """Simulate a hundredth, a tenth and all of the ranks, then the faults; print each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--domains", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rank_zero.Fit = FitInPlace  # steps are too short to fit beside them
    stop_notice._numbers = itertools.repeat(0)  # of notices in a process, and here all ranks are one
    runs, ends, show = [], [], sys.stderr if options.json else sys.stdout
    with tempfile.TemporaryDirectory(prefix="ado-world-") as name:
        for n in sorted({max(ON_NODE, options.ranks // part) for part in (100, 10, 1)}):
            runs.append(healthy(n, options.domains, options.steps, Path(name) / str(n)))
            print(json.dumps(runs[-1]), file=show, flush=True)
        for end in faults(options.ranks, options.domains, Path(name)):
            ends.append(end)
            print(json.dumps(end), file=show, flush=True)
    if options.json:
        print(json.dumps({"runs": runs, "faults": ends}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
