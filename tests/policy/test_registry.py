"""Policies by name, and a user's own class that an installed package brings."""

import argparse

import pytest

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.policy import PolicyContext, make_policy, registry
from ado_megatron.policy.ado import AdoPolicy
from ado_megatron.policy.fixed import StaticPolicy
from ado_megatron.policy.plan import PlanPolicy
from tests.kit.policies import LAWS, NAMES, OWN, PRIOR, install_policies, is_distribution, walk

BROKEN = '''
def unmakeable(config, context):
    raise RuntimeError("no disk")

nothing = 3
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with entry points: `mine`, and three that are broken each in its own way."""
    install_policies(tmp_path, monkeypatch, OWN + BROKEN, mine="Mine", unmakeable="unmakeable", nothing="nothing",
                     absent="own_policies_that_are_not_there:X")  # fmt: skip


def parse(*argv):
    parser = argparse.ArgumentParser()
    AdoConfig.add_arguments(parser)
    return AdoConfig.from_args(parser.parse_args(argv))


def test_every_built_in_name_makes_its_class(tmp_path):
    made = {name: type(make_policy(AdoConfig(policy=name), PRIOR)) for name in ("ado", "plan", "measure", "static")}
    assert made == {"ado": AdoPolicy, "plan": PlanPolicy, "measure": StaticPolicy, "static": StaticPolicy}
    assert isinstance(make_policy(AdoConfig(policy="plan", shadow=True), PRIOR), StaticPolicy)
    assert set(made) | {"stages"} == set(registry.BUILT_IN)


def test_help_lists_the_built_in_policies():
    parser = argparse.ArgumentParser()
    AdoConfig.add_arguments(parser)
    text = parser.format_help()
    assert all(f"({name})" in text.replace("\n", " ") for name in registry.BUILT_IN)


def test_an_unknown_name_is_one_sentence_with_the_names_there_are():
    with pytest.raises(UserError) as caught:
        parse("--ado-policy", "plann")
    said = str(caught.value)
    assert "plann" in said and "did you mean plan?" in said and "ado, plan, measure, static, stages" in said
    assert "\n" not in said
    with pytest.raises(UserError, match="plann"):
        make_policy(AdoConfig(policy="plann"), PRIOR)


def test_a_saved_config_of_a_policy_that_is_not_installed_can_be_read():
    assert AdoConfig.from_dict(AdoConfig(policy="mine").to_dict()).policy == "mine"


def test_a_class_of_the_users_own_works_by_name(package):
    config = parse("--ado-policy", "mine", "--ado-start-step", "3")
    assert config.refit_at(3)  # its laws are fitted
    policy = make_policy(config, PolicyContext(PRIOR, names_K=NAMES))
    weights, state = walk(policy, [[5, 3, 2], [4, 4, 2]], LAWS)
    assert weights.tolist() == [[0.2, 0.2, 0.6]] * 2
    assert (state.step, state.samples_K.tolist(), int(state.extra["seen"]), state.note) == (2, [9, 7, 4], 2, "")
    assert registry.policy_names()[5:] == ("absent", "mine", "nothing", "unmakeable")


@pytest.mark.parametrize("name, said", [
    ("absent", "cannot be loaded (ModuleNotFoundError"), ("nothing", "is no class"),
    ("unmakeable", "cannot be made (RuntimeError: no disk)"),
])
def test_an_entry_point_that_cannot_be_used_is_one_sentence(package, name, said):
    with pytest.raises(UserError) as caught:
        make_policy(AdoConfig(policy=name), PRIOR)
    assert said in str(caught.value) and f"--ado-policy {name}" in str(caught.value)


def test_a_policy_of_ones_own_can_be_probed(package):
    policy = make_policy(AdoConfig(policy="mine", probe=10.0, probe_length=1), PRIOR)
    weights, state = walk(policy, [[5, 3, 2]] * 8)
    assert all(map(is_distribution, weights)) and state.base_K.tolist() == [0.2, 0.2, 0.6]
    assert (abs(weights - [0.2, 0.2, 0.6]) > 1e-3).any()
