"""Real gloo processes for tests: `run_ranks(fn, n, *args)` calls `fn(rank, *args)` in n ranks of one process group.

    def sums(rank, factor):
        t = torch.tensor([rank * factor])
        torch.distributed.all_reduce(t)
        return t.item()

    assert run_ranks(sums, 2, 10) == [10, 10]

Rendezvous is through a file, so no port is guessed and any number of tests can run side by side. Import it in a test
as `from ranks import run_ranks`.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path


class RankFailed(AssertionError):
    """A rank raised or died; the message holds the traceback of the rank that did so first."""


def run_ranks(fn: Callable, n: int, *args, method: str = "fork", timeout: float = 240.0) -> list:
    """Results of `fn(rank, *args)` on ranks 0 … n-1, each a process with an initialised gloo group.

    `method`: "fork" keeps what the test has imported and needs nothing to be picklable but the results; "spawn" starts
    from a fresh interpreter. Raises RankFailed with the earliest traceback when a rank raises, with the exit code when
    one dies, and when `timeout` seconds have passed. All ranks are stopped then.
    """
    context = mp.get_context(method)
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        ranks = [
            context.Process(target=_rank_main, args=(fn, rank, n, folder, timeout, args), daemon=False)
            for rank in range(n)
        ]
        try:
            for process in ranks:
                process.start()
            _wait_for_all(ranks, Path(folder), timeout)
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
            for process in ranks:
                if process.pid is not None:
                    process.join()
        return [pickle.loads(Path(folder, f"result{rank}").read_bytes()) for rank in range(n)]


def _wait_for_all(ranks: list, folder: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    pending = {process.sentinel: (rank, process) for rank, process in enumerate(ranks)}
    while pending:
        done = wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            raise RankFailed(
                f"ranks {sorted(rank for rank, _ in pending.values())} of {len(ranks)} still ran after {timeout} s"
            )
        for sentinel in done:
            rank, process = pending.pop(sentinel)
            process.join()
            if process.exitcode != 0:
                raise RankFailed(
                    _first_error(folder) or f"rank {rank} of {len(ranks)} died with exit code {process.exitcode}"
                )


def _first_error(folder: Path) -> str | None:
    """The earliest report: peers of a failing rank fail after it, when its sockets close."""
    reports = sorted(pickle.loads(path.read_bytes()) for path in folder.glob("error*"))
    return f"rank {reports[0][1]} failed first:\n{reports[0][2]}" if reports else None


def _rank_main(fn: Callable, rank: int, n: int, folder: str, timeout: float, args: tuple) -> None:
    import torch

    torch.set_num_threads(1)  # also: no OpenMP team is opened in a forked child, where libgomp would hang
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n))
    if os.path.isdir("/sys/class/net/lo"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=n,
            timeout=timedelta(seconds=timeout),
        )
        _write(Path(folder, f"result{rank}"), fn(rank, *args))
        torch.distributed.barrier()  # a rank that is done keeps its sockets until its peers are done too
        torch.distributed.destroy_process_group()
    except BaseException:
        _write(Path(folder, f"error{rank}"), (time.monotonic(), rank, traceback.format_exc()))
        os._exit(1)


def _write(path: Path, value: object) -> None:
    partial = path.with_name("partial-" + path.name)
    partial.write_bytes(pickle.dumps(value))
    partial.rename(path)
