"""Options: what the command line may say, and the sentences for the rest."""

import signal

import pytest

from ado_megatron.errors import UserError
from ado_megatron.trainer.options import TrainerOptions, exit_signals, parse


def options(**changes) -> TrainerOptions:
    return TrainerOptions(**(dict(run_dir="r", data="d") | changes))


def test_a_command_line_gives_both_configs():
    ours, ado = parse(
        "--run-dir r --data-path 0.5 a 0.5 b --tp 2 --bf16 --rampup-batch-size 8 8 64 --no-progress --ado-policy "
        "static".split()
    )
    assert (ours.data_path, ours.tp, ours.bf16, ours.progress) == (("0.5", "a", "0.5", "b"), 2, True, False)
    assert ours.rampup_batch_size == (8, 8, 64)
    assert ado.policy == "static"


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(hidden=30), "--hidden 30 is not a multiple of --heads 4"),
        (dict(tp=3), "--heads 4 cannot be split over --tp 3"),
        (dict(pp=5), "--pp 5 is more than --layers 4"),
        (dict(zero=2), "--zero must be one of 0, 1, not 2"),
        (dict(lr=float("nan")), "--lr must be finite"),
        (dict(steps=0), "--steps must be at least 1"),
        (dict(run_dir=""), "--run-dir is missing"),
        (dict(data=None), "exactly one of"),
        (dict(data_path=("a", "b")), "exactly one of"),
        (dict(rampup_batch_size=(8, 7, 100)), "whole increments"),
        (dict(lr_decay="sqrt"), "--lr-decay must be one of"),
    ],
)
def test_a_bad_option_is_one_sentence_with_its_flag(changes, words):
    with pytest.raises(UserError, match=words) as caught:
        options(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("argv", [["--steps", "many"], ["--no-such-flag"], ["--tp"]])
def test_argparse_complaints_are_user_errors(argv):
    with pytest.raises(UserError, match="--help"):
        parse(["--run-dir", "r", "--data", "d", *argv])


def test_the_world_must_divide():
    with pytest.raises(UserError, match="3 processes cannot be split into --tp 2"):
        options(tp=2).check_world(3)
    with pytest.raises(UserError, match="a step of 32 samples is not a multiple of --micro-batch 8 × 3"):
        options().check_world(3)
    assert options(tp=2).check_world(4) == 2


def test_identity_ignores_what_does_not_change_the_run():
    assert options(num_workers=3, save_interval=7, run_dir="other").identity() == options().identity()
    assert options(lr=1e-4).identity() != options().identity()


def test_a_run_may_be_longer_or_shorter_on_a_resume():
    assert options(steps=10).identity() == options(steps=20).identity()


@pytest.mark.parametrize(
    "argv, value",
    [([], False), (["--resume"], True), (["--resume=newest-whole"], "newest-whole"), (["--no-resume"], False),
     (["--resume", "newest-whole", "--no-resume"], False), (["--resume", "--lr", "0.1"], True)],
)  # fmt: skip
def test_resume_stands_alone_or_names_a_way(argv, value):
    assert parse(["--run-dir", "r", "--data", "d", *argv])[0].resume == value


def test_another_word_after_resume_is_refused():
    with pytest.raises(UserError, match="--resume stands alone or is one of newest-whole, not 'oldest'"):
        parse(["--run-dir", "r", "--data", "d", "--resume=oldest"])
    with pytest.raises(UserError, match="--no-resume takes no value"):
        parse(["--run-dir", "r", "--data", "d", "--no-resume=newest-whole"])


def test_signals_by_name():
    term, ctrl_c = int(signal.SIGTERM), int(signal.SIGINT)
    assert exit_signals(options()) == [term, ctrl_c]
    for name in ("USR1", "sigusr1", "SIGUSR1"):
        assert exit_signals(options(exit_signal=name)) == [term, ctrl_c, int(signal.SIGUSR1)]
    for name in ("KILL", "_DFL", "NOSUCH", "CHLD"):
        with pytest.raises(UserError, match=f"--exit-signal {name} is no signal"):
            options(exit_signal=name)
