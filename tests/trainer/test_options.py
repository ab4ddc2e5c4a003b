"""Options, batch ramp and learning rate: pure, against tables and against megatron-core's own calculator."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ado_megatron.errors import UserError
from ado_megatron.trainer.options import TrainerOptions, parse
from ado_megatron.trainer.step_plan import StepPlan


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


@pytest.mark.parametrize("ramp, total", [((8, 8, 200), 32), ((16, 16, 1), 32), ((4, 4, 1000), 40), ((32, 8, 50), 32)])
def test_the_ramp_is_megatrons(ramp, total):
    from megatron.core.num_microbatches_calculator import (
        ConstantNumMicroBatchesCalculator,
        RampupBatchsizeNumMicroBatchesCalculator,
    )

    plan = StepPlan(options(rampup_batch_size=ramp, global_batch=total, micro_batch=1))
    if ramp[0] == total:
        theirs = ConstantNumMicroBatchesCalculator(total, 1, 1, False, 1)
    else:
        theirs = RampupBatchsizeNumMicroBatchesCalculator(total, 1, 1, False, 1, *ramp)
    consumed = 0
    for step in range(120):
        theirs.update(consumed, False)
        assert (plan.batch_size(step), plan.consumed(step)) == (theirs.get_current_global_batch_size(), consumed)
        consumed += plan.batch_size(step)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 5), st.booleans())
def test_micro_batches_of_all_ranks_cover_the_rest_of_the_run_once(dp, micro, first_step, ramped):
    batch = micro * dp * 4
    ramp = (batch // 2, batch // 4, 3 * batch) if ramped else None
    plan = StepPlan(options(steps=6, micro_batch=micro, global_batch=batch, rampup_batch_size=ramp))
    ranks = [list(plan.micro_batches(first_step, dp, rank)) for rank in range(dp)]
    assert len({len(rank) for rank in ranks}) == 1
    together = list(itertools.chain.from_iterable(itertools.chain.from_iterable(zip(*ranks, strict=True))))
    assert together == list(range(plan.consumed(first_step), plan.total_samples))


def test_learning_rates_by_hand():
    plan = StepPlan(options(steps=12, lr=1.0, min_lr=0.2, lr_warmup_steps=2, lr_decay="linear"))
    assert [round(plan.learning_rate(step), 6) for step in (0, 1, 2, 7, 12)] == [0.5, 1.0, 1.0, 0.6, 0.2]
    cosine = StepPlan(options(steps=12, lr=1.0, lr_warmup_steps=2))
    assert [round(cosine.learning_rate(step), 6) for step in (2, 7, 12)] == [1.0, 0.55, 0.1]
    assert StepPlan(options(steps=12, lr=0.3, lr_decay="constant", lr_warmup_steps=0)).learning_rate(11) == 0.3


def test_identity_ignores_what_does_not_change_the_run():
    assert options(num_workers=3, save_interval=7, run_dir="other").identity() == options().identity()
    assert options(lr=1e-4).identity() != options().identity()
