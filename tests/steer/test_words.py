"""What an operator may write, and what is said where it is no change."""

import pytest

from ado_megatron.errors import UserError
from ado_megatron.steer import words


def test_shares_absolute_and_relative():
    got = words.shares(["code=.3", "wiki=30%", "a=b=+10%", "law=-50%", "bad=0"], "set")
    assert got == {"code": 0.3, "wiki": 0.3, "a=b": "+0.1", "law": "-0.5", "bad": 0.0}


def test_bounds_and_epochs_for_all_and_by_domain():
    assert words.bounds(".01, maths=5%,web=none", "--floor") == {"": 0.01, "maths": 0.05, "web": None}
    assert words.epochs("4,wiki=2.5", "--max-epochs") == {"": 4.0, "wiki": 2.5}
    assert words.expanded({"": 4.0, "wiki": 2.5}, ["code", "wiki"]) == {"code": 4.0, "wiki": 2.5}
    assert words.expanded({"wiki": 2.5}, ["code", "wiki"]) == {"wiki": 2.5}


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: words.shares(["code"], "set"), "set code: write code=.3, wiki=30% or wiki=+10%"),
        (lambda: words.shares(["code="], "set"), "set code=: write code=.3"),
        (lambda: words.shares(["code=much"], "set"), "set code=much: 'much' is no number"),
        (lambda: words.shares(["code=nan"], "set"), "'nan' is no number"),
        (lambda: words.shares(["code=1.5"], "set"), "a share is from 0 to 1"),
        (lambda: words.shares(["code=+.1"], "set"), "in per cent of it, such as code="),
        (lambda: words.shares(["code=-100%"], "set"), "code=0 takes it out"),
        (lambda: words.shares(["code=.1", "code=.2"], "set"), "'code' stands there twice"),
        (lambda: words.bounds("", "--floor"), "--floor: nothing is given"),
        (lambda: words.bounds("wiki=2", "--floor"), "--floor wiki=2: a share is from 0 to 1"),
        (lambda: words.epochs("wiki=0", "--max-epochs"), "a positive number of epochs, or none"),
    ],
)
def test_what_is_no_change_is_refused_in_one_sentence(call, sentence):
    with pytest.raises(UserError) as error:
        call()
    assert sentence in str(error.value) and "\n" not in str(error.value)
