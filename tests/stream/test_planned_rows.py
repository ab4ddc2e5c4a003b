"""Rows of the planner, frozen: the digests are those of the planner that laid out one row after another in numpy."""

import hashlib
import json

import numpy as np
import pytest

from ado_megatron.mixer import planner as planner_module
from ado_megatron.stream.schedule import apportion
from tests.kit.planning import drive, planner_of, some_laws

STAGES = [
    {"block": 0, "weights": [1] * 22}, {"block": 9, "weights": [*range(1, 23)]}, {"block": 33, "weights": [2] * 22},
]  # fmt: skip

CASES = {
    "released": (dict(domains=22, profile="released"), "6cbc8c40b653fd92"),
    "paper": (dict(domains=22, profile="paper"), "ee5ca64ef2fe49b7"),
    "ado": (dict(domains=22, profile="ado"), "b74bf829ce5a1158"),
    "floor": (dict(domains=22, profile="ado", shape=0.1), "5d8785e7c9b22788"),
    "released floor": (dict(domains=22, profile="released", shape=0.1, block=64), "7ab3c00bbb875b20"),
    "rare": (dict(domains=40, profile="paper", shape=0.2, block=16), "d810bdad35882278"),
    "caps": (dict(domains=22, profile="ado", caps=0.6), "2a8f8fb18c25ed31"),
    "caps released": (dict(domains=22, profile="released", caps=0.6), "bff5772dca8967c4"),
    "groups": (dict(domains=11, profile="ado", groups=True), "08ce013cc8950099"),
    "groups and caps": (dict(domains=11, profile="paper", groups=True, caps=0.6), "9cf0f1120850c8cb"),
    "static": (dict(domains=22, policy="static"), "97295f03a7dede85"),
    "static caps": (dict(domains=22, policy="static", caps=0.7), "0c9bfce8885fb9c9"),
    "static groups and caps": (dict(domains=11, policy="static", groups=True, caps=0.7), "792d738744d83677"),
    "shadow": (dict(domains=22, profile="ado", shadow=True), "97295f03a7dede85"),
    "stages": (dict(domains=22, policy="stages"), "6262997040406c29"),
    "hundreds": (dict(domains=300, profile="released", block=2048), "dd442c0520faf508"),
    "hundreds rare": (dict(domains=300, profile="ado", block=256, shape=0.5), "5e5e4475f9ae48b6"),
    "thousands": (dict(domains=2000, profile="ado", block=2048), "bf9b3ed4b3efc2f0"),
}


def made(tmp_path, arguments):
    if arguments.get("policy") == "stages":
        (tmp_path / "stages.json").write_text(json.dumps(STAGES))
        arguments = arguments | {"stages": str(tmp_path / "stages.json")}
    return planner_of(tmp_path, **arguments)


def digest(rows_SxC) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows_SxC, dtype="<i4").tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", CASES)
def test_rows_are_the_frozen_ones(tmp_path, name):
    arguments, frozen = CASES[name]
    planner = made(tmp_path, arguments)
    rows_SxC = drive(planner)
    assert (rows_SxC.sum(axis=1) == planner.block_size).all()
    assert digest(rows_SxC) == frozen


@pytest.mark.parametrize("name", ["released", "ado", "groups and caps", "hundreds rare"])
def test_rows_are_the_frozen_ones_without_numba(tmp_path, name, monkeypatch):
    monkeypatch.setattr(planner_module, "kernels", lambda: None)
    arguments, frozen = CASES[name]
    assert digest(drive(made(tmp_path, arguments))) == frozen


def one_by_one(planner, num_rows, laws):
    """The recursion as it is defined: a step of the policy, its weights, a row. Rows, and weights in force."""
    domains, state = planner.domains, planner.policy.initial_state()
    credit_C = np.zeros(len(domains.prefixes_C))
    laid_out_C, rows, weights = np.zeros(len(credit_C), dtype=np.int64), [], []
    for s in range(num_rows):
        if rows:
            state = planner.policy.step(state, laws(s), domains.by_domain(rows[-1]))
        weights.append(domains.prior_K if planner.config.shadow else state.weights_K)
        left_C = None if planner.caps_C is None else planner.caps_C - laid_out_C
        weights_C = domains.weights_C(weights[-1])
        counts_C, credit_C = apportion(weights_C, planner.block_size, credit_C, left_C, domains.domain_of_C)
        rows.append(counts_C)
        laid_out_C = laid_out_C + counts_C
    return np.array(rows), np.array(weights), state


@pytest.mark.parametrize(
    "more",
    [
        {}, {"profile": "released"}, {"profile": "paper"}, {"caps": 0.6}, {"groups": True, "caps": 0.7},
        {"shadow": True}, {"policy": "static"}, {"policy": "plan"}, {"probe": 20.0, "probe_length": 3},
        {"policy": "plan", "probe": 20.0, "probe_length": 3}, {"max_change": 0.05},
        {"profile": "released", "credit_source": "policy", "clip_prior": True, "clip_target": "both"},
    ],
    ids=str,
)  # fmt: skip
def test_stretches_change_no_row_no_weight_and_no_state(tmp_path, more):
    """Laws come into force at block 15 (after the first step that may take them) and other ones at block 40."""
    planner = planner_of(tmp_path, domains=12, **more)
    transfer = planner.config.given_transfer
    first, second = some_laws(12, 1, transfer), some_laws(12, 2, transfer)
    rows = [planner.plan(5), planner.plan(10)]
    planner.laws = first
    rows += [planner.plan(25)]
    planner.laws = second
    rows += [planner.plan(20)]
    laws = lambda s: None if s < 15 else first if s < 40 else second  # noqa: E731
    rows_SxC, weights_SxK, state = one_by_one(planner_of(tmp_path, domains=12, **more), 60, laws)
    assert np.array_equal(np.concatenate(rows), rows_SxC)
    assert np.array_equal([planner.weights_K(b) for b in range(60)], weights_SxK)
    last = planner.policy.step(state, second, planner.domains.by_domain(rows_SxC[-1]))
    assert_same_state(planner.state, last)


@pytest.mark.parametrize(
    "more", [{}, {"profile": "paper", "caps": 0.7}, {"policy": "static"}, {"shadow": True}], ids=str
)
def test_the_point_of_any_block_is_found_again(tmp_path, more):
    """A planner that goes on from the sidecar of block b lays out the rows after b."""
    planner = planner_of(tmp_path, domains=12, **more)
    rows_SxC = drive(planner)
    for block in (0, 3, 7, 12, 19, 20, 21, 33, 41, 59, 60):
        point = planner._point(block)
        assert point.block == block
        assert point.laid_out_C.tolist() == rows_SxC[:block].sum(axis=0).tolist()
        stop = next(stop for stop in (7, 20, 21, 41, 60, 61) if stop > block)  # where the next call of `plan` began
        more_SxC, end = planner._lay_out(point, min(stop, 60) - block)
        assert np.array_equal(more_SxC, rows_SxC[block : end.block])


def assert_same_state(one, other):
    for name, value in one.to_arrays().items():
        assert np.array_equal(value, other.to_arrays()[name]), name
