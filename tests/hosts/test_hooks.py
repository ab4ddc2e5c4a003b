"""Hook points are checked, all of them, and a script's functions are found."""

import functools

import pytest

from ado_megatron.errors import UserError
from ado_megatron.hosts import hooks


def test_hook_points_that_do_not_fit_are_all_named():
    point = hooks.HookPoint
    good = point("json", "JSONEncoder.encode", ("self", "o"))
    bad = [
        point("no_such_module", "train", ()),
        point("json", "no_such_function", ()),
        point("json", "dumps", ("thing",)),
        point("json", "__doc__", ()),
    ]
    hooks.check([good], "checkout")
    with pytest.raises(UserError) as error:
        hooks.check([good, *bad], "checkout")
    for text in (
        "no_such_module cannot be imported", "json.no_such_function does not exist", "json.dumps takes (obj,",
        "expected to begin with (thing)", "json.__doc__ is not a function", "5 hook points were tried",
    ):  # fmt: skip
        assert text in str(error.value)


def test_the_script_is_found_behind_partials_and_wrappers():
    def forward_step(batch, model):
        return batch

    @functools.wraps(forward_step)
    def outer(*args):
        return forward_step(*args)

    assert hooks.script_globals(functools.partial(outer, 1)) is globals()
