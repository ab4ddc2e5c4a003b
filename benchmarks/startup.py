"""Start-up with thousands of small prefixes: from the start of the process to its first batch, stock and ours.

    python benchmarks/startup.py [--prefixes 100 1000 2419] [--frameworks embedded lm deepspeed] [--json]

Frameworks: the trainer of `ado-megatron pretrain` (its stock arm: the same engine over megatron-core's blend), and
checkouts of Megatron-LM (MEGATRON_LM_DIR) and Megatron-DeepSpeed (MEGATRON_DEEPSPEED_DIR;
MEGATRON_PYTHON: an interpreter with their packages). ADO_CPU=1 on a machine without a GPU. One rank.

Each row is a process of its own. cold: no cache of indices. warm: the same start again. other: with other weights,
for which a static blend needs another index. The files themselves are in the page cache. `ours` is what is spent
in our code, without what it calls of the framework (startup_probe.py). Megatron-DeepSpeed mixes at most 254 prefixes
itself, so its validation data are two prefixes of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # what the tests start hosts with

from tests.kit.host_runs import LM

PROBE = Path(__file__).with_name("startup_probe.py")
CHECKOUTS = {"lm": "MEGATRON_LM_DIR", "deepspeed": "MEGATRON_DEEPSPEED_DIR"}
SEQ_LENGTH, STEPS, BATCH = 32, 20, 8
COMMON = (
    f"--num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length {SEQ_LENGTH} --max-position-embeddings "
    f"{SEQ_LENGTH} --micro-batch-size 2 --global-batch-size {BATCH} --train-iters {STEPS} --lr 1e-3 "
    "--tokenizer-type NullTokenizer --vocab-size 127 --eval-iters 1 --eval-interval 1000 --log-interval 1 "
    "--no-gradient-accumulation-fusion --save-interval 1000 --num-workers 0"
).split()
EMBEDDED = (
    f"--seq-length {SEQ_LENGTH} --layers 2 --hidden 32 --heads 2 --vocab-size 128 --steps {STEPS} --global-batch "
    f"{BATCH} --micro-batch 2 --num-workers 0 --num-processes 1 --eval-interval 0"
).split()


def write_prefixes(folder: Path, number: int) -> list[str]:
    """Small prefixes of 8 documents, about 20 samples each."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    rng, prefixes = np.random.default_rng(0), []
    for n in range(number):
        prefix = str(folder / f"p{n:05d}_text_document")
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
        for length in rng.integers(60, 110, 8):
            builder.add_document(rng.integers(1, 127, length), [int(length)])
        builder.finalize(f"{prefix}.idx")
        prefixes.append(prefix)
    return prefixes


def _blend(prefixes: list[str], seed: int) -> list[str]:
    weights = np.random.default_rng(seed).dirichlet(np.full(len(prefixes), 2.0))
    return [word for w, prefix in zip(weights, prefixes, strict=True) for word in (f"{max(w, 1e-7):.8f}", prefix)]


def command(framework: str, folder: Path, prefixes: list[str], cache: Path, seed: int) -> list[str]:
    """What the probe runs, without the interpreter and the probe's own words."""
    blend = _blend(prefixes, seed)
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    if framework == "embedded":
        words = folder / "blend.txt"
        words.write_text(" ".join(blend))
        return ["--data-args-path", str(words), "--run-dir", str(run), "--data-cache", str(cache), *EMBEDDED]
    script = Path(os.environ[CHECKOUTS[framework]]) / "pretrain_gpt.py"
    valid = ["0.5", prefixes[0], "0.5", prefixes[1]]
    data = ["--train-data-path", *blend, "--valid-data-path", *valid, "--data-cache-path", str(cache)]
    arguments = [str(script), *COMMON, *data, "--save", str(run)]
    if framework == "lm":
        return [*arguments, *LM, *(["--distributed-backend", "gloo"] if _on_cpu() else [])]
    settings = folder / "deepspeed.json"
    settings.write_text(json.dumps({
        "train_micro_batch_size_per_gpu": 2, "train_batch_size": BATCH, "steps_per_print": 1000,
        "zero_optimization": {"stage": 0},
    }))  # fmt: skip
    arguments += ["--deepspeed", "--deepspeed_config", str(settings), "--zero-stage", "0", "--data-impl", "mmap"]
    arguments += ["--no-pipeline-parallel", *(["--distributed-backend", "gloo"] if _on_cpu() else [])]
    return arguments


