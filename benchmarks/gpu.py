"""What a GPU must show, on one card: bfloat16 losses, synchronisation, resume, step overhead, meter (see gpu.sh).

    python benchmarks/gpu.py --out FILE          minutes on one card; exit code 1 if something is not as it must be
    python benchmarks/gpu.py --rehearse          the same parts with small sizes on a CPU, to see that they work

Every part is a process of its own, so that one engine lives at a time. What is asserted stands in BOUNDS.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BOUNDS = {
    "loss": 0.05,  # nats: greatest difference of a step's loss, bfloat16 from fp32 on a CPU, same seed and samples
    "mean_loss": 0.02,  # nats: of the mean over the steps
    "resume": 0.005,  # nats: a resumed run from the whole one, whose kernels may add in another order
    "overhead": 1.02,  # upper end of the interval of adaptive over static
}
STEPS, HALF, PROFILED = 20, 10, 3
SMALL = dict(layers=4, hidden=256, heads=4, seq_length=128, micro_batch=4, global_batch=8, vocab_size=2048)
TINY = dict(layers=2, hidden=32, heads=2, seq_length=32, micro_batch=4, global_batch=8, vocab_size=256)
# 124 million parameters: twelve layers, embedding and head apart
LARGE = (
    "--layers 12 --hidden 768 --heads 12 --seq-length 1024 --vocab-size 25344 --micro-batch 8 --global-batch 16 --bf16"
)
# what makes the CPU wait for the device, as the profiler names it
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")
OURS = "ado"


def waits_inside(events: Iterable[Any], ours: str = OURS) -> dict[str, int]:
    """Waits by name that lie inside a range named `ours` on the same thread. events: as `profile.events()` has them."""
    events = list(events)
    ranges = [(e.thread, e.time_range.start, e.time_range.end) for e in events if e.name == ours]
    found: dict[str, int] = {}
    for event in events:
        inside = any(event.thread == thread and start <= event.time_range.start <= end for thread, start, end in ranges)
        if event.name in WAITS and inside:
            found[event.name] = found.get(event.name, 0) + 1
    return found


def run_arm(args: argparse.Namespace) -> dict[str, Any]:
    """One training in this process: losses of its steps, peak memory and, with --profile, the waits of a step."""
    import torch

    from ado_megatron.config import AdoConfig
    from ado_megatron.trainer import parallel
    from ado_megatron.trainer.loop import Trainer
    from ado_megatron.trainer.options import TrainerOptions

    for name, value in dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=29578).items():
        os.environ.setdefault(name, str(value))
    options = TrainerOptions(
        data_path=tuple(args.data), run_dir=args.run_dir, bf16=args.bf16, resume=args.resume, steps=STEPS,
        exit_interval=args.stop, eval_interval=0, progress=False, tensorboard=False, lr_warmup_steps=5,
        **(TINY if args.rehearse else SMALL),
    )  # fmt: skip
    trainer = Trainer(options, AdoConfig(refit_interval=1000, audit=True), record=not args.profile)
    result: dict[str, Any] = {"device": str(trainer.place.device), "torch": torch.__version__}
    if args.profile:
        result |= profile_steps(trainer)
    else:
        result["losses"] = trainer.train().losses
    if trainer.place.device.type == "cuda":
        result |= {"card": torch.cuda.get_device_name(), "peak_bytes": torch.cuda.max_memory_allocated()}
    trainer.close()
    parallel.tear_down()
    return result


def profile_steps(trainer: Any) -> dict[str, Any]:
    """Waits of PROFILED steps after some: inside the calls of ours, and in all."""
    from torch.profiler import profile, record_function

    def marked(call):
        def ours(*args, **kwargs):
            with record_function(OURS):
                return call(*args, **kwargs)

        return ours

    mixer = trainer.mixer
    mixer.begin_step, mixer.end_step = marked(mixer.begin_step), marked(mixer.end_step)
    trainer.loss.on_train = marked(trainer.loss.on_train)
    for step in range(5):
        trainer._train_step(step)
    with profile() as seen:
        for step in range(5, 5 + PROFILED):
            trainer._train_step(step)
    events = list(seen.events())
    names = [event.name for event in events]
    return {
        "calls_of_ours": names.count(OURS), "waits_inside_ours": waits_inside(events),
        "waits_per_step_in_all": {name: names.count(name) / PROFILED for name in WAITS if name in names},
    }  # fmt: skip


def start_arm(folder: Path, data: list[str], rehearse: bool, run: str, *words: str, cpu: bool = False) -> dict:
    """The result of `run_arm` in a process of its own."""
    out = folder / f"{run}_{len(list(folder.glob(f'{run}_*.json')))}.json"
    line = [sys.executable, __file__, "--arm", out, "--run-dir", folder / run, *words, *["--rehearse"] * rehearse]
    subprocess.run([*line, "--data", *data], env=environment(cpu or rehearse), check=True, stdout=sys.stderr)
    return json.loads(out.read_text())


def environment(cpu: bool) -> dict[str, str]:
    """That of this process, for an arm that sees the GPU or none."""
    return os.environ | ({"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if cpu else {})


def measure(folder: Path, rehearse: bool) -> dict[str, Any]:
    """All parts, and what each must be."""
    from step_overhead import write_domains

    size = TINY if rehearse else SMALL
    prefixes = write_domains(folder, 3, 200, size["seq_length"], size["vocab_size"] // 4)
    data = [word for weight, prefix in zip(("0.5", "0.3", "0.2"), prefixes, strict=True) for word in (weight, prefix)]

    def arm(run: str, *words: str, cpu: bool = False) -> dict[str, Any]:
        return start_arm(folder, data, rehearse, run, *words, cpu=cpu)

    exact, rounded = arm("fp32_cpu", cpu=True), arm("bf16", "--bf16")
    parts = [arm("resumed", "--bf16", "--stop", str(HALF)), arm("resumed", "--bf16", "--resume")]
    resumed = [loss for part in parts for loss in part["losses"]]
    profiled = arm("profiled", "--bf16", "--profile")
    overhead = measure_overhead(folder, rehearse)
    apart = [abs(a - b) for a, b in zip(exact["losses"], rounded["losses"], strict=True)]
    mean_apart = abs(sum(exact["losses"]) - sum(rounded["losses"])) / STEPS
    resume_apart = max(abs(a - b) for a, b in zip(rounded["losses"], resumed, strict=True))
    audit = subprocess.run(
        [sys.executable, "-m", "ado_megatron.cli", "audit", str(folder / "resumed")], capture_output=True, text=True
    )
    return {
        "losses": {"fp32_cpu": exact["losses"], "bf16": rounded["losses"], "resumed": resumed},
        "largest_difference": max(apart), "difference_of_means": mean_apart, "resume_difference": resume_apart,
        "audit": audit.stdout.strip(), "peak_bytes": rounded.get("peak_bytes"), "profile": profiled,
        "overhead": overhead,
        "card": rounded.get("card"), "torch": rounded["torch"], "python": platform.python_version(), "bounds": BOUNDS,
        "failures": [
            name for name, right in {
                "losses in bfloat16": max(apart) <= BOUNDS["loss"] and mean_apart <= BOUNDS["mean_loss"],
                "resume": len(resumed) == STEPS and resume_apart <= BOUNDS["resume"],
                "audit of the resumed run": audit.returncode == 0,
                "no wait in a step of ours": profiled["calls_of_ours"] > 0 and not profiled["waits_inside_ours"],
                "step overhead": rehearse or overhead["interval_95"][1] <= BOUNDS["overhead"],
            }.items() if not right
        ],
    }  # fmt: skip


def measure_overhead(folder: Path, rehearse: bool) -> dict[str, Any]:
    """benchmarks/step_overhead.py at 124 million parameters: paired ratio, meter, memory."""
    out = folder / "overhead.json"
    words = "--pairs 4 --warm-up 1 --domains 3 --layers 2 --hidden 32" if rehearse else f"--pairs 100 {LARGE}"
    script = Path(__file__).with_name("step_overhead.py")
    line = [sys.executable, script, *words.split(), "--out", out]
    subprocess.run(line, env=environment(rehearse), check=True, stdout=sys.stderr)
    return json.loads(out.read_text())


def main() -> int:
    """Exit code 1 if a part is not as it must be, or there is no GPU to measure on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="file for the result, as JSON")
    parser.add_argument("--rehearse", action="store_true", help="small sizes on a CPU; says nothing about a GPU")
    parser.add_argument("--arm", help=argparse.SUPPRESS)  # this process is one training
    parser.add_argument("--run-dir", help=argparse.SUPPRESS)
    parser.add_argument("--stop", type=int, default=0, help=argparse.SUPPRESS)
    for switch in ("--bf16", "--resume", "--profile"):
        parser.add_argument(switch, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--data", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        Path(args.arm).write_text(json.dumps(run_arm(args)))
        return 0
    import torch

    if not args.rehearse and not torch.cuda.is_available():
        print("gpu.py: torch sees no GPU on this machine; --rehearse runs the same parts on a CPU", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="ado-gpu-") as folder:
        result = measure(Path(folder), args.rehearse)
    result |= {"command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]), "rehearsal": args.rehearse}
    print(json.dumps(result, indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
    for failure in result["failures"]:
        print(f"gpu.py: not as it must be: {failure}", file=sys.stderr)
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
