"""Batch ramp and learning rate: pure, against tables and against megatron-core's own calculator."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ado_megatron.trainer.step_plan import StepPlan
from tests.kit import core
from tests.trainer.test_options import options


@pytest.mark.parametrize("ramp, total", [((8, 8, 200), 32), ((16, 16, 1), 32), ((4, 4, 1000), 40), ((32, 8, 50), 32)])
def test_the_ramp_is_megatrons(ramp, total):
    plan = StepPlan(options(rampup_batch_size=ramp, global_batch=total, micro_batch=1))
    theirs = core.batch_ramp(total, *ramp)
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
