"""What each policy gains over its prior: over many simulated runs (part a), or in trained models (part b).

    python benchmarks/quality.py SWARMS --out DIR                        every cell, resumable: one file a run
    python benchmarks/quality.py SWARMS --out DIR --half tune --arm "ado:policy=plan,transfer=estimate,probe=10"
    python benchmarks/quality.py SWARMS --out DIR --table --plot quality.png      what there is, nothing is run
    python benchmarks/quality.py --trained --out DIR      part b, on a CPU; --gpu: larger models (quality_trained.py)

Part a.

A cell is a response, a target (natural or uniform), a prior (natural or uniform) and a schedule of the learning rate.
All arms of a cell see the same noise for the same seed. The gain of a run is the target loss of its prior, held fixed,
less its own, at the end, in nats; that of an arm in a cell is the mean over seeds. The half `tune` (models of 1M and
70M parameters) is there to choose options on, the half `test` (60M, 160M and 305M) to report on.

Schedules. A decaying rate takes a part of the reducible loss off that returns with the rate: the observed reducible
loss is (L − ε)(1 + DROP (η(t) − η(1))), η from 1 down to a tenth, the same factor for every domain. DROP is assumed, of
the size that a cool-down takes off in Hägele et al. (arXiv 2405.18392). At the end the factor is 1, so what is gained
does not depend on it but through what was fitted.

A run of 30,000 steps is laid out as --blocks blocks, each of them several steps: noise, and options that count steps,
are scaled to it.

Legend: K domains.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import platform
import re
import sys
import time
import zlib
from pathlib import Path

import numpy as np
from quality_responses import STEPS, Source, sources
from quality_table import draw, finish, table

from ado_megatron.config import AdoConfig
from ado_megatron.files import atomic_write
from ado_megatron.replay.command import parse_variant
from ado_megatron.simulate import best_static, simulate

DROP = 0.06
BLOCK = 512
FIXED = {"best static": "@best", "static at the target": "@target"}  # nothing is fitted: their losses are known
ARMS = FIXED | {
    "static": "ado:policy=static",
    "released": "released",
    "paper": "paper",
    "ado": "ado:policy=ado",
    "ado, per log n": "ado:policy=ado,speed_unit=log",
    "ado, per log n, s estimated": "ado:policy=ado,speed_unit=log,transfer=estimate",
    "plan": "ado:policy=plan,transfer=estimate",
    "plan, probing": "ado:policy=plan,transfer=estimate,probe=20,probe_length=2000",
    "plan, no pull": "ado:policy=plan,transfer=estimate,plan_kl=0",
    "plan, no gate": "ado:policy=plan,transfer=estimate,plan_gate=0",
    "plan, no bound on change": "ado:policy=plan,transfer=estimate,plan_max_change=1",
    "plan, own n": "ado:policy=plan,transfer=own",
}
IN_STEPS = ("start_step", "ignore_steps", "refit_interval", "probe_length", "smoothing_window")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One setting in which all arms run."""

    source: str
    target: str
    prior: str
    schedule: str

    @property
    def half(self) -> str:
        """`tune` or `test`, by the size of the model."""
        return "tune" if re.search(r"_(1M|70M)", self.source) else "test"

    @property
    def label(self) -> str:
        """Its name in files and tables."""
        return f"{self.source}.{self.target}.{self.prior}.{self.schedule}"


def rate(schedule: str, t: float) -> float:
    """The learning rate at t of the run (0 to 1), from 1 to a tenth."""
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - 0.9 * t
    if schedule == "cosine":
        return 0.1 + 0.45 * (1.0 + np.cos(np.pi * t))
    return min(1.0, 0.1 + 0.9 * (1.0 - t) / 0.2)  # wsd: the last fifth decays


class Scheduled:
    """A response whose reducible part bears the learning rate."""

    def __init__(self, response, samples: float, schedule: str):
        self._response, self._samples, self._schedule = response, samples, schedule
        self._floor_M = np.exp(response.log_epsilon_M)

    def __call__(self, n_K):
        """loss_K after n_K samples."""
        t = min(float(np.sum(n_K)) / self._samples, 1.0)
        factor = 1.0 + DROP * (rate(self._schedule, t) - rate(self._schedule, 1.0))
        return self._floor_M + (self._response(n_K) - self._floor_M) * factor


def cells(names, args) -> list[Cell]:
    """The cells that the options ask for, in an order in which any first part is a fair sample of them."""
    parts = [[n for n in names if re.search(args.responses, n)], *([x for x in text.split(",")] for text in
             (args.targets, args.priors, args.schedules))]  # fmt: skip
    found = [Cell(*values) for values in itertools.product(*parts)]
    found = [cell for cell in found if args.half in ("both", cell.half)]
    return sorted(found, key=lambda cell: zlib.crc32(cell.label.encode()))[: args.most]


def config_of(text: str, args) -> AdoConfig:
    """The options of an arm, those in steps scaled to blocks of STEPS / blocks steps. The stride stays: it decides only
    how many points a fit has."""
    _, config = parse_variant(text, {"refit_interval": args.interval})
    config = config.resolved()
    scale = args.blocks / STEPS
    scaled = {name: max(round(getattr(config, name) * scale), 1) for name in IN_STEPS}
    scaled["smoothing_window"] = max(scaled["smoothing_window"] | 1, config.smoothing_order + 2)
    return dataclasses.replace(config, **scaled, fit_lag=max(round(50 * scale), 1))


