"""What is set by hand, and what weights it makes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ado_megatron.steer.journal import Entry, extra_refits, in_force, last_that_counts, next_change
from ado_megatron.steer.steering import Steering, bounds, can_hold, caps_C, shaped, target_K
from tests.kit.mixing import config, domains

NAMES = ("code", "wiki", "maths")


def bent(steering, weights_K):
    return shaped(np.array(weights_K), *bounds(steering, NAMES))


@pytest.mark.parametrize(
    ("steering", "weights_K", "expected_K"),
    [
        (Steering(), [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]),
        (Steering(pins={"code": 0.2}), [0.5, 0.3, 0.2], [0.2, 0.48, 0.32]),  # the others keep their proportion 3 : 2
        (Steering(pins={"code": 0.0}), [0.5, 0.3, 0.2], [0.0, 0.6, 0.4]),
        (Steering(pins={"code": 1.0}), [0.5, 0.3, 0.2], [1.0, 0.0, 0.0]),
        (Steering(pins={"maths": 0.1}), [0.6, 0.4, 0.0], [0.54, 0.36, 0.1]),  # a domain that was not drawn before
        (Steering(floor={"maths": 0.4}), [0.5, 0.3, 0.2], [0.375, 0.225, 0.4]),
        (Steering(ceiling={"code": 0.25}), [0.5, 0.3, 0.2], [0.25, 0.45, 0.3]),
        (Steering(pins={"code": 0.6}, ceiling={"wiki": 0.1}), [0.5, 0.3, 0.2], [0.6, 0.1, 0.3]),
        (Steering(floor={"code": 0.4}), [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]),  # kept already
        (Steering(pins={"gone": 0.4}), [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]),
        (Steering(pins={"code": 0.5, "wiki": 0.3}), [0.6, 0.4, 0.0], [0.6, 0.4, 0.0]),  # cannot be met: given up
    ],
)
def test_weights_are_bent_to_what_is_set(steering, weights_K, expected_K):
    np.testing.assert_allclose(bent(steering, weights_K), expected_K, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(2, 40))
@settings(max_examples=150, deadline=None)
def test_bent_weights_keep_sum_bounds_and_the_proportions_of_free_domains(seed, num):
    rng = np.random.default_rng(seed)
    weights_K = rng.dirichlet(np.full(num, 0.3))
    names = [str(k) for k in range(num)]
    some = rng.permutation(num)[: rng.integers(0, num)]
    share_K = rng.dirichlet(np.ones(num)) * rng.uniform(0, 1)
    pins = {str(k): float(share_K[k]) for k in some[::3]}
    floor = {str(k): float(share_K[k]) for k in some[1::3]}
    ceiling = {str(k): float(rng.uniform(0.05, 1)) for k in some[2::3]}
    lower_K, upper_K = bounds(Steering(pins=pins, floor=floor, ceiling=ceiling), names)
    new_K = shaped(weights_K, lower_K, upper_K)
    assert abs(new_K.sum() - 1) < 1e-12 and (new_K >= 0).all()
    if not can_hold(weights_K > 0, lower_K, upper_K):
        assert (new_K == weights_K).all()
        return
    assert (new_K >= lower_K - 1e-12).all() and (new_K <= upper_K + 1e-12).all()
    free_K = (new_K > lower_K + 1e-9) & (new_K < upper_K - 1e-9) & (weights_K > 1e-9)
    ratio = new_K[free_K] / weights_K[free_K]
    if len(ratio):
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    np.testing.assert_allclose(shaped(new_K, lower_K, upper_K), new_K, atol=1e-12)


def entry(id, block, **what):
    return Entry(id, block, block - 3, "ann@node", "2026-01-01 00:00:00 +0000", what, {})


JOURNAL = [
    entry(1, 10, pins={"code": 0.3}, floor={"wiki": 0.1}),
    entry(2, 40, pins={"wiki": 0.2}),  # asked for with --at-step
    entry(3, 20, pins={"code": None}, hold=True),
    entry(4, 30, undo=3),
    entry(5, 50, undo=2),
    entry(6, 60, refit_after=55),
]


@pytest.mark.parametrize(
    ("block", "pins", "hold"),
    [(0, {}, False), (9, {}, False), (10, {"code": 0.3}, False), (20, {}, True), (30, {"code": 0.3}, False),
     (40, {"code": 0.3, "wiki": 0.2}, False), (49, {"code": 0.3, "wiki": 0.2}, False), (50, {"code": 0.3}, False)],
)  # fmt: skip
def test_what_holds_in_a_block(block, pins, hold):
    steering = in_force(JOURNAL, block)
    assert (steering.pins, steering.hold) == (pins, hold)
    assert steering.floor == ({} if block < 10 else {"wiki": 0.1})


def test_an_undo_before_its_entry_came_into_force_withdraws_it():
    journal = [entry(1, 10, hold=True), entry(2, 5, undo=1)]
    assert not in_force(journal, 10).hold and not in_force(journal, 99).hold


def test_boundaries_extra_refits_and_what_an_undo_takes_back():
    assert [next_change(JOURNAL, block) for block in (0, 10, 39, 60)] == [10, 20, 40, None]
    assert extra_refits(JOURNAL) == {55}
    assert last_that_counts(JOURNAL).id == 1  # 2 and 3 are undone
    assert last_that_counts(JOURNAL[:3]).id == 3 and last_that_counts([]) is None


def test_before_says_what_was_in_the_same_form():
    steering = Steering(pins={"code": 0.3}, max_epochs={"wiki": 2.0}, policy="plan")
    what = {"pins": {"code": 0.5, "wiki": 0.1}, "max_epochs": {"wiki": None}, "policy": "ado", "hold": True}
    assert steering.before(what) == {
        "pins": {"code": 0.3, "wiki": None}, "max_epochs": {"wiki": 2.0}, "policy": "plan", "hold": False
    }  # fmt: skip
    assert steering.changed(what).changed(steering.before(what)) == steering


def test_caps_and_target():
    doms, conf = domains(), config(max_epochs="2,maths=1")
    assert caps_C(conf, doms, Steering()).tolist() == [2000, 600, 70]
    open_C = caps_C(conf, doms, Steering(max_epochs={"wiki": 4.0, "code": None}))
    assert open_C[1:].tolist() == [1200, 70] and open_C[0] > 1 << 60
    assert caps_C(config(), doms, Steering()) is None
    np.testing.assert_allclose(target_K(Steering(target={"wiki": 3.0, "maths": 1.0}), NAMES), [0, 0.75, 0.25])
    assert target_K(Steering(), NAMES) is None
