"""Fitting the laws in a process of their own, beside the training.

The training keeps its interpreter lock and its launch queue: the parent only writes one file and starts a child, later
it waits for the child's end. The child imports numpy and scipy, never torch, reads the history, fits, writes the laws.
Whatever fails, from making the directory to reading the laws, is a value (`FitOutcome.reason`), never an exception in
the training: the laws in force then stay.
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
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ado_megatron.npz import read_npz
from ado_megatron.processes import die_with_parent
from ado_megatron.scaling_law.laws import Laws
from ado_megatron.scaling_law.options import LawOptions
from ado_megatron.scaling_law.smoothing import fit_history

_REQUEST, _OPTIONS, _RESULT, _ERRORS = "history.npy", "options.json", "laws.npz", "stderr.txt"
MORE, MORE_RESULT = "more.npz", "more_result.npz"  # what another program does with the laws, and comes to
PROGRAM = "ado_megatron.scaling_law.fit_process"
_TRANSFER = "given_transfer_K"  # beside the history's arrays
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_swept: set[Path] = set()  # directories from which this process has removed what others left


@dataclasses.dataclass(frozen=True)
class FitOutcome:
    """laws: None when the fit failed, and then `reason` says why. seconds: from start to end; waited: of these, how
    long the caller of `result` stood still."""

    laws: Laws | None
    reason: str
    seconds: float
    waited: float
    more: dict[str, np.ndarray] | None = None  # what the program that used the laws came to, if it did


class Fit:
    """One fit under way. Making it never raises; a fit that could not start says so in its result."""

    def __init__(
        self, history: Mapping[str, np.ndarray], options: LawOptions, transfer_K: ArrayLike | None = None, *,
        directory: Path | None = None, program: str = PROGRAM, more: Mapping[str, np.ndarray] | None = None,
    ):  # fmt: skip
        """Start it.

        history: the arrays of `LossHistory.snapshot`; with the options they decide the result, timing does not.
        transfer_K: s of each domain where the options leave it to a file. directory: where its files lie, such as the
        run's `ado/fits/` (made if need be); None: the system's temporary directory. What processes that are gone left
        there is removed before the first fit. program, more: a module that does something with the laws once they are
        written (it calls `fit_in`), and its arrays.
        """
        self._started = time.monotonic()
        self._directory: Path | None = None
        self._process: subprocess.Popen | None = None
        self._failure = ""
        try:
            self._directory = _new_directory(directory)
            arrays = dict(history) if transfer_K is None else {**history, _TRANSFER: np.asarray(transfer_K, np.float64)}
            _write(self._directory / _REQUEST, arrays)
            (self._directory / _OPTIONS).write_text(json.dumps(LawOptions.of(options).to_dict()))
            if more is not None:
                np.savez(self._directory / MORE, **more)  # type: ignore[arg-type]  # numpy's stub takes names for its own
            self._process = _start(self._directory, program)
        except Exception as error:  # whatever it is, the training goes on
            self._failure = f"it could not start: {_words(error)}"

    @property
    def pid(self) -> int:
        """The process id; 0 when there is no process."""
        return 0 if self._process is None else self._process.pid

    def done(self) -> bool:
        """True when `result` need not wait."""
        return self._process is None or self._process.poll() is not None

    def result(self, deadline: float) -> FitOutcome:
        """Wait at most `deadline` seconds for the end, collect the laws, and clean up. Call once."""
        asked = time.monotonic()
        laws, reason = None, self._failure
        if self._process is not None:
            try:
                status = self._process.wait(timeout=deadline)
                reason = "" if status == 0 else f"its process ended with status {status}{self._last_words()}"
            except subprocess.TimeoutExpired:
                reason = f"it took longer than {deadline:g} s"
        more = None
        if not reason and self._directory is not None:
            try:
                # a file of our own: np.load leaves one open that is cut
                with open(self._directory / _RESULT, "rb") as file, np.load(file, allow_pickle=False) as npz:
                    laws = Laws.from_arrays({name: npz[name] for name in npz.files})
                if (self._directory / MORE_RESULT).exists():
                    more = read_npz(self._directory / MORE_RESULT)
            except Exception as error:  # a file that is gone, cut or altered fails in many ways
                reason = f"its laws cannot be read: {_words(error)}"
        self.cancel()
        now = time.monotonic()
        return FitOutcome(laws, reason, now - self._started, now - asked, more)

    def cancel(self) -> None:
        """Stop the process if it still runs and remove its files."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _last_words(self) -> str:
        """The last line that the child wrote, in brackets."""
        if self._directory is None:
            return ""
        try:
            lines = (self._directory / _ERRORS).read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return f" ({lines[-1]})" if lines else ""


def _words(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """The names, then array after array. A history can be large, and an .npz would sum every byte up twice."""
    with open(path, "wb") as file:
        for array in (np.array([*arrays], dtype=str), *arrays.values()):
            np.save(file, array, allow_pickle=False)


def _read(path: Path) -> dict[str, np.ndarray]:
    """What `_write` wrote."""
    with open(path, "rb") as file:
        names = np.load(file, allow_pickle=False).tolist()
        return {name: np.load(file, allow_pickle=False) for name in names}


def _new_directory(parent: Path | None) -> Path:
    """A directory for one fit. Its name starts with the id of this process, so that others know whose it is."""
    if parent is None:
        parent = Path(tempfile.gettempdir())
    parent = Path(parent).absolute()
    parent.mkdir(parents=True, exist_ok=True)
    if parent not in _swept:
        _swept.add(parent)
        sweep(parent)
    return Path(tempfile.mkdtemp(prefix=f"ado-fit-{os.uname().nodename}-{os.getpid()}-", dir=parent))


def sweep(parent: Path) -> None:
    """Remove the directories of fits under `parent` whose process, on this machine, is gone.

    A process that cannot be asked (it has another owner) counts as alive; a directory of another machine stays.
    """
    start = f"ado-fit-{os.uname().nodename}-"
    for path in parent.glob(f"{start}*-*"):
        pid = path.name[len(start) :].partition("-")[0]
        if not pid.isdecimal() or int(pid) == os.getpid():
            continue
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (OSError, OverflowError):
            pass


def _start(directory: Path, program: str) -> subprocess.Popen:
    """The child, on one thread, without a GPU; what it prints goes to a file."""
    package_parent = str(Path(__file__).resolve().parents[2])
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES="", **dict.fromkeys(_ONE_THREAD, "1"))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
    with open(directory / _ERRORS, "wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", program, str(directory), str(os.getpid())],
            stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=environment,
        )  # fmt: skip


def main(directory: str, parent: str) -> None:
    """The child of process `parent`: fit what `directory` asks for."""
    begin(parent)
    fit_in(Path(directory))


def begin(parent: str) -> None:
    """What a child does first: it goes with the training, and the training comes before it."""
    die_with_parent(int(parent))
    os.nice(10)


def fit_in(folder: Path) -> Laws:
    """Read the request in `folder`, fit, leave the laws there, and return them."""
    options = LawOptions.from_dict(json.loads((folder / _OPTIONS).read_text()))
    history = _read(folder / _REQUEST)
    transfer_K = history.pop(_TRANSFER, None)
    laws = fit_history(history, options, transfer_K)
    np.savez(folder / _RESULT, **laws.to_arrays())  # type: ignore[arg-type]  # as above
    return laws


if __name__ == "__main__":
    main(*sys.argv[1:])
