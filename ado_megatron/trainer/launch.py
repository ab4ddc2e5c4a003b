"""`ado-megatron pretrain`: checks the input, then starts the `deepspeed` launcher on this machine; under a launcher,
trains.

    ado-megatron pretrain …                       parent: checks, a free port, then
      python -m deepspeed.launcher.runner …       the launcher
        python -m ado_megatron.trainer.launch …   one a rank: trains

Started by any launcher that sets RANK and WORLD_SIZE (deepspeed, torchrun, srun with a wrapper), it trains at once.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

from ado_megatron.errors import UserError
from ado_megatron.trainer.check_data import check_data
from ado_megatron.trainer.mixture import check_mixture
from ado_megatron.trainer.options import TrainerOptions, parse
from ado_megatron.trainer.run_dir import check_run_dir, run_identity

_DONE = "ADO_MEGATRON_DONE"  # file that rank zero writes when it is through
_PARENT = "ADO_MEGATRON_PARENT"  # process id of `ado-megatron pretrain`, for its ranks


def main(argv: list[str]) -> int:
    """Exit code of the run: 0, 2 for bad input, otherwise the first failing rank's. Raises UserError before anything
    is started."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _rank(argv)
    options, config = parse(argv)
    processes = _num_processes(options)
    dp = options.check_world(processes)
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
    """Run the launcher; its exit code, or 128 + the signal that stopped it or us.

    Its code is not enough: deepspeed's runner exits with 0 when the process that it waits for was killed.
    """
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--quiet", "--hostfile", os.devnull]
    command += ["--num_gpus", str(processes), "--master_port", str(port), "--no_local_rank", "--module"]
    command += ["ado_megatron.trainer.launch", *argv]
    with tempfile.TemporaryDirectory(prefix="ado-megatron-") as folder:
        done = Path(folder) / "done"
        code = _wait_for(command, _environment(processes) | {_DONE: str(done)})
        if code == 0 and not done.exists():
            print("ado-megatron: error: the launcher ended before the run did; was it killed?", file=sys.stderr)
            return 1
    return code


def _environment(processes: int) -> dict[str, str]:
    """What the ranks inherit; the user's own settings go first."""
    defaults = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        "PYTHONUNBUFFERED": "1",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # megatron-core's order of kernels under --tp on a GPU
    }
    if os.path.isdir("/sys/class/net/lo"):
        defaults["GLOO_SOCKET_IFNAME"] = "lo"  # all ranks are on this machine
    return defaults | dict(os.environ) | {_PARENT: str(os.getpid())}


def _wait_for(command: list[str], environment: dict[str, str]) -> int:
    """Run in a session of its own, so that all of it can be stopped, and pass on what we are asked to stop by."""
    launcher = subprocess.Popen(command, env=environment, start_new_session=True)
    stopped_by = []

    def stop(signum, _frame):
        stopped_by.append(signum)
        _signal_group(launcher.pid, signal.SIGTERM)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        code = launcher.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _stop_group(launcher.pid)
    if stopped_by:
        return 128 + stopped_by[0]
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


# ---------------------------------------------------------------- under a launcher


def _rank(argv: list[str]) -> int:
    """Train on this rank. Bad input that only shows here: rank zero says it, the launcher stops the others."""
    _follow_parents()
    options, config = parse(argv)
    # Remarks of the libraries about each other, once a rank and import; nothing a user could act on.
    for module in ("megatron", "deepspeed", "torch.distributed"):
        warnings.filterwarnings("ignore", module=module)
    try:
        from ado_megatron.trainer import loop, parallel

        loop.train(options, config)
        parallel.tear_down()
        if os.environ["RANK"] == "0" and _DONE in os.environ:
            Path(os.environ[_DONE]).touch()
    except UserError as error:
        if os.environ["RANK"] != "0":
            time.sleep(5.0)  # rank zero says the same; the launcher stops this rank meanwhile
        print(f"ado-megatron: error: {error}", file=sys.stderr, flush=True)
        sys.stderr.flush()
        os._exit(2)  # peers may wait in a collective: no orderly end to wait for
    return 0


def _follow_parents() -> None:
    """End this rank when the launcher that started it is gone (killed by a signal it could not pass on)."""
    launcher, starter = os.getppid(), int(os.environ.get(_PARENT, 0))

    def watch():
        while os.getppid() == launcher and (not starter or os.path.exists(f"/proc/{starter}")):
            time.sleep(1.0)
        os._exit(143)

    if starter and os.path.isdir("/proc/self"):
        threading.Thread(target=watch, name="follow-parents", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
