"""`ado-megatron doctor`: what is installed, and what is wrong with it. Exit code 1 when a run could not be right.

    look()  ──► Facts (plain values)  ──► examine()  ──► findings  ──► printed

Everything that touches the machine is in `look`, so that each judgement is tested from written-down facts.
"""
from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from ado_megatron.option_fields import Parser
from ado_megatron.tables import text_table

OK, NOTE, BAD = "ok", "note", "BAD"

# How each DeepSpeed trains a pipeline of two stages against one process (gradient norms, losses of 4 steps).
DEEPSPEED_RIGHT = ("0.19.4", "0.19.7", "0.19.8")
DEEPSPEED_WRONG = {
    "0.16.9": "reports a gradient norm too high by the accumulation steps, so clipping is wrong",
    "0.17.6": "reports a gradient norm too high by the accumulation steps, so clipping is wrong",
    "0.18.4": "trains two pipeline stages silently wrong (gradient norm 0.45 to 0.81 of the right one)",
    "0.18.9": "trains two pipeline stages silently wrong and crashes with ZeRO-1 on a CPU",
    "0.19.0": "trains two pipeline stages silently wrong (gradient norm 0.45 to 0.81 of the right one)",
}
TORCH = ((2, 11), (2, 14))  # tried: at least, below
MEGATRON_CORE = "0.16.1"  # the last for Python 3.10 and 3.11; from 3.12 on everything up to below the next was tried
MEGATRON_CORE_BELOW = "0.20"
NEEDED = ("numpy", "scipy", "sentencepiece", "tqdm", "rich", "jinja2", "orjson", "PyYAML")
OPTIONAL = {
    "numba": "rows of moving weights at full speed",
    "matplotlib": "the picture of `report`",
    "plotly": "the page of `report`",
    "tensorboard": "TensorBoard logs",
    "zstandard": ".jsonl.zst input of `prepare`",
    "tokenizers": "Hugging Face tokenizer files",
    "wandb": "Weights & Biases",
    "mlflow": "MLflow",
    "prometheus_client": "--ado-prometheus",
}
SHM_BYTES = 128 << 20


@dataclass(frozen=True)
class Facts:
    """What was found. `versions`: distribution to version, of what is installed."""

    python: tuple[int, int] = sys.version_info[:2]
    versions: dict[str, str] = field(default_factory=dict)
    torch_error: str = ""  # why `import torch` fails, or nothing
    accelerators: tuple[str, ...] = ()
    core_helpers: bool = False  # megatron-core's compiled index helpers are there
    apex: str = "absent"  # absent, nvidia or other
    compiler: str = ""
    interfaces: tuple[str, ...] = ()
    chosen_interfaces: dict[str, str] = field(default_factory=dict)  # variable to value
    hostname_resolves: bool = True
    shm_free: int | None = None
    home: str = ""  # the directory that holds launch/


@dataclass(frozen=True)
class Finding:
    """A judgement: OK, NOTE or BAD, what it is about, and in words."""

    level: str
    subject: str
    text: str


def release(version: str) -> tuple[int, ...]:
    """(2, 13, 0) of "2.13.0+cpu"; what does not read as a number ends it."""
    numbers = []
    for part in version.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


# ---------------------------------------------------------------- judgements


