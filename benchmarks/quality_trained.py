"""What each policy gains over its prior in trained models (part b): the embedded trainer on two corpora.

    python benchmarks/quality.py --trained --out DIR              all runs, resumable: one file a run
    python benchmarks/quality.py --trained --out DIR --table --plot quality_trained.png
    python benchmarks/quality.py --gpu --out DIR                  15M and 124M parameters in bfloat16, on a GPU

Corpora: `demo`, eight domains of the install (ado-megatron prepare --demo), and `debian`, fourteen out of Debian's text
packages (quality_corpus.py). Prior and target are the natural shares. All arms of a seed share initial weights and the
order inside each domain. The arms `… mean` hold, from the first step to the last, the mean mixture that the arm of that
name had drawn in the end with the same seed. The loss is that of the held-out text, weighted by the natural shares; the
mean over domains (the target `uniform`) stands beside it.

One process trains at a time, a child of this one; imports are made once. Intervals of steps are scaled to the length of
a run, the same for all arms.

Legend: K domains.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import shutil
import socket
import sys
import time
from pathlib import Path

import numpy as np
from quality_corpus import make as make_debian
from quality_table import finish
from quality_trained_table import draw, table

from ado_megatron.cli import main as ado_megatron
from ado_megatron.files import atomic_write
from ado_megatron.prepare.output import MANIFEST
from ado_megatron.report.read import read_run

PRELOAD = "ado_megatron.trainer.loop"
ARMS = {
    "static": "--ado-policy static",
    "ado": "--ado-profile ado --ado-policy ado",
    "plan, probing": "--ado-policy plan --ado-transfer estimate --ado-probe 20",
    "plan": "--ado-policy plan --ado-transfer estimate",
    "released": "--ado-profile released",
    "temperature 2": "--ado-policy static --ado-prior temperature --ado-temperature 2",
    "paper": "--ado-profile paper",
}
ONLINE = ("ado", "plan, probing", "released", "paper", "plan")
MEAN = " mean"  # of the arms that hold an online arm's mean mixture


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and how it is trained: flags of `ado-megatron pretrain`."""

    name: str
    steps: int
    words: str
    corpus_scale: float = 1.0  # of the Debian corpus


CPU = (
    Size("0.2M", 600, "--layers 2 --hidden 64 --heads 4 --seq-length 64 --micro-batch 16 --global-batch 16 "
         "--lr 2.5e-3 --min-lr 1e-4 --lr-warmup-steps 50 --eval-samples 128"),
)  # fmt: skip
GPU = (
    Size("15M", 6000, "--layers 6 --hidden 448 --heads 7 --seq-length 256 --micro-batch 64 --global-batch 64 --bf16 "
         "--lr 1e-3 --lr-warmup-steps 200 --eval-samples 192 --num-workers 4", 12.0),
    Size("124M", 12000, "--layers 12 --hidden 896 --heads 14 --seq-length 512 --micro-batch 64 --global-batch 128 "
         "--bf16 --lr 6e-4 --lr-warmup-steps 400 --eval-samples 192 --num-workers 4", 12.0),
)  # fmt: skip


def schedule(steps: int) -> str:
    """When laws are fitted, in a run of so many steps."""
    tenth = steps // 10
    return (f"--steps {steps} --eval-interval {steps} --ado-start-step {2 * tenth} --ado-ignore-steps {tenth // 2} "
            f"--ado-refit-interval {tenth * 3 // 2} --ado-fit-lag {max(tenth // 7, 2)} "
            f"--ado-probe-length {tenth * 3 // 2} "
            "--ado-log-interval 10 --no-tensorboard --no-progress")  # fmt: skip


