"""Stand-ins for modules that Megatron-DeepSpeed imports and does not use."""

import importlib
import sys

import pytest

from ado_megatron.hosts.cpu.megatron_deepspeed import StubFinder


def test_a_stand_in_is_offered_for_the_named_modules_alone(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, StubFinder(("absent_vision", "json"))])
    models = importlib.import_module("absent_vision.models")
    assert isinstance(models.ResNet, type) and models.ResNet.__module__ == "absent_vision.models"
    assert not hasattr(models, "__wrapped__")
    assert importlib.import_module("json").dumps([1]) == "[1]", "an installed module wins"
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("absent_visions")
    for name in ("absent_vision", "absent_vision.models"):
        sys.modules.pop(name)
