"""What a run grants, and the sentence for what it does not."""

import numpy as np
import pytest

from ado_megatron.errors import UserError
from ado_megatron.steer.check import what_of
from ado_megatron.steer.steering import Steering
from tests.kit.mixing import config, domains

WEIGHTS = np.array([0.5, 0.3, 0.2])


def asked(steering=None, conf=None, doms=None, **asked):
    conf = conf or config()
    return what_of(asked, domains=doms or domains(conf), config=conf, steering=steering or Steering(),
                   weights_K=WEIGHTS)  # fmt: skip


def test_relative_shares_refer_to_the_weights_in_force():
    assert asked(pins={"code": "-0.5", "wiki": "+0.1"})["pins"] == {"code": 0.25, "wiki": pytest.approx(0.33)}


def test_what_is_said_of_all_is_journalled_by_domain():
    assert asked(floor={"": 0.01, "wiki": None})["floor"] == {"code": 0.01, "wiki": None, "maths": 0.01}
    assert asked(max_epochs={"": 4.0, "wiki": 2})["max_epochs"] == {"code": 4.0, "wiki": 2.0, "maths": 4.0}
    doms = domains(weights=(1.0, 1.0, 0.0))
    assert asked(doms=doms, floor={"": 0.01})["floor"] == {"code": 0.01, "wiki": 0.01}  # not what is never drawn


def test_targets_are_journalled_as_weights():
    assert asked(target="uniform")["target"] == dict.fromkeys(("code", "wiki", "maths"), pytest.approx(1 / 3))
    assert asked(target={"wiki": 3, "maths": 1})["target"] == {"wiki": 0.75, "maths": 0.25}
    assert asked(target="natural")["target"]["code"] == pytest.approx(1000 / 1370)


def test_unpinning_one_and_all():
    steering = Steering(pins={"code": 0.1, "wiki": 0.2})
    assert asked(steering, unpin=["wiki"])["pins"] == {"wiki": None}
    assert asked(steering, unpin=[""])["pins"] == {"code": None, "wiki": None}


@pytest.mark.parametrize(
    ("steering", "change", "sentence"),
    [
        ({}, {"pins": {"law": 0.1}}, "there is no domain 'law'; the domains are code, wiki, maths"),
        ({}, {"pins": {"code": 0.8, "wiki": 0.3}}, "pins and floors sum to 1.1"),
        ({}, {"pins": {"code": 0.2, "wiki": 0.3, "maths": 0.4}}, "pins and ceilings leave at most 0.9"),
        ({"pins": {"code": 0.8}}, {"floor": {"": 0.15}}, "sum to 1.1"),
        ({"floor": {"code": 0.4}}, {"pins": {"code": 0.3}}, "cannot be pinned at 0.3: it has a floor 0.4"),
        ({"ceiling": {"code": 0.4}}, {"pins": {"code": 0.5}}, "it has a ceiling 0.4"),
        ({"ceiling": {"code": 0.4}}, {"floor": {"code": 0.5}}, "floor 0.5 above its ceiling 0.4"),
        ({}, {"ceiling": {"": 0.3}}, "leave at most 0.9"),
        ({}, {"unpin": ["code"]}, "domain 'code' is not pinned; pinned are none"),
        ({}, {"unpin": [""]}, "no domain is pinned"),
        ({}, {"hold": False}, "not held"),
        ({"hold": True}, {"hold": True}, "held already"),
        ({}, {"policy": "stages"}, "cannot become stages"),
        ({}, {"policy": "plam"}, "there is no policy of this name (did you mean plan?)"),
        ({}, {"target": "best"}, "the target is one of prior, natural, uniform"),
        ({}, {"target": {"law": 1}}, "there is no domain 'law'"),
        ({}, {"max_epochs": {"wiki": -1}}, "a positive number of epochs, not -1"),
        ({}, {"pins": {"wiki": 7}}, "a share is from 0 to 1, not 7"),
        ({}, {"lr": 3}, "a change is one of pins"),
        ({}, {}, "not nothing"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(steering, change, sentence):
    with pytest.raises(UserError) as error:
        asked(Steering(**steering), **change)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_policy_in_shadow_is_refused():
    with pytest.raises(UserError, match="only measures"):
        asked(conf=config(shadow=True), policy="plan")
