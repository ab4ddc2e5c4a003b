"""deepspeed_hostfile.sh: arguments and environment reach the nodes as they were given, or nothing starts."""

import itertools
import re
import shlex
import subprocess

import pytest

from tests.kit.launching import (
    HOME,
    LAUNCH,
    assert_our_module_runs_the_users_script,
    assert_the_nodes_environment,
    deepspeed_options,
    environment,
    launch,
    records,
    start,
)


def test_deepspeed_with_a_hostfile_forwards_what_the_nodes_need(place):
    ((argv, environment_),) = launch(place, "deepspeed_hostfile.sh", NCCL_SOCKET_IFNAME="ib0")
    options = assert_our_module_runs_the_users_script(place, deepspeed_options(argv), deepspeed=True)
    assert not options.no_ssh and options.launcher == "pdsh"
    assert options.hostfile == str(LAUNCH / "hostfile")
    assert_the_nodes_environment(environment_)
    forwarded = dict(line.split("=", 1) for line in (place / "records" / "0.file").read_text().splitlines())
    assert_the_nodes_environment(forwarded)
    assert forwarded["GLOO_SOCKET_IFNAME"] == "ib0"


def remote_line(argv, env_file, rank=1):
    """What the node's shell is given: the command line as DeepSpeed's own pdsh runner builds it, as pdsh expands it."""
    from deepspeed.launcher.multinode_runner import PDSHRunner

    options = deepspeed_options(argv)[0]
    options.master_addr = "node0"
    runner = PDSHRunner(options, "e30=")
    for line in env_file.read_text().splitlines():
        runner.add_export(*line.split("=", maxsplit=1))
    line = " ".join(runner.get_cmd({}, {"node0": 8, "node1": 8})[0])
    return re.sub("%(.)", lambda m: {"n": str(rank), "h": "node1", "u": "me", "%": "%"}[m[1]], line)


SPECIAL = " \t\n\\'\"$`%;|&<>*?[]{}()~!#^=nhu"
PAIRS = [f"{head}{one}{two}b" for head in ("", "a") for one, two in itertools.product(SPECIAL, repeat=2)]
WORDS = ["", " ", "%n", "%%n", "$HOME", "two words $HOME %n `id`", '{"a": "b c"}', "*", "a;touch x", "|", "é ü", *PAIRS]


def test_every_argument_and_variable_passes_launcher_pdsh_and_remote_shell(place):
    job = place / "job.sh"
    job.write_text(f'. "$ADO_HOME/launch/job.sh"\nADO=({" ".join(map(shlex.quote, WORDS))})\n')
    paths = "/a dir/$HOME:/b`id`:/%n:/c\\d"
    ((argv, _),) = launch(place, "deepspeed_hostfile.sh", JOB=job, PYTHONPATH=paths)
    line = remote_line(argv, place / "run" / "deepspeed_env")
    exports, command = line[line.index("export ") :].split("cd ", 1)
    words = command[command.index("pretrain_gpt.py") :]
    show = exports + "printf '%s\\0' \"$PYTHONPATH\" " + words
    for shell in ("sh", "bash"):
        shown = subprocess.run([shell, "-c", show], capture_output=True, check=True, env={}, cwd=place).stdout.decode()
        path, *given = shown.split("\0")[:-1]
        assert path == f"{HOME}:{paths}"
        assert given[-len(WORDS) :] == WORDS


def forwarded(place):
    lines = (place / "run" / "deepspeed_env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_the_users_deepspeed_env_goes_along_and_wins(place, monkeypatch):
    monkeypatch.chdir(place / "checkout")
    (place / ".deepspeed_env").write_text('MY_KEY=a "b" $HOME\n\n# no\nNCCL_SOCKET_IFNAME=ib7\nPYTHONPATH=/mine')
    (place / "checkout" / ".deepspeed_env").write_text("HERE=1\n")
    launch(place, "deepspeed_hostfile.sh", NCCL_SOCKET_IFNAME="ib0")
    found = forwarded(place)
    assert found["MY_KEY"] == 'a "b" $HOME', "as the launcher itself would read it"
    assert (found["NCCL_SOCKET_IFNAME"], found["GLOO_SOCKET_IFNAME"], found["HERE"]) == ("ib7", "ib0", "1")
    assert found["PYTHONPATH"] == f"{HOME}:/mine"
    assert (place / "run" / "deepspeed_env").stat().st_mode & 0o77 == 0


def test_a_ds_env_file_takes_the_place_of_deepspeed_env(place):
    (place / ".deepspeed_env").write_text("NOT=this\n")
    (place / "named").write_text("THIS=one\n")
    launch(place, "deepspeed_hostfile.sh", DS_ENV_FILE=place / "named")
    assert forwarded(place)["THIS"] == "one" and "NOT" not in forwarded(place)


@pytest.mark.parametrize(
    "hostfile, line, directory, sentence",
    [
        ("missing", "A=1", "checkout", "there is no hostfile missing; the launcher would run everything on this node"),
        (LAUNCH / "hostfile", "export", "checkout", ".deepspeed_env has the line 'export', which is no NAME=VALUE"),
        (LAUNCH / "hostfile", "A=1", "a $(dir)", "start it in a directory without special characters"),
    ],
)
def test_what_cannot_reach_the_nodes_is_refused_before_anything_starts(place, hostfile, line, directory, sentence):
    (place / ".deepspeed_env").write_text(line + "\n")
    (place / directory).mkdir(exist_ok=True)
    given = {"CHECKOUT": place / "checkout", "RUN": place / "run", "ADO_HOME": HOME}
    done = start("deepspeed_hostfile.sh", hostfile, env=environment(place, **given), cwd=place / directory)
    assert done.returncode == 2 and sentence in done.stdout and done.stdout.count("\n") == 1, done.stdout
    assert records(place) == []
