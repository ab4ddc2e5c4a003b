"""Caps and forecasts, against simulation by the rows themselves. Legend: K domains, C datasets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ado_megatron.blend.domains import Domains
from ado_megatron.blend.epoch_caps import (
    UNLIMITED,
    caps_from_config,
    check_supply,
    forecast,
    forecast_lines,
    parse_max_epochs,
)
from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.stream.schedule import apportion_rows

DOMAINS = Domains.build(["/d/wiki", "/d/code", "/d/law"], [5, 3, 2], [100, 30, 20], AdoConfig())


def grouped(tmp_path) -> AdoConfig:
    """Two of the three prefixes are one domain, which is read once at most."""
    path = tmp_path / "groups.json"
    path.write_text('{"text": ["wiki", "law"], "code": "code"}')
    return AdoConfig(groups=str(path), max_epochs="text=1")


@pytest.mark.parametrize(
    ("text", "epochs"),
    [
        ("4", [4, 4, 4]), ("wiki=2", [2, np.inf, np.inf]), ("4,wiki=2", [2, 4, 4]), ("wiki=2, 4", [2, 4, 4]),
        ("0.5, law=1e3", [0.5, 0.5, 1000]), (None, [np.inf] * 3),
    ],
)  # fmt: skip
def test_max_epochs_as_users_write_it(text, epochs):
    assert parse_max_epochs(text, DOMAINS).tolist() == epochs


@pytest.mark.parametrize("text", ["zero", "-1", "0", "wiki=", "wiki=x", "books=2", "4,,2", "nan", "inf", "="])
def test_max_epochs_that_say_nothing_are_refused(text):
    with pytest.raises(UserError, match="max-epochs|no domain 'books'"):
        parse_max_epochs(text, DOMAINS)


def test_caps_are_whole_samples_and_unlimited_without_a_word():
    assert caps_from_config(AdoConfig(), DOMAINS) is None
    assert caps_from_config(AdoConfig(max_epochs="0.1,wiki=1.239"), DOMAINS).tolist() == [123, 3, 2]
    assert caps_from_config(AdoConfig(max_epochs="law=4"), DOMAINS).tolist() == [UNLIMITED, UNLIMITED, 80]


def test_a_run_that_cannot_be_fed_says_so_with_supply_need_and_what_would_do():
    caps_C = caps_from_config(AdoConfig(max_epochs="2"), DOMAINS)
    check_supply(DOMAINS, caps_C, [(DOMAINS.prior_K, 300)])
    check_supply(DOMAINS, None, [(DOMAINS.prior_K, 10**12)])
    with pytest.raises(UserError) as caught:
        check_supply(DOMAINS, caps_C, [(DOMAINS.prior_K, 301)])
    for number in ("needs 301 samples", "supply 300", "one epoch of all is 150", "2.01 epochs for all would do"):
        assert number in str(caught.value)
    fixed = caps_from_config(AdoConfig(max_epochs="2.01"), DOMAINS)
    check_supply(DOMAINS, fixed, [(DOMAINS.prior_K, 301)])


def test_a_domain_without_weight_supplies_nothing():
    domains = Domains.build(["/d/wiki", "/d/code"], [1, 0], [100, 900], AdoConfig())
    with pytest.raises(UserError, match="its 1 prefixes supply 100"):
        check_supply(domains, np.array([100, 900]), [(domains.prior_K, 101)])


def test_what_was_drawn_and_what_later_stages_need_counts():
    """Caps 200, 60, 40; 150 wiki are gone. 50 wiki, 60 code and 40 law are left: 150, but 100 after wiki leaves."""
    caps_C, drawn_C = caps_from_config(AdoConfig(max_epochs="2"), DOMAINS), np.array([150, 0, 0])
    check_supply(DOMAINS, caps_C, [(DOMAINS.prior_K, 150)], drawn_C)
    with pytest.raises(UserError, match="needs 151 more samples.* 3 prefixes have 150 left .* 1 samples earlier"):
        check_supply(DOMAINS, caps_C, [(DOMAINS.prior_K, 151)], drawn_C)
    without_wiki = (np.array([0, 0.5, 0.5]), 90)
    check_supply(DOMAINS, caps_C, [(np.array([1, 0, 0]), 50), without_wiki], drawn_C)
    with pytest.raises(UserError, match="needs 90 more samples.* 2 prefixes have 80 left"):
        check_supply(DOMAINS, caps_C, [(np.array([0.5, 0.5, 0]), 40), without_wiki], drawn_C)
    with pytest.raises(UserError, match="needs 51 more"):
        check_supply(DOMAINS, caps_C, [(np.array([1, 0, 0]), 51), without_wiki], drawn_C)


def test_a_prefix_without_a_share_is_no_supply(tmp_path):
    """Of `text` only wiki is drawn; its 100 samples are gone after 200 of the run."""
    conf = grouped(tmp_path)
    domains = Domains.build(["/d/wiki", "/d/code", "/d/law"], [3, 3, 0], [100, 3000, 900], conf)
    lines = forecast_lines(domains, domains.prior_K, np.zeros(3, dtype=np.int64), 300, caps_from_config(conf, domains))
    assert lines[0] == "text: 1.00 epochs at the end of the run; runs out after 200 more samples of the run"
    drawn_C = np.array([100, 100, 0])
    assert "text: 1.00 epochs at the end of the run; is at its cap" in forecast_lines(
        domains, domains.prior_K, drawn_C, 100, caps_from_config(conf, domains)
    )


@given(seed=st.integers(0, 10**6), num_datasets=st.integers(1, 12), rows=st.integers(1, 120))
@settings(max_examples=60)
def test_the_forecast_is_what_the_rows_then_do(seed, num_datasets, rows):
    rng, block = np.random.default_rng(seed), 20
    weights_C = rng.dirichlet(np.ones(num_datasets)) + 1e-3
    weights_C /= weights_C.sum()
    caps_C = rng.integers(1, 2 * block * rows // num_datasets + 2, num_datasets)
    caps_C[rng.integers(num_datasets)] = UNLIMITED
    lengths_C = rng.integers(1, 50, num_datasets)
    counts_SxC, _ = apportion_rows(weights_C, block, rows, np.zeros(num_datasets), caps_C)
    result = forecast(weights_C, lengths_C, np.zeros(num_datasets), block * rows, caps_C)
    total_SxC = np.cumsum(counts_SxC, axis=0)
    assert np.abs(result.drawn_C - total_SxC[-1]).max() < 1 + 1e-6
    assert np.allclose(result.epochs_C, result.drawn_C / lengths_C) and result.short == 0
    for dataset_id in range(num_datasets):
        reached = np.flatnonzero(total_SxC[:, dataset_id] == caps_C[dataset_id])
        if result.runs_out_C[dataset_id] <= block * (rows - 1):
            assert len(reached) and abs((reached[0] + 1) * block - result.runs_out_C[dataset_id]) <= 2 * block


def test_a_forecast_in_mid_run_by_hand():
    """Weights 1/2, 1/4, 1/4; 10 and 30 left in the first two: out after 20, then rates 0, 1/2, 1/2: after 70."""
    result = forecast([2, 1, 1], [10, 10, 10], [5, 5, 5], 100, [15, 35, UNLIMITED])
    assert result.runs_out_C.tolist() == [20, 70, np.inf]
    assert result.drawn_C.tolist() == [15, 35, 65]
    short = forecast([1, 1], [10, 10], [0, 0], 100, [10, 20])
    assert short.short == 70 and short.drawn_C.tolist() == [10, 20]


def test_lines_for_people():
    caps_C = caps_from_config(AdoConfig(max_epochs="code=1"), DOMAINS)
    lines = forecast_lines(DOMAINS, DOMAINS.prior_K, np.zeros(3, dtype=np.int64), 1000, caps_C)
    assert lines[1] == "code: 1.00 epochs at the end of the run; runs out after 100 more samples of the run"
    assert lines[0].startswith("wiki: 6.93 epochs") and lines[0].endswith("does not run out")


def test_the_lines_of_groups_speak_of_domains(tmp_path):
    """The law prefix of `text` ends first; wiki takes over its part, so the domain ends with its last prefix."""
    conf = grouped(tmp_path)
    domains = Domains.build(["/d/wiki", "/d/code", "/d/law"], [3, 3, 3], [100, 300, 20], conf)
    lines = forecast_lines(domains, domains.prior_K, np.zeros(3, dtype=np.int64), 300, caps_from_config(conf, domains))
    assert lines == [
        "text: 1.00 epochs at the end of the run; runs out after 180 more samples of the run",
        "code: 0.60 epochs at the end of the run; does not run out",
    ]
