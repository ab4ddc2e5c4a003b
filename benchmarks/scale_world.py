"""Thousands of ranks in one process: a `World` of that size, in which the real mixer of every rank runs.

    python benchmarks/scale_world.py [--ranks 10000] [--steps 50] [--domains 100] [--json]

Every rank is a thread that calls its own `Mixer` as a training would: `start`, then `begin_step`, `meter.add` of its
own sample and `end_step`. Collectives meet in memory. A block has one sample a rank; eight ranks share a table, as on a
node. Printed: that all ranks hold the same rows, that the sums are whole, how many collectives a step made, what the
mixer of a rank costs in a step (CPU seconds of its thread, outside collectives), and the sentences with which ranks end
that began with another option, hold another row, or cannot write.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests' own fit without a process

from ado_megatron.blend.domains import Domains
from ado_megatron.config import AdoConfig
from ado_megatron.mixer import node_table, rank_zero, stop_notice
from ado_megatron.mixer.loader import LoaderSettings
from ado_megatron.mixer.mixer import Mixer
from ado_megatron.mixer.world import Traffic, World
from ado_megatron.stream.sample_key import pack_key
from tests.kit.mixing import FitInPlace

ON_NODE = 8
PATIENCE = 120.0  # seconds that a rank waits for the others


class Hub:
    """Where the collectives of a simulated world meet: what each rank brings, and what all take away."""

    def __init__(self, size: int):
        self.size, self.store = size, Store()
        self._brought: dict[int, Any] = {}
        self._taken: Any = None
        self._meeting, self._met = 0, threading.Condition()

    def meet(self, rank: int, value: Any, combine: Callable[[dict[int, Any]], Any]) -> Any:
        """What `combine` makes of every rank's value, once the last one is here."""
        with self._met:
            meeting = self._meeting
            self._brought[rank] = value
            if len(self._brought) == self.size:
                self._taken, self._brought = combine(self._brought), {}
                self._meeting += 1
                self._met.notify_all()
            elif not self._met.wait_for(lambda: self._meeting > meeting, PATIENCE):
                raise TimeoutError(f"rank {rank} waited for {self.size - len(self._brought)} ranks")
            return self._taken


class Store:
    """The key-value store of the rendezvous, as far as it is used."""

    def __init__(self):
        self._values: dict[str, Any] = {}
        self._lock = threading.Lock()

    def add(self, key: str, amount: int) -> int:
        with self._lock:
            self._values[key] = self._values.get(key, 0) + amount
            return self._values[key]

    def set(self, key: str, value: str) -> None:
        self._values[key] = value

    def get(self, key: str) -> str:
        while key not in self._values:
            time.sleep(0.001)
        return self._values[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self._values for key in keys)


@dataclasses.dataclass(frozen=True)
class SimulatedWorld(World):
    """One of `size` ranks; what World asks of torch.distributed is asked of the hub."""

    hub: Hub = dataclasses.field(kw_only=True)

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        total = self.hub.meet(self.rank, tensor.clone(), lambda parts: torch.stack([*parts.values()]).sum(0))
        self.traffic.count(tensor.numel() * tensor.element_size())
        return tensor.copy_(total)

    def broadcast(self, value: Any) -> Any:
        self.traffic.count(8)
        return self.hub.meet(self.rank, value, lambda parts: parts[0])

    def all_same(self, digest: int) -> bool:
        self.traffic.count(16)
        return self.hub.meet(self.rank, digest, lambda parts: len(set(parts.values())) == 1)

    def gather(self, value: Any) -> list[Any]:
        return self.hub.meet(self.rank, value, lambda parts: [parts[rank] for rank in range(self.size)])

    def gather_int64(self, value: int) -> list[int]:
        return self.gather(value)

    def gather_on_zero(self, value: Any) -> list[Any]:
        everyone = self.gather(value)
        return everyone if self.is_zero else []

    def store(self) -> Any:
        return self.hub.store

    def timeout(self) -> float | None:
        return None


