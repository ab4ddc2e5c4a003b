"""launch/cpu_smoke.sh: a user's host, blend and arguments for a few steps without a GPU; what it cannot do it says."""

import hashlib
import os
import subprocess
import sys

import pytest

from ado_megatron.audit import audit
from tests.kit.host_runs import ROOT, Run, checkout, tail, write_domains

SMOKE = ROOT / "launch" / "cpu_smoke.sh"
# as on a cluster: what needs GPUs, or is too large, the script takes out
CLUSTER = (
    "--num-layers 24 --hidden-size 2048 --num-attention-heads 16 --seq-length 2048 --max-position-embeddings 2048 "
    "--micro-batch-size 4 --global-batch-size 512 --train-iters 60000 --lr 1e-3 --bf16 --split 80,10,10 "
    "--num-workers 2 --tensor-model-parallel-size 8 --pipeline-model-parallel-size 4 --log-interval 100 "
    "--eval-interval 1000 --eval-iters 10 --save-interval 1000 --tokenizer-type NullTokenizer --vocab-size 127"
).split()


def smoke(*arguments, **variables):
    environment = os.environ | {key: str(value) for key, value in variables.items()}
    line = ["bash", SMOKE, *map(str, arguments)]
    return subprocess.run(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def digests(directory):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.rglob("*.py"))}


@pytest.mark.host
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("host", "pp"), [("lm", 1), ("lm_main", 1), ("deepspeed_flat", 1), ("deepspeed", 2)])
def test_a_users_command_is_rehearsed_and_his_checkout_stays_as_it_was(host, pp, tmp_path):
    place, out = checkout(host), tmp_path / "out"
    before = digests(place)
    # a cluster's own directory, which a rehearsal must not write to
    mine = ["--save", tmp_path / "cluster", "--load", tmp_path / "cluster", "--data-path", *write_domains(tmp_path)]
    python = os.environ.get("MEGATRON_PYTHON", sys.executable)
    done = smoke(place, *CLUSTER, *mine, "--ado-audit", "--ado-log-interval", 1,
                 RANKS=2, STEPS=4, PP=pp, OUT=out, PYTHON=python, PYTHONWARNINGS="ignore")  # fmt: skip
    run = Run(done.returncode, done.stdout, out)
    assert run.status == 0, tail(run)
    assert set(run.curve) == {1, 2, 3, 4}
    verdict = audit(out)
    assert verdict.failure is None and verdict.samples == verdict.seen == 4 * 8
    tokens = [sum(row["tokens_K"]) for row in run.metrics("step")]
    assert tokens == [8 * 64] * 4, "the loss of every sample was measured, in the shrunken length"
    assert not (tmp_path / "cluster").exists()
    assert digests(place) == before


def test_a_directory_that_is_no_checkout_is_refused_in_one_sentence(tmp_path):
    for wrong in (tmp_path, tmp_path / "missing"):
        done = smoke(wrong, "--lr", "1e-3")
        assert done.returncode == 2
        assert done.stdout == f"cpu_smoke: {wrong} holds no pretrain_gpt.py; name a checkout of a host\n"


def test_without_arguments_it_says_how_it_is_called():
    done = smoke()
    usage = "launch/cpu_smoke.sh CHECKOUT <the arguments of your pretrain_gpt.py>"
    assert done.returncode == 2 and usage in done.stdout


def test_a_script_of_another_project_is_no_host(tmp_path):
    (tmp_path / "pretrain_gpt.py").write_text("")
    done = smoke(tmp_path, "--lr", "1e-3", OUT=tmp_path / "out", PYTHON=sys.executable)
    # the second where the wheel of megatron-core holds a training loop, which this script does not import
    refusals = ("no framework was recognised", "does not import megatron.training")
    assert done.returncode != 0 and any(words in done.stdout for words in refusals)
