"""The doctor's judgements, from written-down facts; and that it can look at this machine."""
import dataclasses
import re
from pathlib import Path

import pytest

from ado_megatron import cli, doctor
from ado_megatron.doctor import BAD, NOTE, OK, Facts, examine

GOOD = Facts(
    python=(3, 11),
    versions={"torch": "2.13.0+cpu", "deepspeed": "0.19.8", "megatron-core": "0.16.1", "numpy": "2.4.6",
              "scipy": "1.17.1", "sentencepiece": "0.2.3", "tqdm": "4.70.1", "matplotlib": "3.11.2", "plotly": "7.1.0",
              "tensorboard": "2.21.0", "rich": "15.0.0", "jinja2": "3.1.6",
              "zstandard": "0.25.0", "tokenizers": "0.23.3", "orjson": "3.13.0", "PyYAML": "6.0.3", "numba": "0.68.0",
              "wandb": "0.31.0", "mlflow": "3.17.2", "prometheus_client": "0.26.0"},
    core_helpers=True, compiler="g++ 12", interfaces=("lo", "eth0"), shm_free=1 << 30,
)  # fmt: skip


def finding(subject, **changes):
    if "versions" in changes:
        merged = {**GOOD.versions, **changes["versions"]}
        changes["versions"] = {name: version for name, version in merged.items() if version}
    found = [f for f in examine(dataclasses.replace(GOOD, **changes)) if f.subject == subject]
    return found[0] if found else None


def test_a_good_machine_has_nothing_to_remark():
    assert {f.level for f in examine(GOOD)} == {OK}


@pytest.mark.parametrize("name", ["torch", "deepspeed", "megatron-core", *doctor.NEEDED])
def test_what_is_needed_and_missing_is_bad_and_says_how_to_install_it(name):
    found = finding(name, versions={name: None})
    assert found.level == BAD and f"pip install {name}" in found.text


@pytest.mark.parametrize("name", doctor.OPTIONAL)
def test_what_is_optional_and_missing_is_a_note_that_says_how_to_install_it(name):
    found = finding(name, versions={name: None})
    assert found.level == NOTE and found.text.endswith(f"; pip install {name}")


def test_what_is_needed_or_optional_is_what_setup_py_asks_for():
    setup = Path(doctor.__file__).parents[1].joinpath("setup.py").read_text()
    known = {"torch", "deepspeed", "megatron-core", *doctor.NEEDED, *doctor.OPTIONAL}
    tools = {"pybind11", "setuptools", "pytest", "pytest-timeout", "hypothesis", "ruff", "mypy",
             "selenium"}  # to build and test
    assert set(re.findall(r'^ +"(?:\w+": \[")?([A-Za-z][\w-]*)[><=]=', setup, re.M)) - tools == known


@pytest.mark.parametrize(
    ("version", "level", "words"),
    [
        ("0.19.8", OK, "0.19.8"),
        ("0.19.4", OK, "0.19.4"),
        ("0.19.0", BAD, "silently wrong"),
        ("0.18.4", BAD, "silently wrong"),
        ("0.18.9", BAD, "ZeRO-1"),
        ("0.18.9+abc", BAD, "ZeRO-1"),
        ("0.17.6", BAD, "gradient norm too high"),
        ("0.16.9", BAD, "gradient norm too high"),
        ("0.18.5", NOTE, "not tried"),
        ("0.20.0", NOTE, "not tried"),
    ],
)
def test_deepspeed_versions_known_to_train_pipelines_wrongly(version, level, words):
    found = finding("deepspeed", versions={"deepspeed": version})
    assert found.level == level and words in found.text


@pytest.mark.parametrize(
    ("python", "version", "level"),
    [
        ((3, 11), "0.16.1", OK),
        ((3, 11), "0.19.2", NOTE),
        ((3, 12), "0.16.1", OK),
        ((3, 12), "0.16.0", NOTE),
        ((3, 13), "0.19.2", OK),
        ((3, 13), "0.20.0", NOTE),
    ],
)
def test_megatron_core_is_judged_by_the_python_that_it_runs_on(python, version, level):
    assert finding("megatron-core", python=python, versions={"megatron-core": version}).level == level


