"""What adaptive mixing costs a training step, against megatron-core's static blend, paired and interleaved in one run.

    python benchmarks/step_overhead.py                          one process, a few minutes on a CPU
    deepspeed --num_gpus 2 benchmarks/step_overhead.py          two processes; on GPUs add --bf16 and a larger model:
    deepspeed benchmarks/step_overhead.py --bf16 --layers 12 --hidden 768 --heads 12 --seq-length 1024 \
        --micro-batch 8 --global-batch 64 --vocab-size 50304

One engine trains one model. Every pair is two optimizer steps, in an order that alternates: one on batches of
megatron-core's BlendedDataset with no measuring, one on batches of the adaptive blend over the same GPTDatasets with
the meter and the mixer's calls. Printed: the ratio of their times (10 % trimmed mean, bootstrap 95 % interval),
collectives and bytes, the meter's own time, and memory held. Then the hiccup: steps around a refit of 1,000 blocks as
a run makes them (the blocks before are counted, not trained on), the longest against the median, in which step it
came, and what snapshot, publication and, within that, the wait for a late fit took; beside it as many steps of the
static blend, which has no refit. `--policy static` measures our static arm instead of the adaptive one.

Legend: K domains, B samples of a micro-batch, L tokens, N pairs, S steps.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from megatron.core.datasets.utils import Split

from ado_megatron.config import AdoConfig
from ado_megatron.scaling_law.fit_process import Fit
from ado_megatron.stream.sample_key import pack_key
from ado_megatron.trainer import parallel
from ado_megatron.trainer.check_data import check_data
from ado_megatron.trainer.data import build_on_readers
from ado_megatron.trainer.loop import Trainer
from ado_megatron.trainer.options import TrainerOptions

INTERVAL = 1000  # steps between two refits, as the paper has it
AROUND = 15  # steps before and after what a refit does


def write_domains(folder: Path, num_domains: int, samples: int, seq_length: int, vocab_size: int) -> list[str]:
    """Random tokens as Megatron files: prefixes of `num_domains` domains of `samples` samples each."""
    rng = np.random.default_rng(0)
    for k in range(num_domains):
        builder = IndexedDatasetBuilder(str(folder / f"d{k:02d}.bin"), dtype=np.uint16)
        tokens = rng.integers(0, vocab_size, samples * seq_length + 1)
        for document in np.array_split(tokens, 8):
            builder.add_document(document, [len(document)])
        builder.finalize(str(folder / f"d{k:02d}.idx"))
    return [str(folder / f"d{k:02d}") for k in range(num_domains)]


class StaticFeed:
    """Micro-batches of megatron-core's blend, in the same form, cut for the same rank."""

    def __init__(self, trainer: Trainer, datasets, weights, steps: int):
        options, config = trainer.options, datasets[0].config
        self._blend = BlendedDataset(datasets, list(weights), steps * options.global_batch, config)
        loader = torch.utils.data.DataLoader(
            self._blend, batch_sampler=_Indices(trainer), num_workers=options.num_workers, collate_fn=self._collate,
            pin_memory=trainer.place.device.type == "cuda",
        )  # fmt: skip
        self._batches = iter(loader)

    @staticmethod
    def _collate(items):
        tokens, target, mask = (torch.stack([i[name] for i in items]) for name in ("tokens", "labels", "loss_mask"))
        return tokens, (target, mask, torch.zeros(len(items), dtype=torch.int64))

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._batches)


class _Indices:
    def __init__(self, trainer: Trainer):
        self._trainer = trainer

    def __iter__(self):
        return self._trainer.plan.micro_batches(0, self._trainer.place.dp, self._trainer.place.dp_rank)


def timed(call) -> float:
    """Seconds of `call`, the device's work included."""
    get_accelerator().synchronize()
    start = time.perf_counter()
    call()
    get_accelerator().synchronize()
    return time.perf_counter() - start


class NoMixer:
    """The static arm's mixer: the loop calls it, it does nothing."""

    def begin_step(self, step: int) -> None:
        pass

    def end_step(self, step: int, consumed_samples: int) -> None:
        pass


