"""Options of the embedded trainer: documented once, checked on construction, the command line made from them."""

from __future__ import annotations

import argparse
import dataclasses
import signal
from dataclasses import dataclass
from typing import Any

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.option_fields import Parser, add_arguments, check_fields, from_args, names, option


@dataclass(frozen=True)
class TrainerOptions:
    """Options of `ado-megatron pretrain`. Raises UserError with the flag's name for a value outside its range."""

    # fmt: off
    run_dir: str = option("", "directory of the run: checkpoints, ado/metrics.jsonl, TensorBoard", resume="free")
    resume: bool | str = option(False,
        "continue from the checkpoint that checkpoints/latest names, and from zero if none was written yet; "
        "--resume=newest-whole looks for the newest checkpoint that is not damaged", kind=bool,
        choices=("newest-whole",), resume="free")
    data: str | None = option(None,
        "directory made by `ado-megatron prepare`: blend, validation blend, tokenizer", kind=str, resume="silent")
    data_path: tuple[str, ...] | None = option(None,
        "weights and prefixes, `w1 p1 w2 p2 …`, or prefixes alone", kind=str, nargs="+", resume="silent")
    data_args_path: str | None = option(None, "file that holds what --data-path would", kind=str, resume="silent")
    valid_data_path: tuple[str, ...] | None = option(None,
        "validation prefixes, one for each train prefix, same order (weights are ignored)", kind=str, nargs="+",
        resume="silent")
    valid_data_args_path: str | None = option(None, "file that holds what --valid-data-path would", kind=str,
        resume="silent")
    data_cache: str | None = option(None,
        "directory of megatron-core's sample indices; default: cache/ in the run directory", kind=str, resume="free")
    tokenizer: str | None = option(None,
        "sentencepiece model or Hugging Face tokenizer.json that made the data; gives the vocabulary size", kind=str,
        resume="silent")
    vocab_size: int | None = option(None, "size of the vocabulary; default: the tokenizer's", kind=int, low=2)

    num_processes: int | None = option(None,
        "processes on this machine; default: one a GPU, on a CPU tp × pp", kind=int, low=1, resume="free")
    master_port: int | None = option(None,
        "port of the rendezvous; default: one that is free", kind=int, low=1, high=65535, resume="free")
    tp: int = option(1, "tensor-parallel size", low=1)
    pp: int = option(1, "pipeline stages", low=1)
    zero: int = option(1, "ZeRO stage; a pipeline allows 0 and 1", choices=(0, 1))
    bf16: bool = option(False, "bfloat16 weights, fp32 master weights and gradients")

    layers: int = option(4, "transformer layers", low=1)
    hidden: int = option(128, "hidden size", low=1)
    heads: int = option(4, "attention heads", low=1)
    seq_length: int = option(128, "tokens of a sample", low=1)
    dropout: float = option(0.0, "dropout of attention and hidden states", low=0.0, high=0.99)
    recompute: bool = option(False, "recompute the activations of each layer in the backward pass", resume="free")

    steps: int = option(300,
        "training steps; a resumed run may have more or fewer (a decay of the learning rate then ends there)", low=1,
        resume="free")
    micro_batch: int = option(8, "samples of a micro-batch", low=1, resume="free")
    global_batch: int = option(32, "samples of a step; under a ramp, of the last steps", low=1)
    rampup_batch_size: tuple[int, ...] | None = option(None,
        "START INCREMENT SAMPLES, as in Megatron: the step grows from START by INCREMENT over SAMPLES samples",
        kind=int, nargs=3)
    lr: float = option(2e-3, "peak learning rate", above=0.0)
    min_lr: float | None = option(None,
        "last learning rate of a decay; default: a tenth of --lr", kind=float, low=0.0)
    lr_warmup_steps: int = option(20, "steps of linear warm-up", low=0)
    lr_decay: str = option("cosine", "decay after the warm-up", choices=("constant", "linear", "cosine"))
    weight_decay: float = option(0.1, "decoupled weight decay", low=0.0)
    clip: float = option(1.0, "global gradient norm is clipped to this; 0: not", low=0.0)
    seed: int = option(1234,
        "seed of initial weights, dropout and sample order inside megatron-core's datasets", low=0)
    num_workers: int = option(0, "loader processes a rank; 0: the rank loads itself", low=0, resume="free")

    save_interval: int = option(0, "steps between checkpoints; 0: one at the end", low=0, resume="free")
    keep: int = option(2, "complete checkpoints kept; 0: all", low=0, resume="free")
    exit_interval: int = option(0, "save and stop when the step is a multiple of this; 0: run to the end", low=0,
        resume="free")
    exit_signal: str | None = option(None,
        "a signal, such as USR1, that ends the run as SIGTERM does: after the step, with a checkpoint", kind=str,
        resume="free")
    eval_interval: int = option(100, "steps between validations; 0: none", low=0, resume="free")
    eval_samples: int = option(32, "validation samples of each prefix", low=1, resume="free")
    tensorboard: bool = option(True, "write TensorBoard events when torch.utils.tensorboard is installed",
        resume="free")
    wandb_project: str | None = option(None,
        "project of Weights & Biases to report to, too; `WANDB_MODE=offline` needs no network", kind=str, resume="free")
    wandb_name: str | None = option(None, "name of the run there; default: that of --run-dir", kind=str,
        resume="free")
    mlflow_experiment: str | None = option(None,
        "experiment of MLflow to report to, too, at the place that MLFLOW_TRACKING_URI names", kind=str, resume="free")
    progress: bool = option(True, "show a progress bar", resume="free")
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(self)
        self._check_model()
        self._check_data()
        if self.exit_signal is not None:
            self.exit_signal_number()
        ramp = self.rampup_batch_size
        if ramp is not None and (
            min(ramp) < 1 or ramp[0] > self.global_batch or (self.global_batch - ramp[0]) % ramp[1]
        ):
            raise UserError(
                f"--rampup-batch-size {ramp[0]} {ramp[1]} {ramp[2]} does not reach --global-batch "
                f"{self.global_batch} from {ramp[0]} in whole increments of {ramp[1]}"
            )

    def exit_signal_number(self) -> int | None:
        """The number of --exit-signal, if there is one. Raises UserError for a name that is no signal to be caught."""
        if self.exit_signal is None:
            return None
        name = "SIG" + self.exit_signal.upper().removeprefix("SIG")
        number = getattr(signal, name, None)
        if not isinstance(number, signal.Signals) or number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD):
            raise UserError(f"--exit-signal {self.exit_signal} is no signal that can be waited for; USR1 and USR2 are")
        return int(number)

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
        values = dataclasses.asdict(self)
        return {
            name: list(values[name]) if isinstance(values[name], tuple) else values[name]
            for name in sorted(names(self, resume="accept"))
        }


def make_parser() -> argparse.ArgumentParser:
    """The parser of `ado-megatron pretrain`; its complaints are UserErrors."""
    parser = Parser(
        prog="ado-megatron pretrain", allow_abbrev=False,
        description="Pretrain a small GPT of megatron-core layers in a DeepSpeed pipeline on an adaptive data mixture.",
    )  # fmt: skip
    add_arguments(parser, TrainerOptions)
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    AdoConfig.add_arguments(parser)
    return parser


def parse(argv: list[str]) -> tuple[TrainerOptions, AdoConfig]:
    """Options of the trainer and of the mixer from a command line. Raises UserError."""
    namespace = make_parser().parse_args(argv)
    return from_args(TrainerOptions, namespace), AdoConfig.from_args(namespace)


def exit_signals(options: TrainerOptions) -> list[int]:
    """The signals that end a run after its step: SIGTERM, SIGINT and the one of --exit-signal."""
    asked = options.exit_signal_number()
    return [int(signal.SIGTERM), int(signal.SIGINT), *([] if asked is None else [asked])]
