"""AdoConfig: flags, validation, profiles."""

import argparse
import dataclasses

import pytest

from ado_megatron import profiles
from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError


def parse(*argv):
    parser = argparse.ArgumentParser()
    AdoConfig.add_arguments(parser)
    return AdoConfig.from_args(parser.parse_args(argv))


def test_no_flags_give_the_defaults():
    assert parse() == AdoConfig()


def test_every_field_has_help_and_a_flag():
    parser = argparse.ArgumentParser()
    AdoConfig.add_arguments(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    for spec in dataclasses.fields(AdoConfig):
        assert len(spec.metadata["help"]) > 10
        assert "--ado-" + spec.name.replace("_", "-") in flags
    assert "--ado-own-n" in parser.format_help()


@pytest.mark.parametrize(
    "argv, name, value",
    [
        (["--ado-profile", "released"], "profile", "released"),
        (["--ado-own-n"], "own_n", True),
        (["--no-ado-own-n"], "own_n", False),
        (["--ado-fit-lag", "0"], "fit_lag", 0),
        (["--ado-min-share", "0.002"], "min_share", 0.002),
        (["--ado-shadow"], "shadow", True),
        (["--ado-max-epochs", "4,wiki=2"], "max_epochs", "4,wiki=2"),
    ],
)
def test_flags_reach_their_fields(argv, name, value):
    assert getattr(parse(*argv), name) == value


@pytest.mark.parametrize(
    "values",
    [
        {"profile": "best"},
        {"refit_interval": 0},
        {"refit_interval": 10.5},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"own_n": 1},
        {"seed": True},
        {"min_share": -0.1},
        {"credit_rate": 1.5},
        {"smoothing_window": 100},
        {"smoothing_window": 3, "smoothing_order": 3},
        {"alpha_min": 0.9, "profile": "released"},
        {"epsilon_min_share": 0.9, "epsilon_max_share": 0.5},
        {"min_share": 0.5, "max_share": 0.2},
        {"policy": "stages"},
        {"stages": "x.json"},
        {"lead": 0},
    ],
)
def test_bad_values_are_refused(values):
    with pytest.raises(UserError) as caught:
        AdoConfig(**values)
    assert any(name in str(caught.value).replace("-", "_") for name in values)


def test_resolved_fills_every_option_and_keeps_the_users():
    config = AdoConfig(profile="released", own_n=True).resolved()
    expected = profiles.profile("released") | {"own_n": True}
    assert {name: getattr(config, name) for name in profiles.OPTIONS} == expected


def test_every_profile_entry_is_a_valid_field():
    for name in profiles.NAMES:
        values = profiles.profile(name)
        assert set(values) <= {spec.name for spec in dataclasses.fields(AdoConfig)}
        assert AdoConfig(profile=name, **values).resolved() == AdoConfig(profile=name).resolved()


def test_refits_of_released_are_multiples_of_the_interval():
    config = AdoConfig(profile="released", start_step=100, refit_interval=50)
    assert [step for step in range(260) if config.refit_at(step)] == [100, 150, 200, 250]


def test_early_refits_double_until_the_interval():
    config = AdoConfig(start_step=100, refit_interval=1000, early_refits=True)
    assert [step for step in range(3001) if config.refit_at(step)] == [100, 200, 400, 800, 1000, 2000, 3000]


def test_a_run_measures_fits_and_keeps_the_prior_unless_it_is_told_otherwise():
    config = AdoConfig(start_step=100)
    assert config.value("policy") == "measure" and config.refit_at(1000)
    assert [AdoConfig(profile=name).value("policy") for name in ("released", "paper")] == ["ado", "ado"]


def test_static_policies_never_refit():
    assert not any(AdoConfig(policy="static").refit_at(step) for step in range(5000))


def test_dict_round_trip_and_unknown_names():
    config = AdoConfig(profile="paper", gate="each", lead=7)
    assert AdoConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UserError, match="colour"):
        AdoConfig.from_dict({"colour": 1})


def test_fingerprint_sees_the_stream_and_ignores_the_rest(tmp_path):
    base = AdoConfig()
    assert base.fingerprint() == dataclasses.replace(base, log_interval=3, audit=True).fingerprint()
    assert base.fingerprint() == base.resolved().fingerprint()
    for changed in (dict(seed=1), dict(min_share=0.02), dict(fit_lag=3), dict(max_epochs="2"), dict(shadow=True)):
        assert dataclasses.replace(base, **changed).fingerprint() != base.fingerprint()
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text("[1]")
    second.write_text("[1]")
    digest = AdoConfig(groups=str(first)).fingerprint()
    assert AdoConfig(groups=str(second)).fingerprint() == digest
    second.write_text("[2]")
    assert AdoConfig(groups=str(second)).fingerprint() != digest
