"""Real runs of unmodified hosts on a CPU, for the tests marked `host`.

A checkout is the user's own: MEGATRON_LM_DIR (core_v0.16.1), MEGATRON_LM_RELEASE_DIR (core_v0.19.0),
MEGATRON_LM_MAIN_DIR (main d98e8a6), MEGATRON_DEEPSPEED_DIR (4efb479), MEGATRON_BRIDGE_DIR (067f987df with its
submodule). MEGATRON_PYTHON: the interpreter that has their packages (default: this one); MEGATRON_BRIDGE_PYTHON: that
of Bridge, which needs Python 3.12. See launch/README.md.
"""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKOUTS = {
    "lm": "MEGATRON_LM_DIR",
    "lm_release": "MEGATRON_LM_RELEASE_DIR",
    "lm_main": "MEGATRON_LM_MAIN_DIR",
    "deepspeed": "MEGATRON_DEEPSPEED_DIR",
    "deepspeed_flat": "MEGATRON_DEEPSPEED_DIR",  # --no-pipeline-parallel
    "bridge": "MEGATRON_BRIDGE_DIR",
}
BRIDGE_SCRIPT = ROOT / "tests" / "kit" / "bridge"
DOMAINS = {"wiki": (0.4, 160), "code": (0.3, 120), "news": (0.2, 80), "law": (0.1, 24)}  # weight, documents
# tokens 0…126; every flag below is the same in all three hosts
COMMON = (
    "--num-layers 4 --hidden-size 32 --num-attention-heads 4 --seq-length 32 --max-position-embeddings 32 "
    "--micro-batch-size 2 --global-batch-size 8 --lr 1e-2 --lr-decay-style constant "
    "--tokenizer-type NullTokenizer --vocab-size 127 --eval-iters 1 --eval-interval 10 --log-interval 1 "
    "--attention-dropout 0 --hidden-dropout 0 --distributed-backend gloo --no-gradient-accumulation-fusion "
    "--save-interval 1000"
).split()
LM = (
    "--transformer-impl local --no-persist-layer-norm --no-bias-swiglu-fusion --no-bias-gelu-fusion "
    "--no-bias-dropout-fusion --no-masked-softmax-fusion --no-rope-fusion --use-cpu-initialization "
    "--position-embedding-type rope --disable-bias-linear --ckpt-format torch"
).split()
SPLIT = ["--split", "90,5,5"]
DEEPSPEED = ["--deepspeed", "--data-impl", "mmap"]
# a refit every 6 steps from step 6 on, on raw losses: 24 steps see three
QUICK_ADO = (
    "--ado-policy ado --ado-refit-interval 6 --ado-start-step 6 --ado-ignore-steps 0 --ado-smoothing none --ado-stride "
    "1 --ado-log-interval 1"
).split()


def checkout(host: str) -> Path:
    """The host's checkout, or a skip in one line that says how to get it."""
    variable = CHECKOUTS[host]
    if variable not in os.environ:
        pytest.skip(f"set {variable} to a checkout of the host (see launch/README.md)")
    return Path(os.environ[variable])


def write_domains(directory: Path) -> list[str]:
    """Tiny .bin/.idx domains with different token statistics; returns the blend as --data-path takes it."""
    rng, blend = np.random.default_rng(0), []
    for number, (name, (weight, documents)) in enumerate(DOMAINS.items()):
        blend += [str(weight), write_domain(directory, name, number, documents, rng)]
    return blend


def write_domain(directory: Path, name: str, number: int, documents: int, rng: np.random.Generator) -> str:
    """One tiny domain, of the tokens of `number`; returns its prefix."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    directory.mkdir(exist_ok=True)
    prefix = directory / f"{name}_text_document"
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    chain = rng.dirichlet(np.full(24, 0.1), size=24)
    for _ in range(documents):
        tokens = [int(rng.integers(24))]
        for _ in range(int(rng.integers(60, 200))):
            tokens.append(int(rng.choice(24, p=chain[tokens[-1]])))
        tokens = [token + 30 * number + 1 for token in tokens] + [0]
        builder.add_document(torch.tensor(tokens), [len(tokens)])
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


@dataclasses.dataclass
class Run:
    """What a run left behind."""

    status: int
    log: str
    directory: Path

    @property
    def curve(self) -> dict[int, tuple[str, ...]]:
        """(loss, gradient norm) as printed, by iteration."""
        pattern = r"iteration\s+(\d+)/.*?lm loss: (\S+)(?:.*?grad norm: (\S+))?"
        return {int(step): tuple(rest) for step, *rest in re.findall(pattern, self.log)}

    def metrics(self, kind: str) -> list[dict]:
        """The objects of one kind in metrics.jsonl."""
        rows = map(json.loads, (self.directory / "ado" / "metrics.jsonl").read_text().splitlines())
        return [row for row in rows if row["type"] == kind]

    def mixture_losses(self) -> dict[int, float]:
        """Token-weighted mean of the domains' losses, by iteration."""
        return {
            row["step"]: sum((loss or 0) * tokens for loss, tokens in zip(row["loss_K"], row["tokens_K"], strict=True))
            / sum(row["tokens_K"])
            for row in self.metrics("step")
        }


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _launcher(host: str, ranks: int, module: str | None) -> list[str]:
    python = os.environ.get("MEGATRON_BRIDGE_PYTHON" if host == "bridge" else "MEGATRON_PYTHON", sys.executable)
    if host.startswith("deepspeed"):
        port = ["--master_port", str(_free_port())]
        wrapped = ["--module", module] if module else []
        return [python, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks), *port, *wrapped]
    wrapped = ["-m", module] if module else []
    return [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), *wrapped]


