"""What `--ado-transfer` may say, and one sentence for what it may not."""

import json

import numpy as np
import pytest

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.scaling_law.options import LawOptions
from ado_megatron.scaling_law.transfer_option import parse_transfer

NAMES = ("wiki", "code")


@pytest.mark.parametrize("text, expected", [
    ("own", [0, 0]), ("shared", [np.inf] * 2), ("0.25", [0.25] * 2), ("1e-2", [0.01] * 2), ("inf", [np.inf] * 2),
])
def test_words_and_numbers(text, expected):
    assert parse_transfer(text, NAMES).tolist() == expected


def test_estimate_has_no_values_yet():
    assert parse_transfer("estimate", NAMES) is None


@pytest.mark.parametrize("text", [
    '{"code": 0.5,\n\t"wiki": "shared"}', "code: 0.5\nwiki: shared", "{wiki: .inf, code: 5e-1}",
])
def test_a_file_in_json_or_yaml_in_any_order(tmp_path, text):
    path = tmp_path / "transfer.yaml"
    path.write_text(text)
    assert parse_transfer(str(path), NAMES).tolist() == [np.inf, 0.5]


def test_a_sidecar_may_know_more_domains(tmp_path):
    path = tmp_path / "sidecar"
    path.write_bytes(b"magic\n\xff\x00")
    asked = []

    def read(which):
        asked.append(which)
        return ["code", "gone", "wiki"], np.array([0.5, 9.0, 0.1])

    assert parse_transfer(str(path), NAMES, read).tolist() == [0.1, 0.5]
    assert asked == [str(path)]
    with pytest.raises(UserError, match="not a text file"):
        parse_transfer(str(path), NAMES)
    with pytest.raises(UserError, match="lacks wiki"):
        parse_transfer(str(path), NAMES, lambda _: (["code"], np.array([0.5])))
    with pytest.raises(UserError, match="code must|code: a transfer"):
        parse_transfer(str(path), NAMES, lambda _: (NAMES, np.array([0.5, np.nan])))


@pytest.mark.parametrize("content, words", [
    ({"wiki": 1}, "lacks code"), ({"wiki": 1, "code": 1, "cod": 1}, "has cod,"),
    ({"wiki": -1, "code": 1}, "wiki: .*not -1"),
    ({"wiki": 1, "code": float("nan")}, "code.*not "), ({"wiki": 1, "code": None}, "code.*not None"),
    ({"wiki": True, "code": 1}, "wiki.*not True"), ([1, 2], "a mapping"), ("{", "neither JSON nor YAML"),
])
def test_a_bad_file_is_one_sentence(tmp_path, content, words):
    path = tmp_path / "transfer.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=words) as caught:
        parse_transfer(str(path), NAMES)
    assert "--ado-transfer" in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_word_that_is_no_file():
    with pytest.raises(UserError, match="estimat is not own, shared, estimate or a number"):
        parse_transfer("estimat", NAMES)


@pytest.mark.parametrize("text", ["-0.1", "nan"])
def test_a_bad_number_is_refused_with_the_options(text):
    with pytest.raises(UserError, match="--ado-transfer: a transfer is a number from 0 to inf"):
        AdoConfig(transfer=text)


@pytest.mark.parametrize("options, text, value", [
    ({"profile": "released"}, "shared", np.inf), ({"profile": "paper"}, "own", 0.0),
    ({"own_n": False}, "shared", np.inf),
    ({"profile": "released", "own_n": True}, "own", 0.0), ({"own_n": True, "transfer": "shared"}, "shared", np.inf),
    ({"transfer": "0.3"}, "0.3", 0.3), ({"transfer": "estimate"}, "estimate", 0.0),
    ({"transfer": "a.json", "own_n": False}, "a.json", np.inf),
])
def test_own_n_is_what_holds_without_a_transfer(options, text, value):
    for known in (LawOptions(**options), LawOptions(**options).resolved()):
        assert (known.transfer_text, known.given_transfer) == (text, value)


def test_a_transfer_file_counts_by_what_it_says_even_when_it_is_no_text(tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, content in zip(paths, (b"\xff\x00", b"\xff\x00", b"\xfe\x00"), strict=True):
        path.write_bytes(content)
    prints = [AdoConfig(transfer=str(path)).fingerprint() for path in paths]
    assert prints[0] == prints[1] != prints[2]
