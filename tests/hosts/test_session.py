"""A session between hooks: what it refuses, what it saves, what must not stop a training."""

import pytest

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.hosts.session import Session


def test_shadow_mode_says_why_it_measures_nothing_and_goes_on(capsys):
    with pytest.raises(UserError, match="no mixture"):
        Session(AdoConfig()).refuse("there is no mixture")
    session = Session(AdoConfig(shadow=True))
    session.refuse("there is no mixture")
    session.refuse("there is no mixture")
    assert session.silent and capsys.readouterr().out == "ado: nothing is measured in this run: there is no mixture\n"
