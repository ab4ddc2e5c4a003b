"""`ado-megatron pretrain`: checks the input, then starts the `deepspeed` launcher on this machine; under a launcher,
trains.

    ado-megatron pretrain …                       parent: checks, a free port, then
      python -m deepspeed.launcher.runner …       the launcher
        python -m ado_megatron.trainer.launch …   one a rank: trains (rank.py)

Started by any launcher that sets RANK and WORLD_SIZE (deepspeed, torchrun, srun with a wrapper), it trains at once.

Exit codes: 0, the run is at its end. 2, bad input or a state that cannot be written. 128 + N, signal N (SIGTERM 143,
Ctrl-C 130) ended the run after a whole step, with a checkpoint unless none was due yet. 137, it was ended at once, by a
second signal. Another: the first failing rank's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from ado_megatron.trainer.boards import check_boards
from ado_megatron.trainer.check_data import check_data
from ado_megatron.trainer.mixture import check_mixture
from ado_megatron.trainer.options import TrainerOptions, exit_signals, parse
from ado_megatron.trainer.rank import Folder, run_rank, say
from ado_megatron.trainer.run_dir import check_run_dir, run_identity

TOGETHER = 0.5  # seconds in which signals count as one


def main(argv: list[str]) -> int:
    """Exit code of the run: 0, 2 for bad input, otherwise the first failing rank's. Raises UserError before anything
    is started.

    argv: the words after `ado-megatron pretrain`.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return run_rank(argv)
    options, config = parse(argv)
    processes = _num_processes(options)
    dp = options.check_world(processes)
    check_boards(options)
    data = check_data(options)
    check_mixture(data, options, config)
    check_run_dir(options, config, run_identity(options, config, data, dp))
    return _start(processes, options.master_port or _free_port(), argv)


def _num_processes(options: TrainerOptions) -> int:
    if options.num_processes is not None:
        return options.num_processes
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = len([device for device in visible.split(",") if device.strip()])
    elif shutil.which("nvidia-smi"):
        listing = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
        gpus = len(listing.stdout.splitlines()) if listing.returncode == 0 else 0
    else:
        gpus = 0
    return gpus or options.tp * options.pp


def _free_port() -> int:
    """A port that nobody listens on now. The launcher's first rank binds it a few seconds later, so a race is possible
    but unlikely."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(processes: int, port: int, argv: list[str]) -> int:
    """Run the launcher; the exit code of the run, 128 + the signal that ended it, or 1 when it says neither.

    Its own code is not enough: deepspeed's runner exits with 0 when the process that it waits for was killed.
    """
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--hostfile", os.devnull]
    command += ["--num_gpus", str(processes), "--master_port", str(port), "--no_local_rank", "--module"]
    command += ["ado_megatron.trainer.launch", *argv]
    with signals_taken(exit_signals(parse(argv)[0])) as signals, Folder.made() as folder:
        code = _wait_for(command, _environment(processes) | folder.environment(), folder, signals)
        ended = folder.ended_by()
    if ended is not None:  # rank zero was through, after the last step or after a signal
        return 128 + (signals.first or ended) if ended else 0
    if signals.first:
        return 128 + (signal.SIGKILL if signals.twice else signals.first)
    if code == 0:
        say("error: the launcher ended before the run did; was it killed?")
    return code or 1


def _environment(processes: int) -> dict[str, str]:
    """What the ranks inherit; the user's own settings go first."""
    defaults = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        "PYTHONUNBUFFERED": "1",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # megatron-core's order of kernels under --tp on a GPU
    }
    if os.path.isdir("/sys/class/net/lo"):
        defaults["GLOO_SOCKET_IFNAME"] = "lo"  # all ranks are on this machine
    return defaults | dict(os.environ)


class Signals:
    """The signals that this process was sent: the first one, and whether there was another."""

    def __init__(self) -> None:
        self.first, self.twice, self._at = 0, False, 0.0
        self.on_first: Callable[[int], None] = lambda number: None
        self.on_second: Callable[[], object] = lambda: None

    def take(self, number: int, _frame: FrameType | None) -> None:
        """The handler."""
        if not self.first:
            self.first, self._at = number, time.monotonic()
            say(f"{signal.Signals(number).name}: the run ends after its step and saves; once more ends it at once")
            self.on_first(number)
        elif time.monotonic() - self._at > TOGETHER:
            self.twice = True
            self.on_second()


@contextlib.contextmanager
def signals_taken(numbers: Sequence[int]) -> Iterator[Signals]:
    """While this lasts, the signals do not end this process but tell the object."""
    signals = Signals()
    previous = {number: signal.signal(number, signals.take) for number in {*numbers, signal.SIGHUP}}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait_for(command: list[str], environment: dict[str, str], folder: Folder, signals: Signals) -> int:
    """Run in a session of its own, so that all of it can be stopped. A signal to us goes to the ranks, not to the
    launcher, which would give them half a minute."""
    if signals.first:
        return 128 + signals.first
    launcher = subprocess.Popen(command, env=environment, start_new_session=True)

    def ask(_: int) -> None:
        if not folder.signal_ranks(signal.SIGTERM):
            _signal_group(launcher.pid, signal.SIGTERM)

    signals.on_first, signals.on_second = ask, lambda: _signal_group(launcher.pid, signal.SIGKILL)
    if signals.first:  # it came while the launcher was started
        ask(signals.first)
    try:
        code = launcher.wait()
    finally:
        _stop_group(launcher.pid)
    return code if code >= 0 else 128 - code


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _stop_group(group: int) -> None:
    """Whatever the launcher left behind: asked to end, then made to."""
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience
        if not _signal_group(group, number):
            return
        while time.monotonic() < deadline and _signal_group(group, 0):
            time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
