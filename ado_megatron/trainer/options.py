"""Options of the embedded trainer: documented once, checked on construction, the command line made from them."""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from ado_megatron.arguments import Parser
from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError


def _option(
    default: Any, help: str, *, kind: type | None = None, low=None, above=None, high=None, choices=None, nargs=None
):
    kind = type(default) if kind is None else kind
    metadata = dict(help=help, kind=kind, low=low, above=above, high=high, choices=choices, nargs=nargs)
    return field(default=default, metadata=metadata)


# What may differ between a run and its continuation: none of it decides a weight, a sample or a loss.
FREE_ON_RESUME = frozenset(
    "num_workers micro_batch save_interval exit_interval eval_interval eval_samples run_dir resume num_processes "
    "master_port tensorboard progress keep recompute data_cache".split()
)


@dataclass(frozen=True)
class TrainerOptions:
    """Options of `ado-megatron pretrain`. Raises UserError with the flag's name for a value outside its range."""

    # fmt: off
    run_dir: str = _option("", "directory of the run: checkpoints, ado/metrics.jsonl, TensorBoard")
    resume: bool = _option(False,
        "continue from the last complete checkpoint of the run directory; starts from zero if there is none yet")
    data: str | None = _option(None,
        "directory made by `ado-megatron prepare`: blend, validation blend, tokenizer", kind=str)
    data_path: tuple[str, ...] | None = _option(None,
        "weights and prefixes, `w1 p1 w2 p2 …`, or prefixes alone", kind=str, nargs="+")
    data_args_path: str | None = _option(None, "file that holds what --data-path would", kind=str)
    valid_data_path: tuple[str, ...] | None = _option(None,
        "validation prefixes, one for each train prefix, same order (weights are ignored)", kind=str, nargs="+")
    valid_data_args_path: str | None = _option(None, "file that holds what --valid-data-path would", kind=str)
    data_cache: str | None = _option(None,
        "directory of megatron-core's sample indices; default: cache/ in the run directory", kind=str)
    tokenizer: str | None = _option(None,
        "sentencepiece model or Hugging Face tokenizer.json that made the data; gives the vocabulary size", kind=str)
    vocab_size: int | None = _option(None, "size of the vocabulary; default: the tokenizer's", kind=int, low=2)

    num_processes: int | None = _option(None,
        "processes on this machine; default: one a GPU, on a CPU tp × pp", kind=int, low=1)
    master_port: int | None = _option(None,
        "port of the rendezvous; default: one that is free", kind=int, low=1, high=65535)
    tp: int = _option(1, "tensor-parallel size", low=1)
    pp: int = _option(1, "pipeline stages", low=1)
    zero: int = _option(1, "ZeRO stage; a pipeline allows 0 and 1", choices=(0, 1))
    bf16: bool = _option(False, "bfloat16 weights, fp32 master weights and gradients")

    layers: int = _option(4, "transformer layers", low=1)
    hidden: int = _option(128, "hidden size", low=1)
    heads: int = _option(4, "attention heads", low=1)
    seq_length: int = _option(128, "tokens of a sample", low=1)
    dropout: float = _option(0.0, "dropout of attention and hidden states", low=0.0, high=0.99)
    recompute: bool = _option(False, "recompute the activations of each layer in the backward pass")

    steps: int = _option(300, "training steps", low=1)
    micro_batch: int = _option(8, "samples of a micro-batch", low=1)
    global_batch: int = _option(32, "samples of a step; under a ramp, of the last steps", low=1)
    rampup_batch_size: tuple[int, ...] | None = _option(None,
        "START INCREMENT SAMPLES, as in Megatron: the step grows from START by INCREMENT over SAMPLES samples",
        kind=int, nargs=3)
    lr: float = _option(2e-3, "peak learning rate", above=0.0)
    min_lr: float | None = _option(None,
        "last learning rate of a decay; default: a tenth of --lr", kind=float, low=0.0)
    lr_warmup_steps: int = _option(20, "steps of linear warm-up", low=0)
    lr_decay: str = _option("cosine", "decay after the warm-up", choices=("constant", "linear", "cosine"))
    weight_decay: float = _option(0.1, "decoupled weight decay", low=0.0)
    clip: float = _option(1.0, "global gradient norm is clipped to this; 0: not", low=0.0)
    seed: int = _option(1234,
        "seed of initial weights, dropout and sample order inside megatron-core's datasets", low=0)
    num_workers: int = _option(0, "loader processes a rank; 0: the rank loads itself", low=0)

    save_interval: int = _option(0, "steps between checkpoints; 0: one at the end", low=0)
    keep: int = _option(2, "complete checkpoints kept; 0: all", low=0)
    exit_interval: int = _option(0, "save and stop when the step is a multiple of this; 0: run to the end", low=0)
    eval_interval: int = _option(100, "steps between validations; 0: none", low=0)
    eval_samples: int = _option(32, "validation samples of each prefix", low=1)
    tensorboard: bool = _option(True, "write TensorBoard events when torch.utils.tensorboard is installed")
    progress: bool = _option(True, "show a progress bar")
    # fmt: on

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            _check(spec, getattr(self, spec.name))
        self._check_model()
        self._check_data()
        ramp = self.rampup_batch_size
        if ramp is not None and (
            min(ramp) < 1 or ramp[0] > self.global_batch or (self.global_batch - ramp[0]) % ramp[1]
        ):
            raise UserError(
                f"--rampup-batch-size {ramp[0]} {ramp[1]} {ramp[2]} does not reach --global-batch "
                f"{self.global_batch} from {ramp[0]} in whole increments of {ramp[1]}"
            )

    def _check_model(self) -> None:
        if self.hidden % self.heads:
            raise UserError(f"--hidden {self.hidden} is not a multiple of --heads {self.heads}")
        if self.heads % self.tp:
            raise UserError(f"--heads {self.heads} cannot be split over --tp {self.tp}")
        if self.pp > self.layers:
            raise UserError(f"--pp {self.pp} is more than --layers {self.layers}; a stage needs a layer")

    def _check_data(self) -> None:
        if not self.run_dir:
            raise UserError("--run-dir is missing; name a directory for checkpoints and metrics")
        sources = [
            flag
            for flag, value in (
                ("--data", self.data),
                ("--data-path", self.data_path),
                ("--data-args-path", self.data_args_path),
            )
            if value
        ]
        if len(sources) != 1:
            given = " and ".join(sources) if sources else "none of them"
            raise UserError(f"give exactly one of --data, --data-path and --data-args-path; {given} was given")

    def check_world(self, world_size: int) -> int:
        """Data-parallel size in a world of `world_size` processes. Raises UserError when the layout or a batch does
        not divide."""
        if world_size % (self.tp * self.pp):
            raise UserError(
                f"{world_size} processes cannot be split into --tp {self.tp} × --pp {self.pp}; use a multiple of "
                f"{self.tp * self.pp}"
            )
        dp = world_size // (self.tp * self.pp)
        sizes = (
            [self.global_batch] if self.rampup_batch_size is None else [*self.rampup_batch_size[:2], self.global_batch]
        )
        for size in sizes:
            if size % (self.micro_batch * dp):
                raise UserError(
                    f"a step of {size} samples is not a multiple of --micro-batch {self.micro_batch} × {dp} "
                    "data-parallel ranks"
                )
        return dp

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run, by option; JSON-able. Data is identified by its content elsewhere."""
        skip = FREE_ON_RESUME | {
            "data",
            "data_path",
            "data_args_path",
            "valid_data_path",
            "valid_data_args_path",
            "tokenizer",
        }
        values = dataclasses.asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if name not in skip
        }


def _check(spec: dataclasses.Field, value: Any) -> None:
    meta, flag = spec.metadata, "--" + spec.name.replace("_", "-")
    for item in value if isinstance(value, tuple) else (value,):
        if item is None:
            continue
        if isinstance(item, float) and not math.isfinite(item):
            raise UserError(f"{flag} must be finite, not {item}")
        if meta["choices"] is not None and item not in meta["choices"]:
            raise UserError(f"{flag} must be one of {', '.join(map(str, meta['choices']))}, not {item}")
        for limit, wrong, words in (
            ("low", lambda a, b: a < b, "at least"),
            ("above", lambda a, b: a <= b, "above"),
            ("high", lambda a, b: a > b, "at most"),
        ):
            if meta[limit] is not None and wrong(item, meta[limit]):
                raise UserError(f"{flag} must be {words} {meta[limit]}, not {item}")


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="ado-megatron pretrain", allow_abbrev=False,
        description="Pretrain a small GPT of megatron-core layers in a DeepSpeed pipeline on an adaptive data mixture.",
    )  # fmt: skip
    for spec in dataclasses.fields(TrainerOptions):
        meta, flag = spec.metadata, "--" + spec.name.replace("_", "-")
        help = meta["help"] + (f" [{spec.default}]" if spec.default not in (None, "", False) else "")
        if meta["kind"] is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=spec.default, help=help)
        else:
            parser.add_argument(
                flag, type=meta["kind"], nargs=meta["nargs"], choices=None, default=spec.default, help=help
            )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    AdoConfig.add_arguments(parser)
    return parser


def parse(argv: list[str]) -> tuple[TrainerOptions, AdoConfig]:
    """Options of the trainer and of the mixer from a command line. Raises UserError."""
    namespace = make_parser().parse_args(argv)
    values = {spec.name: getattr(namespace, spec.name) for spec in dataclasses.fields(TrainerOptions)}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return TrainerOptions(**values), AdoConfig.from_args(namespace)
