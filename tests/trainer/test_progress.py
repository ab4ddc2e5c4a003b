"""What people see of a run stops no run."""

import os
import subprocess
import sys
import types

import numpy as np
import pytest

from ado_megatron.config import AdoConfig
from ado_megatron.trainer.options import TrainerOptions
from ado_megatron.trainer.progress import Progress


class Metrics:
    """Stands where metrics.jsonl would be written."""

    def __init__(self):
        self.records = []

    def write(self, kind, step, **values):
        self.records.append((kind, step, values))


@pytest.fixture
def mixer(tmp_path):
    recorder = types.SimpleNamespace(metrics=Metrics())
    return types.SimpleNamespace(
        domains=types.SimpleNamespace(names_K=("a", "b")), rank_zero=types.SimpleNamespace(recorder=recorder),
        weights_K=lambda consumed: np.array([0.25, 0.75]), directory=tmp_path / "ado",
    )  # fmt: skip


def options(tmp_path, **changes):
    return TrainerOptions(run_dir=str(tmp_path / "run"), data="d", **changes)


def test_what_is_recorded(tmp_path, mixer):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    progress = Progress(options(tmp_path, progress=False), AdoConfig(), mixer, 0)
    progress.step(10, 80, 2.5, 0.01, 0.5)
    progress.step(20, 160, 2.0, 0.01, 0.5)
    progress.validation(20, np.array([1.5, np.nan]))
    progress.close()
    (first, second, validation) = mixer.rank_zero.recorder.metrics.records
    assert (first[:2], second[:2], validation[:2]) == (("progress", 10), ("progress", 20), ("validation", 20))
    assert np.isnan(first[2]["samples_per_second"]) and second[2]["samples_per_second"] > 0
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert {tag: [event.value for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]} == {
        "train/loss": [2.5, 2.0], "train/lr": [pytest.approx(0.01)] * 2, "train/grad_norm": [0.5, 0.5],
        "ado/weight/a": [0.25, 0.25], "ado/weight/b": [0.75, 0.75], "ado/validation/a": [1.5],
    }  # fmt: skip


def test_a_board_that_cannot_be_opened_is_said_once(tmp_path, mixer, caplog):
    (tmp_path / "run").write_text("a file where the directory should be")
    progress = Progress(options(tmp_path, progress=False), AdoConfig(), mixer, 0)
    progress.step(10, 80, 2.5, 0.01, 0.5)
    progress.close()
    assert sum("TensorBoard" in record.message for record in caplog.records) == 1
    assert len(mixer.rank_zero.recorder.metrics.records) == 1


def test_a_broken_tensorboard_is_said_once(tmp_path, mixer, caplog, monkeypatch):
    """As of a protobuf of another version, which raises when it is imported."""

    def broken(*_, **__):
        raise TypeError("Descriptors cannot be created directly")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", broken)
    progress = Progress(options(tmp_path, progress=False), AdoConfig(), mixer, 0)
    progress.step(10, 80, 2.5, 0.01, 0.5)
    progress.close()
    assert sum("TensorBoard" in record.message for record in caplog.records) == 1


def test_a_board_that_breaks_in_the_run_is_said_once_without_a_traceback(tmp_path, mixer, caplog, capfd):
    progress = Progress(options(tmp_path, progress=False), AdoConfig(), mixer, 0)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    writer = progress._boards._closes["TensorBoard"].__self__
    writer._get_file_writer().event_writer._async_writer._writer.write = refuse
    for step in range(200):
        progress.step(step, 8 * step, 2.5, 0.01, 0.5)
    progress.close()
    assert sum("TensorBoard" in record.message for record in caplog.records) == 1
    assert len(mixer.rank_zero.recorder.metrics.records) == 200
    assert "Traceback" not in capfd.readouterr().err


SPEAKER = """
import sys, types
from ado_megatron.trainer.progress import Progress
sys.stdin.readline()
for number in range(2000):
    Progress.print("x" * 100)
print("plain print")
sys.stderr.write("through")
"""


def test_lines_to_a_reader_that_is_gone_end_nothing():
    process = subprocess.Popen(
        [sys.executable, "-c", SPEAKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.stderr.read() == b"through" and process.wait(60) == 0
    process.stderr.close()