def examine(facts: Facts) -> Iterator[Finding]:
    """All findings, in the order in which they are printed."""
    old = facts.python < (3, 10)
    yield Finding(BAD if old else OK, "Python", ".".join(map(str, facts.python)) + (", 3.10 is needed" if old else ""))
    yield examine_torch(facts)
    yield Finding(OK, "accelerator", ", ".join(facts.accelerators) or "none: runs on the CPU with gloo")
    yield examine_deepspeed(facts)
    yield from examine_core(facts)
    yield examine_apex(facts)
    for name in NEEDED:
        version = facts.versions.get(name)
        yield Finding(OK if version else BAD, name, version or f"missing; pip install {name}")
    for name, purpose in OPTIONAL.items():
        version = facts.versions.get(name)
        remedy = f"absent; only needed for {purpose}; pip install {name}"
        yield Finding(OK if version else NOTE, name, version or remedy)
    yield from examine_network(facts)
    if facts.shm_free is not None:
        small = facts.shm_free < SHM_BYTES
        remedy = "; loader processes and the table need some (docker run --shm-size=1g)" if small else ""
        yield Finding(NOTE if small else OK, "shared memory", f"{facts.shm_free >> 20} MiB free in /dev/shm{remedy}")
    if facts.home:
        yield Finding(OK, "launch templates", f"{facts.home}/launch; they want ADO_HOME={facts.home}")


def examine_torch(facts: Facts) -> Finding:
    """torch: missing or broken is BAD, a version outside of what was tried a NOTE."""
    version = facts.versions.get("torch")
    if not version:
        return Finding(BAD, "torch", "missing; pip install torch==2.13.0")
    if facts.torch_error:
        return Finding(BAD, "torch", f"{version} cannot be imported: {facts.torch_error}")
    least, below = TORCH
    if not least <= release(version)[:2] < below:
        return Finding(NOTE, "torch", f"{version}; tried with {least[0]}.{least[1]} up to below {below[0]}.{below[1]}")
    return Finding(OK, "torch", version)


def examine_deepspeed(facts: Facts) -> Finding:
    """DeepSpeed: versions known to train pipelines wrongly are BAD, unknown ones a NOTE."""
    version = facts.versions.get("deepspeed")
    if not version:
        return Finding(BAD, "deepspeed", "missing; pip install deepspeed==0.19.8")
    number = ".".join(map(str, release(version)))
    if number in DEEPSPEED_WRONG:
        return Finding(BAD, "deepspeed", f"{version} {DEEPSPEED_WRONG[number]}; pip install deepspeed==0.19.8")
    if number in DEEPSPEED_RIGHT:
        return Finding(OK, "deepspeed", version)
    wrong = ", ".join(DEEPSPEED_WRONG)
    return Finding(NOTE, "deepspeed", f"{version} was not tried; {wrong} train pipelines wrongly, 0.19.8 is right")


def examine_core(facts: Facts) -> Iterator[Finding]:
    """megatron-core, its compiled index helpers, and the compiler that they may need."""
    version = facts.versions.get("megatron-core")
    if not version:
        yield Finding(BAD, "megatron-core", f"missing; pip install megatron-core=={MEGATRON_CORE}")
        return
    newer = facts.python >= (3, 12) and release(MEGATRON_CORE) < release(version) < release(MEGATRON_CORE_BELOW)
    bounds = f"{MEGATRON_CORE}, from Python 3.12 on up to below {MEGATRON_CORE_BELOW}"
    tried = newer or version == MEGATRON_CORE
    yield Finding(OK if tried else NOTE, "megatron-core", version + ("" if tried else f"; tried with {bounds}"))
    if facts.core_helpers:
        yield Finding(OK, "index helpers", "compiled")
    elif facts.compiler:
        yield Finding(NOTE, "index helpers", "not compiled; the first run will, with the compiler that is here")
    else:
        yield Finding(BAD, "index helpers", "not compiled and there is no C++ compiler; install g++")
    yield Finding(OK if facts.compiler else NOTE, "C++ compiler",
                  facts.compiler or "none; DeepSpeed's fused operators cannot be built")  # fmt: skip


def examine_apex(facts: Facts) -> Finding:
    """NVIDIA's apex, which is used, or the unrelated package of that name, which is not."""
    if facts.apex == "nvidia":
        return Finding(OK, "apex", "NVIDIA's, with amp_C: its FusedAdam is used")
    if facts.apex == "other":
        text = "this is not NVIDIA's apex but the unrelated package of that name; it is ignored (pip uninstall apex)"
        return Finding(NOTE, "apex", text)
    return Finding(OK, "apex", "absent; DeepSpeed's or torch's Adam is used (NVIDIA's is built from source)")


