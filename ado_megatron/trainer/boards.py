"""TensorBoard, W&B and MLflow of a run of `ado-megatron pretrain`, on rank zero. Names: measure/board_names.py."""

from __future__ import annotations

import dataclasses
import importlib.util
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.files import atomic_write
from ado_megatron.measure.boards import Boards, Write
from ado_megatron.measure.prometheus import text_file
from ado_megatron.trainer.mlflow_board import MlflowBoard
from ado_megatron.trainer.options import TrainerOptions

TENSORBOARD, WANDB, MLFLOW = "TensorBoard", "W&B", "MLflow"


def check_boards(options: TrainerOptions) -> None:
    """UserError, before anything is started, for a board that is asked for and is not installed."""
    wanted = {"wandb": options.wandb_project, "mlflow": options.mlflow_experiment}
    for (package, given), flag in zip(wanted.items(), ("--wandb-project", "--mlflow-experiment"), strict=True):
        if given and importlib.util.find_spec(package) is None:
            raise UserError(
                f"{flag} needs the package {package}; `pip install {package}`, or `pip install ado-megatron[{package}]`"
            )


class RunBoards:
    """The boards that the options ask for, from `first_step` on. What fails in them is said once and stops no run."""

    def __init__(self, options: TrainerOptions, config: AdoConfig, first_step: int) -> None:
        self._boards = Boards()
        self._writes: dict[str, Write] = {}
        self._closes: dict[str, Callable[[], object]] = {}
        if options.tensorboard:
            self._boards.attempt(TENSORBOARD, lambda: self._open_tensorboard(options, first_step))
        if options.wandb_project:
            self._boards.attempt(WANDB, lambda: self._open_wandb(options, config, first_step))
        if options.mlflow_experiment:
            self._boards.attempt(MLFLOW, lambda: self._open_mlflow(options, config, first_step))
        if config.prometheus is not None:
            self._writes["Prometheus"] = text_file(config.prometheus, Path(options.run_dir).resolve().name).write

    def _open_tensorboard(self, options: TrainerOptions, first_step: int) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        _quiet_writer_threads()
        folder = Path(options.run_dir) / "tensorboard"
        writer = SummaryWriter(str(folder), purge_step=first_step + 1)  # a step has the number of steps done with it

        def write(scalars: Mapping[str, float], step: int) -> None:
            try:
                for name, value in scalars.items():
                    writer.add_scalar(name, value, step)
            except Exception:  # its writer does not recover from a failed write
                del self._writes[TENSORBOARD], self._closes[TENSORBOARD]
                raise

        self._writes[TENSORBOARD], self._closes[TENSORBOARD] = write, writer.close

    def _open_wandb(self, options: TrainerOptions, config: AdoConfig, first_step: int) -> None:
        """A resumed run goes on under the id that its first start was given."""
        import wandb

        folder = Path(options.run_dir)
        id_file = folder / "wandb" / "ado-run-id"
        known = id_file.read_text() if first_step and id_file.exists() else None
        run = wandb.init(
            project=options.wandb_project, name=options.wandb_name or folder.resolve().name, dir=str(folder),
            id=known, resume="allow" if known else None,
            config=_facts(options, config),
            settings=wandb.Settings(console="off"),  # stdout and stderr stay those of the launcher
        )  # fmt: skip
        atomic_write(id_file, run.id.encode())
        self._writes[WANDB], self._closes[WANDB] = lambda scalars, step: run.log(dict(scalars), step=step), run.finish

    def _open_mlflow(self, options: TrainerOptions, config: AdoConfig, first_step: int) -> None:
        board = MlflowBoard(
            str(options.mlflow_experiment), Path(options.run_dir), first_step > 0, _facts(options, config)
        )
        self._writes[MLFLOW], self._closes[MLFLOW] = board.write, board.close

    @property
    def any(self) -> bool:
        """True if something is to be written to."""
        return bool(self._writes)

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Scalars by name, of `step` steps done."""
        self._boards.write(dict(self._writes), scalars, step)

    def close(self) -> None:
        """Write out what is waiting."""
        for name, close in self._closes.items():
            self._boards.attempt(name, close, now=True)


def _facts(options: TrainerOptions, config: AdoConfig) -> dict[str, dict[str, Any]]:
    return {"pretrain": dataclasses.asdict(options), "ado": config.to_dict()}


def _quiet_writer_threads() -> None:
    """TensorBoard's thread prints a traceback when a write fails, and tells the caller, which is enough."""
    before = threading.excepthook

    def hook(args: Any) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread":
            before(args)

    threading.excepthook = hook