def shares(source: Source, what: str) -> np.ndarray:
    """natural or uniform weights."""
    num = len(source.natural_K)
    return source.natural_K if what == "natural" else np.full(num, 1.0 / num)


def run(cell: Cell, source: Source, text: str, seed: int, args) -> dict:
    """One run, as plain values."""
    samples = args.blocks * BLOCK
    response = dataclasses.replace(source.response, unit=samples / STEPS)
    target_K, prior_K = shares(source, cell.target), shares(source, cell.prior)
    prior_loss = float(target_K @ response(prior_K * samples))
    best_K, best_loss = best_static(response, target_K, samples, prior_K)
    began, drawn_K, transfer_K = time.process_time(), samples * {"@best": best_K}.get(text, target_K), []
    if text not in FIXED.values():
        result = simulate(
            Scheduled(response, samples, cell.schedule), prior_K, target_K=target_K, config=config_of(text, args),
            steps=args.blocks, block_size=BLOCK, noise=args.noise * (args.blocks / STEPS) ** 0.5, seed=seed,
        )  # fmt: skip
        drawn_K, transfer_K = result.counts_K.astype(np.float64), result.transfer_K
    loss_K = np.asarray(response(drawn_K))
    return {
        "cell": dataclasses.asdict(cell), "half": cell.half, "arm": text, "seed": seed, "blocks": args.blocks,
        "noise": args.noise, "gain": prior_loss - float(target_K @ loss_K), "best_gain": prior_loss - best_loss,
        "share_K": (drawn_K / samples).tolist(), "transfer_K": [str(s) for s in transfer_K],
        "worst_domain": float((loss_K - response(prior_K * samples)).max()), "cpu": time.process_time() - began,
        "machine": platform.machine(), "numpy": np.__version__,
    }  # fmt: skip


def path_of(folder: Path, cell: Cell, text: str, seed: int, args) -> Path:
    """Where the result of a run lies: named by all that decides it."""
    options = text if text in FIXED.values() else config_of(text, args).to_dict()
    facts = json.dumps([options, args.blocks, args.noise, DROP], sort_keys=True)
    digest = hashlib.sha256(facts.encode()).hexdigest()[:10]
    return folder / "runs" / f"{cell.label}.{digest}.{seed}.json"


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("swarms", type=Path, help="folder of response_*.npz, pile_mixtures.npz and pile17_final.npz")
    p.add_argument("--out", type=Path, required=True, help="folder of the results; what is there is not run again")
    p.add_argument("--arm", action="append", metavar="NAME|PROFILE:option=value,…", help=f"of {', '.join(ARMS)} [all]")
    p.add_argument("--half", choices=("both", "tune", "test"), default="both")
    p.add_argument("--responses", default="", help="a pattern of their names [all]")
    p.add_argument("--targets", default="natural,uniform")
    p.add_argument("--priors", default="natural,uniform")
    p.add_argument("--schedules", default="cosine,linear,wsd", help="or constant, too")
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("--most", type=int, help="cells, a fair sample of all")
    p.add_argument("--blocks", type=int, default=3000, help="of a run of 30,000 steps [3000]")
    p.add_argument("--interval", type=int, default=2000, help="steps between two refits, for every arm [2000]")
    p.add_argument("--noise", type=float, default=0.04, help="as of ado-megatron simulate, for a step [0.04]")
    p.add_argument("--seconds", type=float, default=np.inf, help="stop after so many, and say what is left")
    p.add_argument("--table", action="store_true", help="run nothing")
    p.add_argument("--json", action="store_true", help="the table as one JSON object")
    p.add_argument("--plot", type=Path, help="the picture")
    return p


def slope_of(cell: Cell, source: Source) -> float:
    """−dL/dlog N of the prior at the end, nats: what a factor e of compute is worth there."""
    target_K, prior_K, step = shares(source, cell.target), shares(source, cell.prior), 1e-3
    less, more = (target_K @ source.response(prior_K * STEPS * factor) for factor in (1 - step, 1 + step))
    return float(less - more) / (2 * step)


def main(argv=None) -> int:
    """Run what is missing, then print the table of what there is. Exit code 1: something is left to run."""
    argv = sys.argv[1:] if argv is None else argv
    if {"--trained", "--gpu"} & set(argv):
        import quality_trained  # needs torch only for a run

        return quality_trained.main(argv)
    args = parser().parse_args(argv)
    found = sources(args.swarms, args.out / "responses", args.responses)
    arms = {name: ARMS.get(name, name) for name in args.arm or ARMS}
    began, left, rows = time.monotonic(), 0, []
    (args.out / "runs").mkdir(parents=True, exist_ok=True)
    for cell in cells(found, args):
        for seed, (name, text) in itertools.product(range(args.seeds), arms.items()):
            path = path_of(args.out, cell, text, seed, args)
            if not path.exists():
                if args.table or time.monotonic() - began > args.seconds:
                    left += 1
                    continue
                atomic_write(path, json.dumps(run(cell, found[cell.source], text, seed, args)).encode())
            rows.append(json.loads(path.read_text()) | {"name": name, "slope": slope_of(cell, found[cell.source])})
    return finish(rows, left, args, table, draw)


if __name__ == "__main__":
    sys.exit(main())
