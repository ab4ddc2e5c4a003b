"""Our options taken out of a launch line."""

import pytest

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.hosts.arguments import parse, split_arguments


@pytest.mark.parametrize(
    ("line", "ours", "theirs"),
    [
        ("s.py --lr 1 --ado-audit --bf16", "--ado-audit", "s.py --lr 1 --bf16"),
        ("s.py --ado-seed 3 --data-path 0.5 a 0.5 b", "--ado-seed 3", "s.py --data-path 0.5 a 0.5 b"),
        ("s.py --ado-seed=3 x --no-ado-shadow y", "--ado-seed=3 --no-ado-shadow", "s.py x y"),
        ("s.py --lr 1 --ado-off --ado-prior natural -- z", "--ado-off --ado-prior natural", "s.py --lr 1 -- z"),
    ],
)  # fmt: skip
def test_our_options_are_taken_out_and_the_order_of_the_others_stays(line, ours, theirs):
    assert split_arguments(line.split()) == (ours.split(), theirs.split())


def test_the_launchers_local_rank_goes_behind_the_script(tmp_path):
    script = tmp_path / "pretrain_gpt.py"
    script.write_text("")
    config, path, arguments = parse(["--local_rank=1", str(script), "--lr", "1", "--ado-refit-interval", "7"])
    assert config == AdoConfig(refit_interval=7) and path == str(script)
    assert arguments == ["--local_rank=1", "--lr", "1"]


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text("")
    file = tmp_path / "ado options.yaml"
    file.write_text("refit-interval: 7\naudit: true\nado_seed: 4\nprior: natural\nshadow: false\nlead: null\n")
    monkeypatch.setenv("ADO_OPTIONS", f"--ado-options '{file}' --ado-seed 5 --no-ado-audit --ado-log-interval=3")
    config, path, rest = parse([str(tmp_path / "script.py"), "--ado-log-interval", "2", "seed=8"])
    assert config == AdoConfig(refit_interval=7, audit=False, seed=5, prior="natural", log_interval=2)
    assert path.endswith("script.py") and rest == ["seed=8"]


@pytest.mark.parametrize(
    ("environment", "file", "sentence"),
    [
        ("--lr 1", "{}", "ADO_OPTIONS says '--lr', which is no option of ours"),
        ("--ado-seed '1", "{}", "ADO_OPTIONS cannot be cut into words"),
        ("--ado-options FILE", "[audit]", "must hold names and values"),
        ("--ado-options FILE", "{sead: 3}", "names 'sead', which is no option"),
        ("--ado-options FILE", "{a: ]", "is neither JSON nor YAML"),
        ("--ado-options FILE/none", "{}", "none cannot be read"),
    ],
)
def test_options_that_cannot_be_read_are_refused_in_a_sentence(environment, file, sentence, tmp_path, monkeypatch):
    (tmp_path / "options").write_text(file)
    monkeypatch.setenv("ADO_OPTIONS", environment.replace("FILE", str(tmp_path / "options")))
    with pytest.raises(UserError, match=sentence):
        parse([__file__])