def measure_pairs(trainer: Trainer, static, warm_up: int, pairs: int) -> np.ndarray:
    """seconds_Nx2 of the (static, adaptive) step of every pair; neither holds a refit."""
    arms = [(static, NoMixer(), None), (trainer.batches, trainer.mixer, trainer.loss.on_train)]
    seconds_Nx2 = np.zeros((warm_up + pairs, 2))
    for step in range(warm_up + pairs):
        for arm in (0, 1) if step % 2 else (1, 0):
            trainer.batches, trainer.mixer, trainer.loss.on_train = arms[arm]
            seconds_Nx2[step, arm] = timed(lambda step=step: trainer._train_step(step))
    trainer.batches, trainer.mixer, trainer.loss.on_train = arms[1]
    return seconds_Nx2[warm_up:]


def trimmed_ratio(seconds_Nx2: np.ndarray, samples: int = 4000) -> tuple[float, float, float]:
    """Adaptive over static: 10 % trimmed mean of the pairs' log ratios, and its bootstrap 95 % interval."""
    log_N = np.sort(np.log(seconds_Nx2[:, 1] / seconds_Nx2[:, 0]))
    cut = len(log_N) // 10

    def centre(sorted_N):
        return np.exp(sorted_N[..., cut : len(log_N) - cut].mean(-1))

    rng = np.random.default_rng(0)
    drawn = np.sort(log_N[rng.integers(0, len(log_N), (samples, len(log_N)))], axis=-1)
    low, high = np.quantile(centre(drawn), [0.025, 0.975])
    return float(centre(log_N)), float(low), float(high)


def measure_hiccup(trainer: Trainer, static, first: int) -> dict:
    """Steps around the refit after block INTERVAL, from AROUND before its snapshot to AROUND after its publication, and
    as many of the static blend. first: steps done so far."""
    mixer, spent = trainer.mixer, {"snapshot": 0.0, "publication": 0.0, "waited": 0.0}
    result = Fit.result

    def waiting(fit, deadline):
        outcome = result(fit, deadline)
        spent["waited"] += outcome.waited
        return outcome

    Fit.result = waiting
    for name, call in (("snapshot", mixer._snapshot), ("publication", mixer._apply)):

        def timed_call(*args, name=name, call=call):
            spent[name] += timed(lambda: call(*args))

        setattr(mixer, "_snapshot" if name == "snapshot" else "_apply", timed_call)
    for step in range(first, INTERVAL - AROUND):
        mixer.begin_step(step)
        mixer.end_step(step, trainer.plan.consumed(step + 1))
    steps = range(INTERVAL - AROUND, INTERVAL + mixer.refits.fit_lag + AROUND)
    seconds_S = np.array([timed(lambda step=step: trainer._train_step(step)) for step in steps])
    arm = trainer.batches, trainer.mixer, trainer.loss.on_train
    trainer.batches, trainer.mixer, trainer.loss.on_train = static, NoMixer(), None
    stock_S = np.array([timed(lambda step=step: trainer._train_step(step)) for step in steps])
    trainer.batches, trainer.mixer, trainer.loss.on_train = arm
    return {
        "steps": len(steps), "median_s": float(np.median(seconds_S)), "longest_s": float(seconds_S.max()),
        "longest_is_step": int(steps[seconds_S.argmax()]), "snapshot_s": spent["snapshot"],
        "publication_s": spent["publication"], "waited_for_fit_s": spent["waited"],
        "longest_over_median": float(seconds_S.max() / np.median(seconds_S)),
        "static_median_s": float(np.median(stock_S)), "static_longest_s": float(stock_S.max()),
        "static_longest_over_median": float(stock_S.max() / np.median(stock_S)),
    }  # fmt: skip


def measure_meter(trainer: Trainer, repeats: int = 200) -> float:
    """Seconds of one `meter.add` of a micro-batch."""
    options, device = trainer.options, trainer.place.device
    loss_BxL = torch.rand(options.micro_batch, options.seq_length, device=device)
    mask_BxL = torch.ones_like(loss_BxL)
    key_B = torch.tensor([pack_key(i, i % 3) for i in range(options.micro_batch)], device=device)
    meter = trainer.mixer.meter
    return timed(lambda: [meter._accumulate(loss_BxL, mask_BxL, key_B) for _ in range(repeats)]) / repeats


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--local_rank", type=int, default=0)
    for name, default in dict(
        pairs=150, warm_up=5, domains=22, layers=4, hidden=256, heads=4, seq_length=128, micro_batch=4,
        global_batch=8, vocab_size=2048, num_workers=0, tp=1, pp=1, zero=1,
    ).items():  # fmt: skip
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--policy", default="ado", choices=("ado", "static", "plan"))
    parser.add_argument("--out", help="also write the result there, as JSON")
    return parser.parse_args()


