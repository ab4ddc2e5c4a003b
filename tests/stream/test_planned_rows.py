"""Rows of the planner, frozen: the digests are those of the planner that laid out one row after another in numpy."""

import hashlib
import json

import numpy as np
import pytest

from tests.kit.planning import drive, planner_of

STAGES = [{"block": 0, "weights": [1] * 22}, {"block": 9, "weights": [*range(1, 23)]}, {"block": 33, "weights": [2] * 22}]

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
