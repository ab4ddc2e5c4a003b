"""`ado-megatron simulate RESPONSE.npz`: what each policy would gain on a known response, in a table and a picture."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.option_fields import Parser
from ado_megatron.policy import resolve_target
from ado_megatron.policy.target import FLAG
from ado_megatron.simulate.arms import DEFAULT, Comparison, Setting, compare
from ado_megatron.simulate.response import read_response

_FORMS = "natural, uniform, web=.6,code=.4 (others 0), or a JSON or YAML file of domain: weight"
NOTE = (
    "Gains are nats of target loss at the end, over the prior held fixed; compute is what that is worth of the run by "
    "the slope of its loss. The response is a fit to other runs: it says what to try, not what will happen."
)


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    p = Parser(prog="ado-megatron simulate", description="What each policy would gain on a known response.")
    p.add_argument("response", metavar="RESPONSE.npz", help="log_beta_M, log_epsilon_M, alpha_M, gamma_MxK, natural_K, "
                   "names_K, steps: losses ε + β (Σ γ n)^−α, n in steps × share")  # fmt: skip
    p.add_argument("--prior", default="natural", help=f"weights that the runs start from: {_FORMS} [natural]")
    p.add_argument("--target", help=f"the target: prior, {_FORMS} [what --ado-target says]")
    p.add_argument("--arms", default=DEFAULT, help=f"profiles, or policies by name [{DEFAULT}]")
    p.add_argument("--seeds", type=int, default=3, help="noises, the same for every arm [3]")
    p.add_argument("--steps", type=int, help="length of the runs [that of the file]")
    p.add_argument("--block-size", type=int, default=512, help="samples of a step [512]")
    p.add_argument("--noise", type=float, default=0.04, help="of a domain's loss in a step at equal shares [0.04]")
    p.add_argument("--json", action="store_true", help="print one JSON object and no table")
    p.add_argument("--plot", metavar="FILE", help="the picture [RESPONSE.simulated.png in this directory]")
    p.add_argument("--no-plot", action="store_true", help="no picture")
    AdoConfig.add_arguments(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0; raises UserError for a bad file, weight, arm or option."""
    options = parser().parse_args(argv)
    config = AdoConfig.from_args(options)
    setting = _setting(options, config)
    arms = list(dict.fromkeys(filter(None, (name.strip() for name in options.arms.split(",")))))
    if not arms or options.seeds < 1:
        raise UserError("simulate needs at least one arm in --arms and one seed in --seeds")
    draw = None if options.no_plot else _drawing()
    result = compare(setting, arms, config, options.seeds, _progress)
    print(json.dumps(as_json(result)) if options.json else text(result))
    if draw is not None:
        path = Path(options.plot or f"{setting.file.path.stem}.simulated.png").expanduser()
        try:
            draw(result, path)
        except OSError as error:
            raise UserError(f"--plot {path} cannot be written: {error.strerror or error}") from error
        print(f"picture: {path.resolve()}", file=sys.stderr)
    return 0


def _drawing() -> Callable[[Comparison, Path], None]:
    """What draws the picture; only it needs matplotlib."""
    try:
        from ado_megatron.simulate.figure import draw
    except ImportError as error:
        raise UserError("the picture needs matplotlib: pip install 'ado-megatron[report]', or --no-plot") from error
    return draw


def _progress(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


def _setting(options: argparse.Namespace, config: AdoConfig) -> Setting:
    file = read_response(options.response)
    for name, least in (("steps", 1), ("block_size", 1), ("noise", 0.0)):
        value = getattr(options, name)
        if value is not None and not least <= value < np.inf:
            raise UserError(f"--{name.replace('_', '-')} {value} must be a number from {least} up")
    ones_K = np.ones(len(file.names_K))
    if options.prior == "prior":
        raise UserError(f"--prior prior says nothing; give {_FORMS}")
    prior_K = _weights("--prior", options.prior, file.names_K, ones_K, file.natural_K)
    flag, text = ("--target", options.target) if options.target is not None else (FLAG, config.target)
    target_K = _weights(flag, text, file.names_K, prior_K, file.natural_K)
    return Setting(file, prior_K, target_K, options.steps or file.steps, options.block_size, options.noise)


def _weights(flag: str, text: str, names_K: Sequence[str], prior_K: np.ndarray, natural_K: np.ndarray) -> np.ndarray:
    """Weights in the forms that a target has; an error names the flag that they were given by."""
    try:
        return resolve_target(text, names_K, prior_K, natural_K)
    except UserError as error:
        raise UserError(str(error).replace(FLAG, flag)) from error


def as_json(result: Comparison) -> dict[str, Any]:
    """The comparison as plain values; losses and gains in nats."""
    setting = result.setting
    arms = [
        {"name": arm.name, "gain": float(arm.gain_R.mean()), "gain_R": arm.gain_R.tolist(),
         "regret": float(arm.regret_R.mean()), "compute_percent": result.compute_percent(float(arm.gain_R.mean())),
         "share_K": arm.share_K.tolist(), "loss_K": arm.first.final_loss_K.tolist(),
         "transfer_K": [value if np.isfinite(value) else str(value) for value in arm.first.transfer_K.tolist()]}
        for arm in result.arms
    ]  # fmt: skip
    return {
        "response": str(setting.file.path), "names_K": list(setting.file.names_K), "steps": setting.steps,
        "block_size": setting.block_size, "noise": setting.noise, "prior_K": setting.prior_K.tolist(),
        "target_K": setting.target_K.tolist(), "prior_loss": result.prior_loss, "best_loss": result.best_loss,
        "best_K": result.best_K.tolist(), "arms": arms,
    }  # fmt: skip


def text(result: Comparison) -> str:
    """The table: a row an arm, gains and regret, and the mixture that was drawn."""
    setting = result.setting
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    for n, heading in enumerate(["arm", "gain", "least", "most", "compute", "regret", *setting.file.names_K]):
        grid.add_column(Text(heading), justify="right" if n else "left", no_wrap=True)

    def row(name: str, gains: Sequence[float], regret: float, share_K: np.ndarray) -> None:
        gain = float(np.mean(gains))
        cells = [name, f"{gain:+.4f}", f"{min(gains):+.4f}", f"{max(gains):+.4f}",
                 f"{result.compute_percent(gain):+.1f} %", f"{regret:.4f}"]  # fmt: skip
        grid.add_row(*map(Text, cells + [f"{share:.1%}" for share in share_K]))

    best_gain = result.prior_loss - result.best_loss
    row("prior", [0.0], best_gain, setting.prior_K)
    row("best fixed mixture", [best_gain], 0.0, result.best_K)
    for arm in result.arms:
        row(arm.name, arm.gain_R.tolist(), float(arm.regret_R.mean()), arm.share_K)
    grid.add_row(*map(Text, ["target", "", "", "", "", "", *[f"{share:.1%}" for share in setting.target_K]]))
    console = Console(file=io.StringIO(), width=1 << 16, color_system=None)
    with console.capture() as captured:
        console.print(grid)
    table = "\n".join(line.rstrip() for line in captured.get().splitlines())
    head = (
        f"{setting.file.path.name}: {setting.steps:,} steps of {setting.block_size:,} samples, target loss of "
        f"the prior {result.prior_loss:.4f} nats"
    )
    return f"{head}\n\n{table}\n\n{NOTE}"