def train(words: list[str], run_dir: Path) -> None:
    """One run, in a child process: its loss by domain and what it drew, in result.json of its directory."""
    with open(run_dir / "log", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    from ado_megatron.trainer import loop, parallel
    from ado_megatron.trainer.options import parse

    result = loop.train(*parse([*words, "--run-dir", str(run_dir)]))
    parallel.tear_down()
    run = read_run(run_dir)
    found = {"loss_K": result.valid_K.tolist(), "drawn_K": run.counts_SxK.sum(0).tolist(), "names_K": list(run.names_K),
             "cpu": time.process_time()}
    atomic_write(run_dir / "result.json", json.dumps(found).encode())


def blend_of(data: Path, weights_K=None) -> list[str]:
    """--data-path and what goes with it; weights_K: in place of the natural ones."""
    domains = json.loads((data / MANIFEST).read_text())["domains"]
    natural = [domain["tokens"] for domain in domains]
    weights = natural if weights_K is None else weights_K
    trained = [word for domain, w in zip(domains, weights, strict=True)
               for word in (str(w), f"{data}/{domain['name']}_text_document")]  # fmt: skip
    held = [f"{data}/{domain['name']}_valid_text_document" for domain in domains]
    (tokenizer,) = data.glob("tokenizer.*")
    return ["--data-path", *trained, "--valid-data-path", *held, "--tokenizer", str(tokenizer)]


def natural_K(data: Path) -> np.ndarray:
    """Token shares."""
    tokens_K = np.array([domain["tokens"] for domain in json.loads((data / MANIFEST).read_text())["domains"]], float)
    return tokens_K / tokens_K.sum()


class Runs:
    """Results in a folder, one file a run, and the runs that are missing."""

    def __init__(self, args: argparse.Namespace, size: Size):
        self.args, self.size = args, size
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([PRELOAD])

    def path(self, corpus: str, arm: str, seed: int) -> Path:
        """Where a result lies."""
        name = f"{self.size.name}.{corpus}.{arm.replace(', ', '_').replace(' ', '_')}.{seed}.json"
        return self.args.out / "trained" / name

    def words(self, corpus: str, data: Path, arm: str, seed: int) -> list[str]:
        """The command line of a run."""
        flags, weights_K = ARMS.get(arm, "--ado-policy static"), None
        if arm.endswith(MEAN):
            drawn = json.loads(self.path(corpus, arm.removesuffix(MEAN), seed).read_text())["drawn_K"]
            weights_K = np.maximum(np.array(drawn, float), 1e-3)
        text = f"{self.size.words} {schedule(self.size.steps)} {flags} --seed {seed} --ado-seed {seed} {self.args.more}"
        cache = self.args.out / f"cache_{corpus}_{seed}"
        return [*blend_of(data, weights_K), *text.split(), "--data-cache", str(cache)]

    def run(self, corpus: str, data: Path, arm: str, seed: int) -> dict:
        """The result of a run, which is made unless it is there. RuntimeError when it fails: its log is kept."""
        path = self.path(corpus, arm, seed)
        if path.exists():
            return json.loads(path.read_text())
        run_dir = self.args.out / f"now_{corpus}_{seed}"
        shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.mkdir(parents=True)
        began = time.monotonic()
        process = self.context.Process(target=train, args=(self.words(corpus, data, arm, seed), run_dir))
        process.start()
        process.join()
        if not (run_dir / "result.json").exists():
            raise RuntimeError(f"{path.name} failed with {process.exitcode}; see {run_dir / 'log'}")
        result = json.loads((run_dir / "result.json").read_text())
        loss_K, share_K = np.array(result["loss_K"]), natural_K(data)
        result |= {
            "corpus": corpus, "size": self.size.name, "arm": arm, "seed": seed, "natural_K": share_K.tolist(),
            "natural": float(share_K @ loss_K), "uniform": float(loss_K.mean()), "wall": time.monotonic() - began,
            "notes": [line for line in (run_dir / "log").read_text().splitlines() if "plan:" in line],
        }  # fmt: skip
        atomic_write(path, json.dumps(result).encode())
        return result


def corpora(args: argparse.Namespace, size: Size) -> dict[str, Path]:
    """The prepared directories by name."""
    demo = args.out / "demo"
    if ado_megatron(["prepare", "--demo", "--vocab-size", "512", "--out", str(demo), "--reuse"]):
        raise SystemExit(2)
    return {"demo": demo, "debian": make_debian(args.out / f"debian{size.corpus_scale:g}", size.corpus_scale)}


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--trained", action="store_true", help="this part of the evidence, on a CPU")
    p.add_argument("--gpu", action="store_true", help="this part, with models of 15M and 124M parameters in bfloat16")
    p.add_argument("--out", type=Path, required=True, help="folder of corpora and results; what is there stays")
    p.add_argument("--arms", help=f"of {'; '.join(ARMS)}; … mean, separated by ; [all]")
    p.add_argument("--corpora", default="demo,debian")
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--first-seed", type=int, default=1, help="so that commands side by side take seeds of their own")
    p.add_argument("--seconds", type=float, default=np.inf, help="start no run after so many")
    p.add_argument("--more", default="", help="more flags of ado-megatron pretrain, for every arm")
    p.add_argument("--table", action="store_true", help="run nothing")
    p.add_argument("--json", action="store_true", help="the table as one JSON object")
    p.add_argument("--plot", type=Path, help="the picture")
    return p


def main(argv=None) -> int:
    """Run what is missing, seed by seed, then print the table. Exit code 1: something is left to run."""
    args = parser().parse_args(argv)
    args.out = args.out.resolve()
    (args.out / "trained").mkdir(parents=True, exist_ok=True)
    arms = args.arms.split(";") if args.arms else [*ARMS, *(arm + MEAN for arm in ONLINE)]
    began, left, rows = time.monotonic(), 0, []
    for size in GPU if args.gpu else CPU:
        runs, data = Runs(args, size), {} if args.table else corpora(args, size)
        for seed in range(args.first_seed, args.seeds + 1):
            for corpus in args.corpora.split(","):
                for arm in arms:
                    path = runs.path(corpus, arm, seed)
                    if not path.exists() and (args.table or time.monotonic() - began > args.seconds):
                        left += 1
                        continue
                    row = json.loads(path.read_text()) if path.exists() else runs.run(corpus, data[corpus], arm, seed)
                    rows.append(row)
                    if not args.table:
                        print(f"{row['size']} {corpus} {arm} {seed}: {row['natural']:.4f} {row['uniform']:.4f} "
                              f"{row['wall']:.0f} s", file=sys.stderr, flush=True)  # fmt: skip
    return finish(rows, left, args, table, draw)


if __name__ == "__main__":
    sys.exit(main())