def _on_cpu() -> bool:
    return os.environ.get("ADO_CPU", "0") not in ("", "0")


def start(framework: str, arm: str, arguments: list[str], folder: Path) -> dict:
    """One start; the probe's result, or why there is none."""
    python = sys.executable if framework == "embedded" else os.environ.get("MEGATRON_PYTHON", sys.executable)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    out = folder / "result.json"
    out.unlink(missing_ok=True)
    root = str(PROBE.parents[1])
    environment = os.environ | {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "ADO_STARTUP_BEGAN": repr(time.time()), "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore", "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
        "PATH": os.pathsep.join([os.path.dirname(python), os.environ["PATH"]]),
    }  # fmt: skip
    environment |= {"DS_ACCELERATOR": "cpu"} if _on_cpu() and framework != "lm" else {}
    line = [python, str(PROBE), str(out), framework, arm, *arguments]
    done = subprocess.run(
        line, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip
    if not out.is_file():
        last = done.stdout.strip().splitlines()[-3:] or ["nothing was printed"]
        return {"failed": " / ".join(last)[-400:]}
    return json.loads(out.read_text())


def measure(framework: str, prefixes: list[str], folder: Path) -> list[dict]:
    """Every row of one framework and number of prefixes."""
    rows = []
    for arm in ("stock", "ours"):
        cache = folder / f"cache-{framework}-{arm}"
        for state, seed in (("cold", 1), ("warm", 1), ("other", 2)):
            arguments = command(framework, folder, prefixes, cache, seed)
            result = start(framework, arm, arguments, folder)
            rows.append({"framework": framework, "prefixes": len(prefixes), "arm": arm, "cache": state} | result)
            print(line_of(rows[-1]), file=sys.stderr, flush=True)
            if "failed" in result:
                break
        shutil.rmtree(cache, ignore_errors=True)
    return rows


def line_of(row: dict) -> str:
    """A row of the table."""
    head = f"{row['framework']:9} {row['prefixes']:5} {row['arm']:5} {row['cache']:5}"
    if "failed" in row:
        return f"{head} failed: {row['failed']}"
    ours = f" ours {row['ours_wall_s']:6.2f} s ({row['ours_cpu_s']:.2f} CPU)" if row["arm"] == "ours" else " " * 27
    return (
        f"{head} {row['wall_s']:7.2f} s to the first batch ({row['cpu_s']:.2f} CPU),{ours}, "
        f"{row['pss_bytes'] / 1e6:.0f} MB a rank, {row['open_files']} open files, {row['mappings']} mappings"
    )


def main(argv: list[str] | None = None) -> int:
    """Make the prefixes, start every framework over them, print the table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefixes", type=int, nargs="+", default=[100, 1000, 2419])
    parser.add_argument("--frameworks", nargs="+", default=["embedded", "lm", "deepspeed"])
    parser.add_argument("--json", action="store_true", help="with the seconds of every function")
    options = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory(prefix="ado-startup-") as name:
        folder = Path(name)
        prefixes = write_prefixes(folder, max(options.prefixes))
        for framework in options.frameworks:
            if framework in CHECKOUTS and CHECKOUTS[framework] not in os.environ:
                print(f"{framework}: set {CHECKOUTS[framework]} to a checkout", file=sys.stderr)
                continue
            for number in options.prefixes:
                rows += measure(framework, prefixes[:number], folder)
    print(json.dumps(rows) if options.json else "\n".join(map(line_of, rows)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
