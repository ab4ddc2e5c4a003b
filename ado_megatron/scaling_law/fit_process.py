"""Fitting the laws in a process of their own, beside the training.

The training keeps its interpreter lock and its launch queue: the parent only writes one file and starts a child, later
it waits for the child's end. The child imports numpy and scipy, never torch, reads the history, fits, writes the laws.
Its death, or its failure, is a value (`FitOutcome.reason`), never an exception in the training.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ado_megatron.scaling_law.laws import Laws
from ado_megatron.scaling_law.options import LawOptions
from ado_megatron.scaling_law.smoothing import fit_history

_REQUEST, _CONFIG, _RESULT, _ERRORS = "history.npz", "config.json", "laws.npz", "stderr.txt"
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclasses.dataclass(frozen=True)
class FitOutcome:
    """laws: None when the fit failed, and then `reason` says why. seconds: from start to end; waited: of these, how
    long the caller of `result` stood still."""

    laws: Laws | None
    reason: str
    seconds: float
    waited: float


class Fit:
    """One fit under way. history: the arrays of `LossHistory.cut`; they decide the result, timing does not."""

    def __init__(self, history: dict[str, np.ndarray], config: LawOptions):
        self._started = time.monotonic()
        self._directory = Path(tempfile.mkdtemp(prefix="ado-fit-"))
        np.savez(self._directory / _REQUEST, **history)
        (self._directory / _CONFIG).write_text(json.dumps(LawOptions.of(config).to_dict()))
        package_parent = str(Path(__file__).resolve().parents[2])
        environment = dict(os.environ, CUDA_VISIBLE_DEVICES="", **dict.fromkeys(_ONE_THREAD, "1"))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
        with open(self._directory / _ERRORS, "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ado_megatron.scaling_law.fit_process", str(self._directory)],
                stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=environment,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def result(self, deadline: float) -> FitOutcome:
        """Wait at most `deadline` seconds for the end, collect the laws, and clean up. Call once."""
        asked = time.monotonic()
        try:
            status = self._process.wait(timeout=deadline)
            reason = "" if status == 0 else f"its process ended with status {status}{self._last_words()}"
        except subprocess.TimeoutExpired:
            reason = f"it took longer than {deadline:g} s"
        laws = None
        if not reason:
            with np.load(self._directory / _RESULT, allow_pickle=False) as npz:
                laws = Laws.from_arrays({name: npz[name] for name in npz.files})
        self.cancel()
        now = time.monotonic()
        return FitOutcome(laws, reason, now - self._started, now - asked)

    def cancel(self) -> None:
        """Stop the process if it still runs and remove its files."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _last_words(self) -> str:
        lines = (self._directory / _ERRORS).read_text(errors="replace").strip().splitlines()
        return f" ({lines[-1]})" if lines else ""


def main(directory: str) -> None:
    """The child: read the request in `directory`, fit, leave the result there."""
    os.nice(10)  # the training comes first
    folder = Path(directory)
    config = LawOptions.from_dict(json.loads((folder / _CONFIG).read_text()))
    with np.load(folder / _REQUEST, allow_pickle=False) as npz:
        history = {name: npz[name] for name in npz.files}
    np.savez(folder / _RESULT, **fit_history(history, config).to_arrays())


if __name__ == "__main__":
    main(sys.argv[1])
