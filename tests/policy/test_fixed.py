"""Static weights and declared stages."""

import json

import numpy as np
import pytest

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.policy import PolicyContext, make_policy
from tests.kit.policies import LAWS, NAMES, PRIOR, run


def test_static_weights_never_move():
    weights, state = run(AdoConfig(policy="static"), np.array([[6, 3, 1]] * 4))
    np.testing.assert_array_equal(weights, np.tile(PRIOR, (4, 1)))
    assert state.step == 4 and state.samples_K.tolist() == [24, 12, 4]


def test_stages_by_block(tmp_path):
    path = tmp_path / "stages.json"
    path.write_text(json.dumps([{"block": 1, "weights": {"a": 1, "c": 3}}, {"block": 3, "weights": [1, 1, 2]}]))
    policy = make_policy(AdoConfig(policy="stages", stages=str(path)), PolicyContext(PRIOR, names_K=NAMES))
    state, rows = policy.initial_state(), []
    for _ in range(4):
        rows.append(state.weights_K.tolist())
        state = policy.step(state, None, [1, 0, 0])
    assert rows == [PRIOR.tolist(), [0.25, 0.0, 0.75], [0.25, 0.0, 0.75], [0.25, 0.25, 0.5]]


@pytest.mark.parametrize("content", [
    "not json", "[]", '[{"block": 2, "weights": [1, 1, 1]}, {"block": 1, "weights": [1, 1, 1]}]',
    '[{"block": 0, "weights": [1, 1]}]', '[{"block": 0, "weights": {"zebra": 1}}]',
    '[{"block": 0, "weights": [0, 0, 0]}]',
    '[{"block": 1e999, "weights": [1, 1, 1]}]', "[" * 100_000,
    '[{"block": 0, "weights": [1, -1, 1]}]', '[{"weights": [1, 1, 1]}]', '[{"block": 0, "weights": ["x", 1, 1]}]',
])
def test_bad_stages_are_refused(tmp_path, content):
    path = tmp_path / "stages.json"
    path.write_text(content)
    with pytest.raises(UserError, match="stages"):
        make_policy(AdoConfig(policy="stages", stages=str(path)), PolicyContext(PRIOR, names_K=NAMES))


@pytest.mark.parametrize(("content", "reason"), [(b"\x80\x81", "it is not UTF-8 text: byte 0"), (None, "No such file")])
def test_stages_that_cannot_be_read_are_refused_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "stages.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"cannot read stages from .*stages.json \({reason}"):
        make_policy(AdoConfig(policy="stages", stages=str(path)), PolicyContext(PRIOR, names_K=NAMES))


def test_how_long_fixed_weights_hold(tmp_path):
    path = tmp_path / "stages.json"
    path.write_text(json.dumps([{"block": 3, "weights": [1, 1, 2]}, {"block": 7, "weights": [1, 0, 0]}]))
    static = make_policy(AdoConfig(policy="static"), PRIOR)
    stages = make_policy(AdoConfig(policy="stages", stages=str(path)), PRIOR)
    state = stages.initial_state()
    assert static.constant_until(state, LAWS, 50) == 50
    assert [stages.constant_until(state, LAWS, stop) for stop in (2, 50)] == [2, 3]
    moved = stages.step(stages.step(stages.step(state, None, [1, 0, 0]), None, [1, 0, 0]), None, [1, 0, 0])
    assert stages.constant_until(moved, None, 50) == 7
    assert static.constant_until(moved, None, 50) == 4  # weights of another policy hold for the present block alone