def test_the_pins_are_those_of_the_package():
    pins = Path(__file__).parent.parent.joinpath("setup.py").read_text()
    least, below = doctor.TORCH
    assert f'"torch>={least[0]}.{least[1]},<{below[0]}.{below[1]}"' in pins
    assert f"\"megatron-core=={doctor.MEGATRON_CORE}; python_version < '3.12'\"" in pins
    below = doctor.MEGATRON_CORE_BELOW
    assert f"\"megatron-core>={doctor.MEGATRON_CORE},<{below}; python_version >= '3.12'\"" in pins
    pinned = re.search(r'"deepspeed==([\d.]+)"', pins).group(1)
    assert pinned in doctor.DEEPSPEED_RIGHT
    assert finding("deepspeed", versions={"deepspeed": None}).text.endswith(f"deepspeed=={pinned}")
    assert '"apex' not in pins


@pytest.mark.parametrize(
    ("version", "level"), [("2.10.9", NOTE), ("2.11.0", OK), ("2.13.1+cu130", OK), ("2.14.0", NOTE)]
)
def test_torch_outside_what_was_tried_is_a_note(version, level):
    assert finding("torch", versions={"torch": version}).level == level


def test_a_torch_that_cannot_be_imported_is_bad():
    found = finding("torch", torch_error="libcudart.so.13: cannot open shared object file")
    assert found.level == BAD and "libcudart" in found.text


def test_the_unrelated_apex_is_named_and_the_real_one_welcomed():
    assert finding("apex", apex="other").level == NOTE
    assert "not NVIDIA's" in finding("apex", apex="other").text
    assert "FusedAdam" in finding("apex", apex="nvidia").text
    assert finding("apex").level == OK


def test_apex_is_told_by_its_compiled_part(monkeypatch):
    present = {"apex"}
    monkeypatch.setattr(doctor, "_installed", lambda module: module in present)
    assert doctor._apex() == "other"
    present.add("amp_C")
    assert doctor._apex() == "nvidia"
    present.clear()
    assert doctor._apex() == "absent"


def test_helpers_not_compiled_are_bad_only_without_a_compiler():
    assert finding("index helpers", core_helpers=False).level == NOTE
    assert finding("index helpers", core_helpers=False, compiler="").level == BAD
    assert finding("index helpers", compiler="").level == OK


@pytest.mark.parametrize(
    ("value", "nccl", "gloo"),
    [("eth0", None, None), ("eth0,lo", None, None), ("eth", None, BAD), ("^docker", None, BAD), ("ib0", BAD, BAD)],
)
def test_an_interface_that_does_not_exist_is_bad(value, nccl, gloo):
    for variable, level in (("NCCL_SOCKET_IFNAME", nccl), ("GLOO_SOCKET_IFNAME", gloo)):
        found = finding(variable, chosen_interfaces={variable: value})
        assert (found and found.level) == level


def test_a_name_that_does_not_resolve_matters_unless_an_interface_is_chosen():
    assert finding("host name", hostname_resolves=False).level == NOTE
    chosen = {"GLOO_SOCKET_IFNAME": "lo"}
    assert finding("host name", hostname_resolves=False, chosen_interfaces=chosen) is None


def test_little_shared_memory_and_an_old_python():
    assert finding("shared memory", shm_free=64 << 20).level == NOTE
    assert finding("Python", python=(3, 9)).level == BAD


def test_this_machine_is_looked_at(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ok    deepspeed +0\.19\.\d+$", out, re.M)
    assert re.search(r"^ok    index helpers +compiled$", out, re.M)
    assert out.endswith("all that is needed is here\n")


def test_exit_code_1_when_something_needed_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "look", lambda: dataclasses.replace(GOOD, versions={"torch": "2.13.0"}))
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "BAD   deepspeed" in out and out.endswith("10 problems\n")
