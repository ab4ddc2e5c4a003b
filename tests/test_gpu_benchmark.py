"""benchmarks/gpu.sh as far as a CPU goes: every part runs, a wait of ours would be seen, no GPU is said."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu  # noqa: E402

sys.path.remove(str(ROOT / "benchmarks"))


def test_a_wait_inside_a_call_of_ours_is_found_and_one_beside_it_is_not():
    import torch
    from torch.profiler import profile, record_function

    value = torch.ones(3)
    with profile() as seen:
        value.sum().item()
        with record_function(gpu.OURS):
            value + value
    assert gpu.waits_inside(seen.events()) == {}
    with profile() as seen:
        with record_function(gpu.OURS):
            value.sum().item()
            float(value.sum())
        value.sum().item()
    assert gpu.waits_inside(seen.events()) == {"aten::_local_scalar_dense": 2}


def start(*words, **variables):
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | variables
    line = ["bash", ROOT / "benchmarks" / "gpu.sh", *words]
    return subprocess.run(line, env=environment, capture_output=True, text=True)


def test_without_a_gpu_or_without_wheels_it_says_so(tmp_path):
    done = start(tmp_path / "out.json", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1 and "gpu.py: torch sees no GPU" in done.stderr
    done = start(tmp_path / "out.json", WHEELS=str(tmp_path))
    assert done.returncode == 2 and f"gpu.sh: there are no wheels in {tmp_path}" in done.stderr
    assert not (tmp_path / "out.json").exists()


@pytest.mark.slow
def test_the_rehearsal_runs_every_part(tmp_path):
    done = start(tmp_path / "out.json", REHEARSE="1")
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["rehearsal"] and found["failures"] == []
    losses = found["losses"]
    assert [len(losses[arm]) for arm in ("fp32_cpu", "bf16", "resumed")] == [20, 20, 20]
    assert losses["bf16"] != losses["fp32_cpu"] and losses["bf16"][-1] < losses["bf16"][0]
    assert found["profile"]["calls_of_ours"] == gpu.PROFILED * 4, "begin, end and two micro-batches a step"
    assert found["overhead"]["pairs"] == 4 and found["overhead"]["meter_seconds_per_micro_batch"] > 0
