"""The state of a policy: what is saved comes back, and old states still load."""

import numpy as np
import pytest

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.policy import make_policy
from ado_megatron.policy.state import PolicyState, normalised, state_at
from tests.kit.policies import LAWS, PRIOR


def test_state_round_trip_goes_on_equally():
    policy = make_policy(AdoConfig(profile="paper", start_step=0), PRIOR)
    state = policy.step(policy.initial_state(), LAWS, np.array([5, 3, 2]))
    back = PolicyState.from_arrays(state.to_arrays())
    for counts in ([1, 2, 7], [3, 3, 4]):
        state, back = policy.step(state, LAWS, counts), policy.step(back, LAWS, counts)
    np.testing.assert_array_equal(state.weights_K, back.weights_K)
    assert back.step == 3


def test_every_field_comes_back():
    extra = {"momentum_K": np.array([0.5, -1.0, 2.0]), "seen": np.array(3)}
    state = PolicyState(7, PRIOR, PRIOR[::-1], PRIOR, np.array([4, 5, 6]), np.array([0.4, 0.4, 0.2]), PRIOR[::-1],
                        (1 << 63) - 5, "it moved", extra)  # fmt: skip
    back = PolicyState.from_arrays(state.to_arrays())
    assert (back.step, back.solved_for, back.note) == (7, (1 << 63) - 5, "it moved")
    for name in ("weights_K", "average_K", "credit_K", "samples_K", "base_K", "anchor_K"):
        np.testing.assert_array_equal(getattr(back, name), getattr(state, name))
    assert back.extra.keys() == extra.keys()
    np.testing.assert_array_equal(back.extra["momentum_K"], extra["momentum_K"])


def test_states_of_before_there_were_plans_load():
    old = {"step": np.int64(4), "weights_K": PRIOR, "average_K": PRIOR, "credit_K": PRIOR, "samples_K": np.arange(3)}
    state = PolicyState.from_arrays(old)
    np.testing.assert_array_equal(state.base_K, PRIOR)
    np.testing.assert_array_equal(state.anchor_K, PRIOR)
    assert (state.step, state.solved_for, state.note, state.extra) == (4, 0, "", {})


def test_many_blocks_at_once_count_like_one_by_one():
    state = state_at(PRIOR, PRIOR)
    rows = np.array([[5, 3, 2], [4, 4, 2], [6, 2, 2]])
    slow = state
    for counts_K in rows:
        slow = slow.after(counts_K)
    fast = state.after(rows.sum(0), blocks=3)
    assert fast.step == slow.step == 3
    assert fast.samples_K.tolist() == slow.samples_K.tolist() == [15, 9, 6]


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -0.5], [np.nan, 1.0], [np.inf, 1.0], [[1.0, 2.0]]])
def test_weights_that_are_none_are_refused_by_name(weights):
    with pytest.raises(UserError, match="the blend: weights must be finite"):
        normalised(weights, "the blend")


def test_weights_are_normalised():
    np.testing.assert_array_equal(normalised([2, 1, 1]), [0.5, 0.25, 0.25])