def examine_network(facts: Facts) -> Iterator[Finding]:
    """Interfaces that gloo and NCCL are told to use but that are not there; a host name that does not resolve."""
    known = ", ".join(facts.interfaces) or "none found"
    yield Finding(OK if facts.interfaces else NOTE, "network interfaces", known)
    for variable, value in facts.chosen_interfaces.items():
        prefixes = variable.startswith("NCCL")  # NCCL takes prefixes, "=exact" and "^not"; gloo takes exact names
        names = [name.lstrip("=") for name in value.split(",") if not (prefixes and value.startswith("^"))]
        gone = [n for n in names if not any(have == n or prefixes and have.startswith(n) for have in facts.interfaces)]
        if gone:
            yield Finding(BAD, variable, f"names {', '.join(gone)}, but the interfaces are {known}")
    if not facts.hostname_resolves and "GLOO_SOCKET_IFNAME" not in facts.chosen_interfaces:
        text = "this machine's own name does not resolve; set GLOO_SOCKET_IFNAME to one of the interfaces"
        yield Finding(NOTE, "host name", text)


# ---------------------------------------------------------------- looking


def look() -> Facts:
    """What is installed on this machine and what it has; nothing is judged here."""
    torch_error, accelerators = _torch()
    return Facts(
        versions=_versions(("torch", "deepspeed", "megatron-core", *NEEDED, *OPTIONAL)),
        torch_error=torch_error,
        accelerators=accelerators,
        core_helpers=_core_helpers(),
        apex=_apex(),
        compiler=_compiler(),
        interfaces=tuple(name for _, name in socket.if_nameindex()),
        chosen_interfaces={n: os.environ[n] for n in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if os.environ.get(n)},
        hostname_resolves=_resolves(),
        shm_free=shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None,
        home=_home(),
    )


def _home() -> str:
    """The package where pip put the templates, else the clone that it lies in."""
    package = Path(__file__).resolve().parent
    found = (str(home) for home in (package, package.parent) if (home / "launch" / "env.sh").is_file())
    return next(found, "")


def _versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _torch() -> tuple[str, tuple[str, ...]]:
    """Why torch cannot be imported, and the accelerators it sees."""
    if not _installed("torch"):
        return "", ()
    try:
        import torch
    except (ImportError, OSError) as error:  # a library that the wheel was built against is missing
        return str(error).splitlines()[0], ()
    if torch.cuda.is_available():
        return "", tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return "", ()


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _core_helpers() -> bool:
    """Looked up as a file: importing megatron.core takes seconds."""
    spec = importlib.util.find_spec("megatron")
    folders = () if spec is None else spec.submodule_search_locations or ()
    return any(list(Path(folder, "core", "datasets").glob("helpers_cpp*.so")) for folder in folders)


def _apex() -> str:
    if not _installed("apex"):
        return "absent"
    return "nvidia" if _installed("amp_C") else "other"


def _compiler() -> str:
    program = shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")
    if not program:
        return ""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else ""


def _resolves() -> bool:
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return False
    return True


def _table(findings: Sequence[Finding]) -> str:
    """A finding a line."""
    columns = [
        ("level", [finding.level for finding in findings]), ("subject", [finding.subject for finding in findings]),
        ("text", [finding.text for finding in findings]),
    ]  # fmt: skip
    return text_table(columns, {"level", "subject", "text"}, headings=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Print every finding. Returns 1 if one of them is BAD, else 0."""
    Parser(prog="ado-megatron doctor", description=__doc__.split("\n\n")[0]).parse_args(argv)
    findings = list(examine(look()))
    print(_table(findings))
    bad = sum(finding.level == BAD for finding in findings)
    print(f"{bad} problem{'s' * (bad != 1)}" if bad else "all that is needed is here")
    return 1 if bad else 0
