"""A session between hooks: what it refuses, what it saves, what must not stop a training."""

import contextlib
import io

import pytest
import torch

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.hosts import hooks
from ado_megatron.hosts.run_facts import RunFacts
from ado_megatron.hosts.session import Session
from ado_megatron.hosts.takeover import sidecar_path
from tests.kit.ranks import run_ranks


def test_shadow_mode_says_why_it_measures_nothing_and_goes_on(capsys):
    with pytest.raises(UserError, match="no mixture"):
        Session(AdoConfig()).refuse("there is no mixture")
    session = Session(AdoConfig(shadow=True))
    session.refuse("there is no mixture")
    session.refuse("there is no mixture")
    assert session.silent and capsys.readouterr().out == "ado: nothing is measured in this run: there is no mixture\n"


@pytest.fixture
def run(tmp_path):
    """facts → a session that trains one step of eight samples and saves, as the hooks have it do."""

    def train(consumed, **changes):
        facts = RunFacts(
            total_samples=80, block_size=8, micro_batch=8, dp=1, num_workers=0, iteration=consumed // 8,
            consumed_samples=consumed, save=str(tmp_path), load=str(tmp_path), tensorboard=None, log_interval=1,
            contributes=True, device="cpu", layout={},
        )  # fmt: skip
        session = Session(AdoConfig(policy="static", **changes.pop("config", {})))
        prefixes = changes.pop("prefixes", ["a/wiki", "a/code"])
        for name, value in changes.items():
            setattr(session, name, value)
        session.resume(facts)
        session.train_set([range(50), range(50)], [0.5, 0.5], prefixes, 80, "dataset_id")
        session.open(facts)
        session.begin()
        session.end(consumed + 8, skipped=True)
        token = session.save(str(tmp_path), consumed // 8 + 1, consumed + 8)
        session.close()
        return token

    return train


def test_a_sidecar_is_believed_with_the_token_of_its_checkpoint_or_without_any(run):
    token = run(0)
    assert run(8, saved_token=token) and run(8, saved_token=None)


@pytest.mark.parametrize("config", [{}, {"accept_changes": True}])
def test_a_sidecar_of_another_save_is_refused(config, run):
    run(0)
    with pytest.raises(UserError, match="state_1.ado was not written with this checkpoint"):
        run(8, saved_token="0123456789abcdef", config=config)


def _damaged(rank, directory):
    """This rank's exit code and what it printed, when rank zero finds a damaged sidecar."""
    facts = RunFacts(
        total_samples=80, block_size=8, micro_batch=4, dp=2, num_workers=0, iteration=1, consumed_samples=8,
        save=directory, load=directory, tensorboard=None, log_interval=1, contributes=True, device="cpu", layout={},
    )  # fmt: skip
    session, printed = Session(AdoConfig()), io.StringIO()
    pretrain = hooks.pretrain(session, None, lambda: session.resume(facts))
    with contextlib.redirect_stderr(printed), pytest.raises(SystemExit) as leaving:
        pretrain()
    torch.distributed.barrier()
    return leaving.value.code, printed.getvalue().count("state_1.ado"), printed.getvalue().count("\n")


def test_an_error_on_rank_zero_ends_every_rank_with_one_sentence_and_code_two(tmp_path):
    path = sidecar_path(tmp_path, 1)
    path.parent.mkdir()
    path.write_bytes(b"no sidecar")
    ended = run_ranks(_damaged, 3, str(tmp_path))
    assert [code for code, _, _ in ended] == [2, 2, 2]
    assert sum(sentences for _, sentences, _ in ended) == 1 and sum(lines for _, _, lines in ended) == 1


def test_no_sidecar_no_token():
    assert Session(AdoConfig()).save("somewhere", 1, 8) is None


# ---------------------------------------------------------------- what the data is


@pytest.fixture
def prefixes(tmp_path):
    for name in ("wiki", "code"):
        (tmp_path / f"{name}.bin").write_bytes(name.encode() * 50_000)
    return [str(tmp_path / "wiki"), str(tmp_path / "code")]


def test_a_bin_of_the_same_size_with_other_content_is_refused_on_a_resume(run, prefixes, tmp_path):
    run(0, prefixes=prefixes)
    (tmp_path / "code.bin").write_bytes(b"doce" * 50_000)
    with pytest.raises(UserError, match="state_1.ado was written with the data .*/code of other contents "):
        run(8, prefixes=prefixes)
    assert run(8, prefixes=prefixes, config={"accept_changes": True})


def test_data_that_has_moved_goes_on(run, prefixes, tmp_path):
    run(0, prefixes=prefixes)
    (tmp_path / "elsewhere").mkdir()
    for prefix in prefixes:
        (tmp_path / f"{prefix}.bin").rename(tmp_path / "elsewhere" / f"{prefix.rpartition('/')[2]}.bin")
    moved = [f"{tmp_path}/elsewhere/{prefix.rpartition('/')[2]}" for prefix in prefixes]
    with pytest.raises(UserError, match="--ado-accept-data moved accepts this change"):
        run(8, prefixes=moved)
    assert run(8, prefixes=moved, config={"accept_data": "moved"})


def test_one_file_by_two_paths_is_refused(run, prefixes, tmp_path):
    (tmp_path / "link.bin").symlink_to(tmp_path / "wiki.bin")
    with pytest.raises(UserError, match="the train blend names one domain twice: .*wiki.bin and .*link.bin"):
        run(0, prefixes=[*prefixes[:1], str(tmp_path / "link")])
