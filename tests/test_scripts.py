"""The set-up under launch/demo.sh and tests/run.sh, on a made-up Python that only writes down what is asked of it, and
the table of tests/matrix.sh."""
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FAKE = """#!/bin/bash
echo "$@" >> "$ASKED"
case "$1" in
  -) exit "$NO_TORCH" ;;
  -c) echo 2.12.0; exit "${TOO_OLD:-0}" ;;
  -m) case "$2" in
        venv) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
        pip) exit "${PIP_FAILS:-0}" ;;
      esac ;;
esac
"""


@pytest.fixture
def set_up(tmp_path):
    (tmp_path / "python").write_text(FAKE)
    (tmp_path / "python").chmod(0o755)

    def run(no_torch=1, **variables):
        asked = tmp_path / "asked"
        asked.write_text("")
        environment = {"PATH": os.environ["PATH"], "ASKED": str(asked), "ADO_VENV": str(tmp_path / "venv"),
                       "PYTHON": str(tmp_path / "python"), "NO_TORCH": str(no_torch), **variables}  # fmt: skip
        line = f"set -euo pipefail; source {ROOT}/launch/venv.sh; echo ready $python"
        done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True)
        return done, [words for words in asked.read_text().splitlines() if words.startswith("-m")]

    return run


def test_a_first_run_installs_torch_and_the_package_and_a_second_nothing(set_up, tmp_path):
    done, asked = set_up()
    assert done.stdout.endswith(f"ready {tmp_path}/venv/bin/python\n")
    assert asked == [f"-m venv {tmp_path}/venv", "-m pip install --quiet torch==2.13.0",
                     f"-m pip install --quiet -e {ROOT}[report,test]"]  # fmt: skip
    done, asked = set_up()
    assert done.stdout == f"ready {tmp_path}/venv/bin/python\n" and asked == []


def test_a_torch_that_is_there_is_kept(set_up, tmp_path):
    done, asked = set_up(no_torch=0)
    assert "keeping torch 2.12.0" in done.stdout
    assert asked == [f"-m venv --system-site-packages {tmp_path}/venv",
                     f"-m pip install --quiet -e {ROOT}[report,test]"]  # fmt: skip


def test_an_install_that_failed_is_tried_again(set_up):
    done, _ = set_up(PIP_FAILS="1")
    assert done.returncode != 0 and "ready" not in done.stdout
    done, asked = set_up()
    assert len(asked) == 2 and "ready" in done.stdout


def test_a_stamp_of_another_state_is_not_believed(set_up, tmp_path):
    set_up()
    (tmp_path / "venv" / ".ado-megatron-installed").write_text("another clone")
    assert len(set_up()[1]) == 2


def test_no_python_is_said_in_one_sentence(set_up):
    done, asked = set_up(TOO_OLD="1")
    assert done.returncode == 2 and asked == []
    assert done.stderr.startswith("error: no Python 3.10 or newer found") and done.stderr.count("\n") == 1


def test_demo_refuses_what_it_does_not_know(set_up, tmp_path):
    set_up()
    environment = {"PATH": os.environ["PATH"], "ASKED": os.devnull, "NO_TORCH": "0", "ADO_VENV": str(tmp_path / "venv"),
                   "PYTHON": str(tmp_path / "python"), "ADO_DEMO": str(tmp_path / "demo")}  # fmt: skip
    line = ["bash", str(ROOT / "launch" / "demo.sh"), "--fast"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: demo.sh takes --fresh or nothing, not --fast\n"
    assert not (tmp_path / "demo").exists()


# ---------------------------------------------------------------- tests/matrix.sh


def matrix(tmp_path, run_sh, *programs):
    """tests/matrix.sh in a clone whose tests/run.sh makes an environment of this interpreter and then does `run_sh`."""
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "matrix.sh", tmp_path / "tests")
    make = f"""mkdir -p "$ADO_VENV/bin"; printf '#!/bin/sh\\nexec {sys.executable} "$@"' > "$ADO_VENV/bin/python"
chmod +x "$ADO_VENV/bin/python"
"""
    (tmp_path / "tests" / "run.sh").write_text(make + run_sh)
    line = ["bash", str(tmp_path / "tests" / "matrix.sh"), *programs]
    return subprocess.run(line, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("run_sh", "code", "cell"),
    [
        ("echo 12 passed, 1 skipped in 3.10s", 0, "12 passed, 1 skipped in 3.10s"),
        ("echo '===== 1 failed, 11 passed in 2.00s ====='; exit 1", 1, "1 failed, 11 passed in 2.00s"),
        ("echo no room left; exit 3", 1, "exit code 3"),
    ],
)
def test_the_matrix_prints_a_row_for_a_python_and_fails_where_its_tests_do(tmp_path, run_sh, code, cell):
    done = matrix(tmp_path, run_sh, sys.executable)
    assert done.returncode == code, done.stderr
    row = done.stdout.splitlines()[-1].split(" | ")
    assert row[0] == f"| {platform.python_version()}" and row[1] == version("torch") and row[-1] == f"{cell} |"


def test_the_matrix_refuses_what_is_no_python(tmp_path):
    done = matrix(tmp_path, "", "/no/such/python")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: /no/such/python is no Python that runs\n"
