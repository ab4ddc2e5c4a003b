"""One start of a training, from the first line of its process to its first batch; the child of startup.py.

    python benchmarks/startup_probe.py OUT.json FRAMEWORK ARM ARGUMENTS…

FRAMEWORK: lm, deepspeed (ARGUMENTS: the script and its own), embedded (those of `ado-megatron pretrain`). ARM: stock or
ours. Written: seconds (wall and CPU) since the process began, which of them were spent in our code and which in the
framework's, called by ours or not, by function; and what the process holds when it has its first batch.

Embedded: the process does what the parent of a launch does and then what a rank does; the launcher between them, which
is DeepSpeed's and the same for both, is left out. Its stock arm is megatron-core's own builder of blends.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TRAINING = {"lm": "megatron.training.training", "deepspeed": "megatron.training"}


class Clock:
    """Wall and CPU seconds by owner and function; those inside another timed function count for the inner one alone."""

    def __init__(self):
        self.seconds: dict[tuple[str, str], list[float]] = {}
        self._stack: list[tuple[str, str]] = [("host", "the rest")]
        self._since = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def _book(self) -> None:
        """What passed since the last call goes to the function that is running."""
        now, spent = self._now(), self.seconds.setdefault(self._stack[-1], [0.0, 0.0, 0])
        spent[0] += now[0] - self._since[0]
        spent[1] += now[1] - self._since[1]
        self._since = now

    def timed(self, owner: str, name: str, function: Callable) -> Callable:
        """The function, which is timed when it is called."""

        @functools.wraps(function)
        def call(*args, **kwargs):
            self._book()
            self._stack.append((owner, name))
            self.seconds.setdefault((owner, name), [0.0, 0.0, 0])[2] += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._book()
                self._stack.pop()

        return call

    def put(self, owner: str, where: Any, *names: str) -> None:
        """Time functions of a module or class in their place."""
        for name in names:
            setattr(where, name, self.timed(owner, f"{where.__name__}.{name}", getattr(where, name)))

    def of(self, owner: str) -> dict[str, list[float]]:
        """[wall, CPU, calls] by function, largest first."""
        self._book()
        mine = {name: spent for (whose, name), spent in self.seconds.items() if whose == owner}
        return dict(sorted(mine.items(), key=lambda item: -item[1][0]))


CLOCK = Clock()
OUT = sys.argv[1] if len(sys.argv) > 1 else os.devnull  # the script gets other arguments


def held() -> dict[str, int]:
    """Memory of this process, its open files and its mappings (Linux bounds those: vm.max_map_count, 65,530)."""
    text = Path("/proc/self/smaps_rollup").read_text().splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in text[1:]}
    return {
        "pss_bytes": kilobytes["Pss"] << 10, "private_bytes": kilobytes["Private_Dirty"] << 10,
        "open_files": len(os.listdir("/proc/self/fd")),
        "mappings": len(Path("/proc/self/maps").read_bytes().splitlines()),
    }  # fmt: skip


def first_batch(batches: Any) -> None:
    """Draw the first batch, write the result, and end the process."""
    next(batches)
    ours, hosts = CLOCK.of("ours"), CLOCK.of("host")
    began = float(os.environ["ADO_STARTUP_BEGAN"])
    result = {
        "wall_s": time.time() - began, "cpu_s": time.process_time(), "ours": ours, "host": hosts,
        "ours_wall_s": sum(spent[0] for spent in ours.values()), "ours_cpu_s": sum(spent[1] for spent in ours.values()),
    }  # fmt: skip
    Path(OUT).write_text(json.dumps(result | held()))
    sys.stdout.flush()
    os._exit(0)


# ---------------------------------------------------------------- the frameworks


def time_hooks() -> None:
    """Every hooked function of a framework: ours outside, the framework's own inside."""
    from ado_megatron.hosts import hooks

    install, problem = hooks.install, hooks.HookPoint.problem
    hooks.HookPoint.problem = CLOCK.timed("host", "imports", problem)  # they would come with the script

    def timed(key: str, wrap: Callable, stock: Any) -> Any:
        hooked = wrap(stock if isinstance(stock, type) else CLOCK.timed("host", key, stock))
        return CLOCK.timed("ours", key, hooked)

    def install_timed(wrappers):
        install({key: functools.partial(timed, key, wrap) for key, wrap in wrappers.items()})

    hooks.install = install_timed