class Simulation:
    """The mixers of all ranks over K domains. another: of which rank an option differs (None: of none)."""

    def __init__(self, ranks: int, domains: int, steps: int, folder: Path, another: int | None = None):
        self.ranks, self.steps, self.messages = ranks, steps, []
        hub, rng = Hub(ranks), np.random.default_rng(0)
        config = AdoConfig(policy="ado", refit_interval=10, start_step=10, ignore_steps=0, stride=1, early_refits=False)
        other = dataclasses.replace(config, min_share=1e-4)
        prefixes = [f"data/d{k:05d}_text_document" for k in range(domains)]
        blend = Domains.build(prefixes, rng.dirichlet(np.ones(domains)), rng.integers(10**5, 10**6, domains), config)
        node_table.node_name = lambda: f"node {int(threading.current_thread().name) // ON_NODE}"
        self.mixers = [
            Mixer(
                other if rank == another else config, blend, total_samples=steps * ranks, block_size=ranks,
                world=SimulatedWorld(rank, ranks, True, torch.device("cpu"), Traffic(), hub=hub), run_dir=folder,
                loader=LoaderSettings(dp=ranks, dp_rank=rank), log=self.messages.append,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        self.cpu_RxS = np.zeros((ranks, steps))
        self.calls_RxS = np.zeros((ranks, steps), dtype=np.int64)
        self.ended: dict[int, tuple[int, Exception]] = {}  # by rank: the step in which it raised, and what

    def run(self, each_step: Callable[[Mixer, int], None] = lambda mixer, step: None) -> Simulation:
        """All ranks to their end. each_step: what else happens to a rank before a step."""
        threading.stack_size(1 << 20)
        threads = [
            threading.Thread(target=self._rank, args=(mixer, each_step), name=str(rank), daemon=True)
            for rank, mixer in enumerate(self.mixers)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self

    def _rank(self, mixer: Mixer, each_step: Callable[[Mixer, int], None]) -> None:
        step, rank, keys = -1, mixer.world.rank, self.mixers[0].schedule
        mask_BxL = torch.ones(1, 4)
        try:
            mixer.start()
            for step in range(self.steps):
                each_step(mixer, step)
                mixer.world.hub.meet(rank, None, lambda parts: None)  # the training's own collectives keep step
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
        "cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - began,
        "weights_moved": bool((mixers[0].schedule.row(0) != mixers[0].schedule.row(steps - 1)).any()),
    }  # fmt: skip
    simulation.close()
    return result


def faults(ranks: int, domains: int, folder: Path) -> dict[str, Any]:
    """What all ranks raise: where one began with another option, holds another row, and cannot write its draw log."""
    odd, found = ranks * 3 // 4, {}
    option = Simulation(ranks, domains, 12, folder / "option", another=odd).run()
    found["another option"] = option

    def publish_another(mixer: Mixer, step: int) -> None:
        if mixer.world.rank == odd and step == 5:
            publish = mixer.schedule.publish
            mixer.schedule.publish = lambda first, rows: publish(first, np.roll(rows, 1, axis=1))

    found["another row"] = Simulation(ranks, domains, 30, folder / "row").run(publish_another)

    def fail_to_write(mixer: Mixer, step: int) -> None:
        if mixer.world.rank == odd and step == 3:
            mixer.draw_log = SimpleNamespace(failure="the disk is full")
        time.sleep(0.01)

    stop_notice._numbers = itertools.repeat(0)  # of notices in a process, and here all ranks are one
    stop_notice.LOOK_EVERY = 0.02  # else so many quick steps are made until all have looked
    found["a draw log that cannot be written"] = Simulation(ranks, domains, 40, folder / "log").run(fail_to_write)
    result = {}
    for name, simulation in found.items():
        steps, sentences = simulation.sentences()
        result[name] = {"ended": len(simulation.ended), "after_steps": sorted(steps), "sentences": sorted(sentences)}
        if simulation.mixers[0].rank_zero is not None:
            simulation.close()
    return result


def main(argv: list[str] | None = None) -> int:
    """Simulate a hundredth, a tenth and all of the ranks, then the faults; print or write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--domains", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rank_zero.Fit = FitInPlace  # steps are too short to fit beside them
    with tempfile.TemporaryDirectory(prefix="ado-world-") as name:
        sizes = sorted({max(ON_NODE, options.ranks // part) for part in (100, 10, 1)})
        runs = [healthy(n, options.domains, options.steps, Path(name) / str(n)) for n in sizes]
        result = {"runs": runs, "faults": faults(options.ranks, options.domains, Path(name))}
    if options.json:
        print(json.dumps(result))
        return 0
    for run in runs:
        print(json.dumps(run))
    for what, fault in result["faults"].items():
        print(f"{what}: {fault['ended']} of {options.ranks} ranks ended, after step {fault['after_steps']}")
        print("\n".join(f"  {sentence}" for sentence in fault["sentences"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
