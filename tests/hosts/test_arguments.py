"""Our options taken out of a launch line."""

import pytest

from ado_megatron.config import AdoConfig
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
