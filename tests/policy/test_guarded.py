"""A user's policy that fails: the run keeps the last good weights, says so, and goes on."""

import dataclasses

import numpy as np
import pytest

from ado_megatron.errors import UserError
from ado_megatron.policy import PolicyContext
from ado_megatron.policy.guarded import GuardedPolicy
from ado_megatron.policy.state import state_at
from tests.kit.policies import PRIOR, is_distribution

GOOD = np.array([0.2, 0.2, 0.6])


class Scripted:
    """Answers step t with script[t]: weights, an exception to raise, or a function of the state."""

    def __init__(self, *script):
        self.script = script

    def initial_state(self):
        return state_at(PRIOR, PRIOR)

    def step(self, state, laws, counts_K):
        answer = self.script[state.step]
        if isinstance(answer, Exception):
            raise answer
        return answer(state) if callable(answer) else dataclasses.replace(state, weights_K=answer)


def guarded(*script):
    return GuardedPolicy(Scripted(*script), "mine", PolicyContext(PRIOR))


@pytest.mark.parametrize("bad", [
    RuntimeError("out of\nideas"), np.array([0.5, 0.5]), np.array([0.5, 0.6, -0.1]), np.array([0.5, np.nan, 0.5]),
    np.array([0.5, 0.3, 0.3]), np.array([np.inf, 0.0, 0.0]), np.zeros(3), "abc", None, lambda state: None,
    lambda state: GOOD, lambda state: dataclasses.replace(state, extra={"x": object()}),
], ids=lambda bad: type(bad).__name__)
def test_the_last_good_weights_stay_and_the_note_says_why(bad):
    policy = guarded(GOOD, bad, bad, GOOD[::-1].copy())
    state = policy.step(policy.initial_state(), None, [5, 3, 2])
    assert state.note == "" and state.weights_K.tolist() == GOOD.tolist()
    first = policy.step(state, None, [5, 3, 2])
    assert first.weights_K.tolist() == GOOD.tolist()
    assert first.note.startswith("policy mine failed, its last good weights stay (") and "\n" not in first.note
    second = policy.step(first, None, [5, 3, 2])
    assert second.note == first.note  # a caller that logs changes logs it once
    assert (second.step, second.samples_K.tolist()) == (3, [15, 9, 6])
    back = policy.step(second, None, [5, 3, 2])
    assert back.weights_K.tolist() == GOOD[::-1].tolist()


def test_the_reason_is_in_the_note():
    policy = guarded(ZeroDivisionError("by nought"))
    assert "(ZeroDivisionError in step: by nought)" in policy.step(policy.initial_state(), None, [1, 1, 1]).note


def test_steps_and_samples_are_counted_here():
    policy = guarded(lambda state: dataclasses.replace(state, step=99, samples_K=np.zeros(3), credit_K=None))
    state = policy.step(policy.initial_state(), None, [5, 3, 2])
    assert (state.step, state.samples_K.tolist()) == (1, [5, 3, 2])
    np.testing.assert_array_equal(state.credit_K, PRIOR)
    assert all(value.dtype != object for value in state.to_arrays().values())


def test_weights_a_little_off_are_normalised():
    policy = guarded(GOOD * (1 + 1e-8))
    assert abs(policy.step(policy.initial_state(), None, [1, 1, 1]).weights_K.sum() - 1) < 1e-15


def test_a_first_state_that_fails_is_the_prior():
    policy = guarded()
    policy.policy.initial_state = lambda: 1 / 0
    state = policy.initial_state()
    assert is_distribution(state.weights_K) and state.weights_K.tolist() == PRIOR.tolist()
    assert "ZeroDivisionError in initial_state" in state.note


def test_a_users_own_sentence_passes():
    def factory(config, context):
        raise UserError("give --ado-groups")

    with pytest.raises(UserError, match="^give --ado-groups$"):
        GuardedPolicy.make(factory, "mine", None, PolicyContext(PRIOR))


def test_spans_are_the_policys_own_where_they_fit():
    policy = guarded()
    assert [(w.tolist(), n) for w, n in policy.spans(2, 9)] == [(PRIOR.tolist(), 7)]
    policy.policy.spans = lambda first, stop: [(GOOD, 3), (PRIOR, stop - first - 3)]
    assert [(w.tolist(), n) for w, n in policy.spans(2, 9)] == [(GOOD.tolist(), 3), (PRIOR.tolist(), 4)]
    policy.policy.spans = lambda first, stop: [(GOOD, 3)]
    assert [(w.tolist(), n) for w, n in policy.spans(2, 9)] == [(PRIOR.tolist(), 7)]
