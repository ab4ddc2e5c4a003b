"""MLflow of a run of `ado-megatron pretrain`: where MLFLOW_TRACKING_URI says, from a thread of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from ado_megatron.files import atomic_write
from ado_megatron.measure.board_names import mlflow_name

_MOST = 64  # steps that may wait for the server
_LAST_SECONDS = 30.0  # that a run waits for them at its end
_RUN_ID = "mlflow-run-id"  # file in the directory of the run


class MlflowBoard:
    """One MLflow run. Its client repeats a request for minutes before it fails, so the training never waits for one.

    A call raises what an earlier write met with; what it was to write itself is then lost to the board.
    """

    def __init__(self, experiment: str, run_dir: Path, resumed: bool, facts: Mapping[str, Mapping[str, Any]]) -> None:
        """facts: options by group, kept as parameters. A resumed run goes on under the id of its first start."""
        import mlflow

        self._mlflow, self._experiment, self._run_dir, self._facts = mlflow, experiment, run_dir, facts
        id_file = run_dir / _RUN_ID
        self._run_id = id_file.read_text() if resumed and id_file.exists() else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlflow")  # a run belongs to the thread that began it
        self._pending: deque[Future[object]] = deque()
        self._started = False

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Scalars by name, of `step` steps done."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()
        if len(self._pending) >= _MOST:
            raise TimeoutError(f"the server is more than {_MOST} writes behind")
        values = {mlflow_name(name): value for name, value in scalars.items()}
        self._pending.append(self._thread.submit(self._send, lambda: self._mlflow.log_metrics(values, step=step)))

    def close(self) -> None:
        """Write out what is waiting, for a while, and end the run. Raises as `write` does."""
        self._pending.append(self._thread.submit(self._end))
        done, late = wait(self._pending, timeout=_LAST_SECONDS)
        self._thread.shutdown(wait=False, cancel_futures=True)
        for future in done:
            future.result()
        if late:
            raise TimeoutError(f"{len(late)} writes did not arrive in {_LAST_SECONDS:.0f} s")

    def _send(self, action: Callable[[], object]) -> None:
        if not self._started:
            self._start()
        action()

    def _end(self) -> None:
        if self._started:
            self._mlflow.end_run()

    def _start(self) -> None:
        self._mlflow.set_experiment(self._experiment)
        run = self._mlflow.start_run(run_id=self._run_id, run_name=self._run_dir.resolve().name)
        self._started = True
        if self._run_id is None:  # MLflow lets nobody change a parameter
            self._run_id = run.info.run_id
            atomic_write(self._run_dir / _RUN_ID, run.info.run_id.encode())
            for group, values in self._facts.items():
                self._mlflow.log_params({f"{group}.{name}": str(value)[:500] for name, value in values.items()})
