"""Which run a directory belongs to: only its continuation may write there; a start that never trained owns nothing."""

import json

import numpy as np
import pytest

from ado_megatron import cli
from ado_megatron.errors import UserError
from ado_megatron.trainer.check_data import check_data
from ado_megatron.trainer.options import parse
from ado_megatron.trainer.run_dir import check_run_dir, run_identity, write_identity
from tests.kit.training import write_prefix
from tests.trainer.test_check_data import NAMES, data, no_launch, pretrain  # noqa: F401  fixtures


def identity_of(argv, dp=1):
    """(options, config, identity) of a command line."""
    options, config = parse(argv[1:])
    return options, config, run_identity(options, config, check_data(options), dp)


def test_a_run_of_another_configuration_is_refused_and_left_alone(data, tmp_path, capsys):  # noqa: F811
    argv = pretrain(tmp_path, "--data", data)
    options, config = parse(argv[1:])
    (tmp_path / "run").mkdir()
    theirs = json.dumps(run_identity(options, config, check_data(options), 1))
    (tmp_path / "run" / "config.json").write_text(theirs)
    cases = [
        ([], "already holds this run; add --resume"),
        (["--resume", "--lr", "0.5"], "belongs to another configuration: --lr was 0.002, is 0.5"),
        (["--resume", "--tp", "2"], "another configuration: --tp was 1, is 2"),
        (["--resume", "--num-processes", "2"], "data-parallel ranks was 1, is 2"),
        (["--resume", "--ado-credit-rate", "0.77"], "--ado-credit-rate was 0.1, is 0.77"),
    ]
    for extra, words in cases:
        assert cli.main([*argv, *extra]) == 2
        assert words in capsys.readouterr().err
    write_prefix(data / NAMES[0], [np.arange(50)] * 30)
    assert cli.main([*argv, "--resume"]) == 2
    assert "its data (prefixes, their contents or weights) is another" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
    assert (tmp_path / "run" / "config.json").read_text() == theirs


def test_a_start_that_never_trained_may_be_corrected(data, tmp_path):  # noqa: F811
    run, argv = tmp_path / "run", pretrain(tmp_path, "--data", data)
    write_identity(run, identity_of(argv)[2], trained=False)
    (run / "ado").mkdir()
    check_run_dir(*identity_of([*argv, "--lr", "0.5"]))
    write_identity(run, identity_of(argv)[2], trained=True)
    with pytest.raises(UserError, match="--lr was 0.002, is 0.5"):
        check_run_dir(*identity_of([*argv, "--lr", "0.5"]))
    write_identity(run, identity_of(argv)[2], trained=False)
    (run / "checkpoints" / "step_4").mkdir(parents=True)  # it did train
    with pytest.raises(UserError, match="already holds this run"):
        check_run_dir(*identity_of(argv))


@pytest.mark.parametrize("content", [b"[1, 2]", b"{}", b"\x80\xff", b"", b'{"options": 3, "ado": {}, "layout": {}}',
                                     b"[" * 100_000])  # fmt: skip
def test_a_damaged_config_is_a_sentence_and_the_newest_whole_goes_on(content, data, tmp_path):  # noqa: F811
    run, argv = tmp_path / "run", pretrain(tmp_path, "--data", data)
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_bytes(content)
    for more in ([], ["--resume"]):
        with pytest.raises(UserError, match="config.json is damaged.*no other checkpoint is whole") as caught:
            check_run_dir(*identity_of([*argv, *more]))
        assert "\n" not in str(caught.value)
    check_run_dir(*identity_of([*argv, "--resume=newest-whole"]))


def test_a_config_of_the_version_before_is_continued(data, tmp_path):  # noqa: F811
    """It counted --steps as a part of the run, and knew nothing of the content of its data."""
    run, argv = tmp_path / "run", pretrain(tmp_path, "--data", data, "--resume")
    old = json.loads(json.dumps(identity_of(argv)[2]))
    old["options"]["steps"] = 300
    old["data"] = old["data"] | {side: [prefix[:4] for prefix in old["data"][side]] for side in ("train", "valid")}
    run.mkdir()
    (run / "config.json").write_text(json.dumps(old))
    check_run_dir(*identity_of([*argv, "--steps", "500"]))
    write_prefix(data / NAMES[0], [np.arange(50)] * 30)
    with pytest.raises(UserError, match="its data"):
        check_run_dir(*identity_of(argv))


def test_other_content_of_the_same_size_is_other_data(data, tmp_path):  # noqa: F811
    run, argv = tmp_path / "run", pretrain(tmp_path, "--data", data, "--resume")
    write_identity(run, identity_of(argv)[2], trained=True)
    check_run_dir(*identity_of(argv))
    path = data / f"{NAMES[1]}.bin"
    path.write_bytes(path.read_bytes()[::-1].replace(b"\xff", b"\x00"))
    tokens = np.fromfile(path, dtype=np.uint16)
    (tokens % 200).tofile(path)
    with pytest.raises(UserError, match="its data .prefixes, their contents or weights. is another"):
        check_run_dir(*identity_of(argv))