def main() -> None:
    args = parse()
    for name, value in dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=29577).items():
        os.environ.setdefault(name, str(value))
    folder = Path(tempfile.gettempdir()) / f"ado-step-overhead-{os.getppid()}"  # one launcher, one folder
    folder.mkdir(exist_ok=True)
    names = [f"d{k:02d}" for k in range(args.domains)]
    if os.environ["RANK"] == "0" and not (folder / "done").exists():
        samples = (args.warm_up + args.pairs + 150) * args.global_batch  # one epoch of each is enough at any weight
        write_domains(folder, args.domains, samples, args.seq_length, args.vocab_size)
        (folder / "done").touch()
    while not (folder / "done").exists():
        time.sleep(0.1)
    weights = np.random.default_rng(1).dirichlet(np.ones(args.domains) * 3)
    data_path = [text for w, name in zip(weights, names, strict=True) for text in (f"{w:.6f}", str(folder / name))]
    kept = ("layers", "hidden", "heads", "seq_length", "micro_batch", "global_batch", "vocab_size", "num_workers")
    options = TrainerOptions(
        data_path=tuple(data_path), run_dir=str(folder / "run"), bf16=args.bf16, tp=args.tp, pp=args.pp,
        zero=args.zero, steps=3 * INTERVAL, eval_interval=0, save_interval=0,
        **{name: getattr(args, name) for name in kept},
    )  # fmt: skip
    config = AdoConfig(
        policy=args.policy, refit_interval=INTERVAL, start_step=1, early_refits=False, ignore_steps=0
    )  # fmt: skip
    try:
        report(args, run(options, config, args, weights))
    finally:
        if os.environ["RANK"] == "0":
            shutil.rmtree(folder)


def run(options: TrainerOptions, config: AdoConfig, args: argparse.Namespace, weights) -> dict:
    """Measure; the same on every rank."""
    trainer = Trainer(options, config)
    data = check_data(options)
    datasets = build_on_readers(
        data.train_C, Split.train, options, data.vocab_size, trainer.place, trainer.world
    )
    more = trainer.mixer.refits.fit_lag + 2 * AROUND
    steps = args.warm_up + args.pairs + more
    static = StaticFeed(trainer, datasets, weights, steps) if trainer.world.is_zero else None
    trainer.world.broadcast(None)  # the other ranks read the index that rank zero has written
    static = static or StaticFeed(trainer, datasets, weights, steps)
    traffic = trainer.world.traffic  # a world of one has none
    seconds_Nx2 = measure_pairs(trainer, static, args.warm_up, args.pairs)
    before = (traffic.calls, traffic.payload_bytes)
    hiccup = measure_hiccup(trainer, static, args.warm_up + args.pairs)
    refit = hiccup["snapshot_s"] + hiccup["publication_s"] - hiccup["waited_for_fit_s"]
    calls, payload = traffic.calls - before[0], traffic.payload_bytes - before[1]
    ratio, low, high = trimmed_ratio(seconds_Nx2)
    step = float(np.median(seconds_Nx2[:, 0]))
    meter = measure_meter(trainer)
    held = trainer.mixer.meter._sums_TxKx2
    accelerator = get_accelerator()
    result = {
        "ratio": ratio, "interval_95": [low, high], "static_step_seconds": step,
        "refit_seconds": refit, "refit_share_of_1000_steps": refit / (INTERVAL * step), "hiccup": hiccup,
        "collectives_per_1000_steps": calls, "collective_bytes_per_1000_steps": payload,
        "sum_bytes_per_1000_steps": (INTERVAL + 1) * args.domains * 16,
        "meter_seconds_per_micro_batch": meter, "meter_bytes": held.numel() * held.element_size(),
        "peak_device_bytes": int(accelerator.max_memory_allocated()) if held.is_cuda else None,
        "world_size": trainer.world.size, "device": accelerator.device_name(), "bf16": args.bf16,
        "hardware": torch.cuda.get_device_name() if held.is_cuda else platform.processor() or platform.machine(),
        "parameters": sum(p.numel() for p in trainer.engine.module.parameters()), "pairs": args.pairs,
        "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip
    trainer.close()
    return result


def report(args: argparse.Namespace, result: dict) -> None:
    if os.environ["RANK"] == "0":
        print(json.dumps(result, indent=1))
        if args.out:
            Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
    parallel.tear_down()


if __name__ == "__main__":
    main()
