"""Which measures are applied, and when."""

import sys

import pytest

from ado_megatron.hosts import cpu


@pytest.mark.parametrize(("value", "wanted"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_the_measures_are_off_unless_the_environment_asks(value, wanted, monkeypatch):
    monkeypatch.delenv(cpu.CPU_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(cpu.CPU_VARIABLE, value)
    assert cpu.wanted() is wanted


@pytest.mark.parametrize("framework", ["megatron_lm", "megatron_bridge", "megatron_deepspeed"])
def test_each_framework_has_its_own_measures(framework, monkeypatch):
    calls = []
    module = f"ado_megatron.hosts.cpu.{framework}"
    __import__(module)
    for name in ("before_import", "after_import"):
        monkeypatch.setattr(sys.modules[module], name, lambda name=name: calls.append(name))
    cpu.install(framework)
    cpu.after_import(framework)
    assert calls == ["before_import", "after_import"]