def time_parts() -> None:
    """What our code calls: parts of ours by name, and the framework's builders."""
    from ado_megatron.blend.domains import Domains
    from ado_megatron.hosts.session import Session
    from ado_megatron.mixer.mixer import Mixer
    from ado_megatron.mixer.world import World

    Domains.build = CLOCK.timed("ours", "Domains.build", Domains.build)
    CLOCK.put("ours", Domains, "fingerprint")
    CLOCK.put("ours", Mixer, "__init__", "start", "_publish")
    CLOCK.put("ours", World, "require_same", "broadcast")
    CLOCK.put("ours", Session, "train_set", "open")


def run_host(framework: str, arm: str, arguments: list[str]) -> None:
    """The script under ado_megatron.run, up to its first step."""
    from ado_megatron import hosts, run

    run_path = runpy.run_path

    def run_script(*args, **kwargs):
        training = importlib.import_module(TRAINING[framework])
        training.train_step = lambda forward, batches, *rest, **more: first_batch(batches)
        if framework == "lm":
            from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder as Builder

            CLOCK.put("host", Builder, "_build_megatron_datasets_parallel")
        return run_path(*args, **kwargs)

    runpy.run_path = CLOCK.timed("host", "the script", run_script)
    if arm == "ours":
        time_hooks()
        time_parts()
        hosts.install = CLOCK.timed("ours", "hosts.install", hosts.install)
    run.main([*arguments, *(["--ado-off"] if arm == "stock" else [])])


def run_embedded(arguments: list[str]) -> None:
    """What the parent of a launch does, then what a rank does, up to its first step."""
    from ado_megatron.trainer import data, launch, loop

    GPTDataset = data.GPTDataset
    made = CLOCK.timed("host", "GPTDataset", GPTDataset)
    made.build_low_level_dataset = CLOCK.timed("host", "build_low_level_dataset", GPTDataset.build_low_level_dataset)
    data.GPTDataset = made
    time_parts()
    for name in ("check_data", "check_mixture", "check_run_dir", "run_identity"):
        setattr(launch, name, CLOCK.timed("ours", f"parent: {name}", getattr(launch, name)))
    for name in (
        "check_data", "make_domains", "check_run_dir", "run_identity", "make_train_iterator", "write_identity",
    ):  # fmt: skip
        setattr(loop, name, CLOCK.timed("ours", f"rank: {name}", getattr(loop, name)))
    loop.build_on_readers = CLOCK.timed("ours", "build_on_readers", loop.build_on_readers)
    launch._start = lambda *_: 0
    ranks = {name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE")}
    launch.main(arguments)
    os.environ.update(ranks)
    loop.Trainer._train_step = lambda trainer, step: first_batch(trainer.batches)
    launch.main(arguments)


def run_embedded_stock(arguments: list[str]) -> None:
    """The same trainer's engine over megatron-core's own blend of the same prefixes."""
    import torch
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    from ado_megatron.trainer import parallel
    from ado_megatron.trainer.model import make_model
    from ado_megatron.trainer.optimizer import make_engine
    from ado_megatron.trainer.options import parse
    from ado_megatron.trainer.pipeline_loss import PipelineLoss

    options, _ = parse(arguments)
    words = Path(options.data_args_path).read_text().split()
    place = parallel.set_up(options)
    make_engine(options, place, make_model(options, place, 128, PipelineLoss(2)), 1e-3, options.global_batch)
    tokenizer = SimpleNamespace(vocab_size=128, eod=0, pad=-1, unique_identifiers={"vocab_size": 128})
    config = GPTDatasetConfig(
        random_seed=options.seed, sequence_length=options.seq_length, blend=(words[1::2], [*map(float, words[::2])]),
        split="1,0,0", path_to_cache=options.data_cache, tokenizer=tokenizer, reset_position_ids=False,
        reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
    )  # fmt: skip
    sizes = [options.steps * options.global_batch, 0, 0]
    blend = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()[0]
    first_batch(iter(torch.utils.data.DataLoader(blend, batch_size=options.micro_batch)))


if __name__ == "__main__":
    _, _, framework, arm, *rest = sys.argv
    if framework != "embedded":
        run_host(framework, arm, rest)
    elif arm == "ours":
        run_embedded(rest)
    else:
        run_embedded_stock(rest)