def deepspeed_config(directory: Path, zero: int, options: Sequence[str] = ()) -> list[str]:
    path = directory / f"deepspeed_zero{zero}.json"

    def size(flag: str, default: int) -> int:
        return int(options[options.index(flag) + 1]) if flag in options else default

    values = {
        "train_micro_batch_size_per_gpu": size("--micro-batch-size", 2), "gradient_clipping": 1.0,
        "train_batch_size": size("--global-batch-size", 8), "steps_per_print": 1000,
        "zero_optimization": {"stage": zero},
    }  # fmt: skip
    path.write_text(json.dumps(values))
    return ["--deepspeed_config", str(path), "--zero-stage", str(zero)]


def write_job(directory: Path, host: str, *options, steps=12) -> Path:
    """launch/job.sh with the model shrunken by later options, which win; RESUME and DEEPSPEED as they are there."""
    small = [*COMMON, *SPLIT, "--train-iters", steps, "--lr-warmup-iters", 2, "--num-workers", 1]
    small += ["--tensor-model-parallel-size", 1, "--pipeline-model-parallel-size", 1, "--data-cache-path", directory]
    small += [*(LM if host == "lm" else []), *options]
    data = ["--data-path", *write_domains(directory)]
    job = directory / "job.sh"
    job.write_text(
        '. "$ADO_HOME/launch/job.sh"\n'
        f"DATA=({' '.join(data)})\n"
        'for n in "${!MODEL[@]}"; do [ "${MODEL[n]}" != --bf16 ] || unset "MODEL[n]"; done\n'
        f"MODEL+=({' '.join(map(str, small))} ${{STOP_AT:+--exit-interval $STOP_AT}})\n"
        f"ADO+=({' '.join(QUICK_ADO)} --ado-audit)\n"
    )
    return job


def put_host_launchers(directory: Path) -> str:
    """torchrun and deepspeed, as pip installs them for the interpreter of the hosts, in bin/; PATH with these first."""
    python = os.environ.get("MEGATRON_PYTHON", sys.executable)
    (directory / "bin").mkdir(exist_ok=True)
    for name, module in (("torchrun", "torch.distributed.run"), ("deepspeed", "deepspeed.launcher.runner")):
        program = directory / "bin" / name
        program.write_text(f'#!/bin/bash\nexec {python} -m {module} "$@"\n')
        program.chmod(0o755)
    return os.pathsep.join([str(directory / "bin"), os.path.dirname(python), os.environ["PATH"]])


def _environment(host: str, python: str) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    if host == "bridge":
        paths += [str(checkout(host) / "src"), str(checkout(host) / "3rdparty" / "Megatron-LM")]
    # the hosts build their C++ index with `python3`: it must be the interpreter that runs them
    return os.environ | {
        "ADO_CPU": "1", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PATH": os.pathsep.join([os.path.dirname(python), os.environ["PATH"]]),
    }  # fmt: skip


def train(
    host: str, save: Path, data: list[str], options=(), *, ranks=1, steps=24, zero=0, module="ado_megatron.run",
    root=None, timeout=280, during=None, within=(),
) -> Run:  # fmt: skip
    """Run the pretrain_gpt.py of the host (or of `root`, a copy of it) through `module`, or plainly if that is None.

    data: the options that name the data. steps: None if the options say how long. save: the directory of checkpoints,
    ado/ and logs. during: called with the launcher's process and the path of its log when it was started. within: a
    command that runs the launcher.
    """
    save.mkdir(parents=True, exist_ok=True)
    place = checkout(host)
    script = (root or (BRIDGE_SCRIPT if host == "bridge" else place)) / "pretrain_gpt.py"
    arguments = [*COMMON, *data, "--save", str(save)]
    if "--step-batch-size-schedule" in options:  # in place of a global batch
        number = arguments.index("--global-batch-size")
        del arguments[number : number + 2]
    arguments += ["--train-iters", str(steps)] if steps is not None else []
    if data[0] in ("--data-path", "--data-args-path"):
        arguments += SPLIT
    arguments += ["--data-cache-path", str(save.parent / f"cache_{host}")]
    if host.startswith("deepspeed"):
        arguments += DEEPSPEED + deepspeed_config(save, zero, list(map(str, options)))
        arguments += ["--no-pipeline-parallel"] if host == "deepspeed_flat" else []
    else:
        arguments += LM
    launcher = _launcher(host, ranks, module)
    command = [*within, *launcher, str(script), *arguments, *map(str, options)]
    environment = _environment(host, launcher[0])
    with open(save / f"log{len(list(save.glob('log*')))}.txt", "w+") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=save,
            start_new_session=True,
        )  # fmt: skip
        try:
            if during is not None:
                during(process, Path(log.name))
            status = process.wait(timeout * (2 if host == "bridge" else 1))  # it imports half a minute
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            status = None
        log.seek(0)
        return Run(status, log.read(), save)


def signal_a_rank(number: int, rank: int, step: int):
    """A `during` of `train`: the signal to one rank of a launcher when the log shows that the step was done."""

    def send(process: subprocess.Popen, log: Path) -> None:
        deadline = time.monotonic() + 240
        while not re.search(rf"iteration\s+{step}/", log.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.01)
        found, waiting = [], [str(process.pid)]
        while waiting:  # a rank comes before its loader's workers, which have its environment
            pid = waiting.pop(0)
            if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(int(pid), number)
                return
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            found, waiting = found + children, waiting + children
        raise AssertionError(f"rank {rank} is not among the launcher's processes {found}")

    return send


def tail(run: Run, lines: int = 40) -> str:
    """The end of the log, for the message of an assertion."""
    return "\n".join(run.log.splitlines()[-lines:])
