"""The processes of the trainer's loader."""

import multiprocessing
import os
import signal
import tempfile
import time

import torch

from ado_megatron.trainer import data


def test_a_worker_outlives_a_signal_that_is_meant_for_its_rank_and_then_leaves_nothing(tmp_path, monkeypatch):
    """Its sockets lie in a temporary directory, which goes with it although its rank lives on."""
    monkeypatch.setattr(data, "_PATIENCE", 2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # a test before this one may have made the directory of this process, which a fork would inherit
    monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)
    loader = torch.utils.data.DataLoader(
        range(1000), batch_size=2, num_workers=1, worker_init_fn=data._start_worker, multiprocessing_context="fork",
        collate_fn=torch.tensor,
    )  # fmt: skip
    batches = iter(loader)
    assert next(batches).tolist() == [0, 1] and len(list(tmp_path.glob("pymp-*"))) == 1
    (worker,) = batches._workers
    os.kill(worker.pid, signal.SIGTERM)
    assert next(batches).tolist() == [2, 3]
    deadline = time.monotonic() + 30
    while worker.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert worker.exitcode == 0 and list(tmp_path.iterdir()) == []
