"""The target: words, pairs, files, and one sentence for whatever does not fit."""

import json

import numpy as np
import pytest

from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError
from ado_megatron.policy import PolicyContext, make_policy
from ado_megatron.policy.target import resolve_target

NAMES = ("code", "web", "a=b")
PRIOR, NATURAL = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.6, 0.3])


def resolve(text, names=NAMES, prior=PRIOR, natural=NATURAL):
    return resolve_target(text, names, prior, natural)


@pytest.mark.parametrize("text, expected", [
    ("prior", PRIOR), ("natural", NATURAL), ("uniform", [1 / 3] * 3),
    ("code=.4,web=.6", [0.4, 0.6, 0.0]), (" code = 2 , web=6,", [0.25, 0.75, 0.0]), ("web=1e-3", [0.0, 1.0, 0.0]),
    ("a=b=3,code=1", [0.25, 0.0, 0.75]),
])
def test_words_and_pairs(text, expected):
    np.testing.assert_allclose(resolve(text), expected, rtol=1e-15)


@pytest.mark.parametrize("suffix, content", [
    (".json", '{"code": 1, "web": 3}'), (".json", '{\t"web": 3,\t"code": 1}'), (".yaml", "code: 1\nweb: 3.0\n"),
    ("=odd.txt", "{code: '1', web: 3}"),
])
def test_files(tmp_path, suffix, content):
    path = tmp_path / f"target{suffix}"
    path.write_text(content)
    np.testing.assert_allclose(resolve(str(path)), [0.25, 0.75, 0.0])


@pytest.mark.parametrize("text, said", [
    ("cod=1", "no domain 'cod'; the domains are code, web, a=b"),
    ("code=0,web=0", "all weights are zero"),
    ("code=nan", "domain 'code' has weight nan"), ("code=-1,web=3", "domain 'code' has weight -1"),
    ("code=inf", "weight inf"), ("code=x", "weight x"), ("code=", "'code'"), ("=1", "'=1' is not domain=weight"),
    ("code=1,code=2", "'code' stands there twice"), ("code=1,web", "'web' is not domain=weight"),
    ("cdoe", "cdoe is none of prior, natural, uniform"), ("code=1," * 500 + "x=1", "twice"),
])
def test_what_does_not_fit_is_one_sentence(text, said):
    with pytest.raises(UserError) as caught:
        resolve(text)
    assert said in str(caught.value) and str(caught.value).startswith("--ado-target") and "\n" not in str(caught.value)


@pytest.mark.parametrize("content, said", [
    ("[1, 2]", "must map domains to weights"), ("", "must map"), ("{", "neither JSON nor YAML"),
    ("code: true", "weight True"), ("code: [1]", "weight"), ("zebra: 1", "no domain 'zebra'"),
    (b"\xff\xfe\xff", "read"),
])
def test_files_that_do_not_fit(tmp_path, content, said):
    path = tmp_path / "target.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="--ado-target") as caught:
        resolve(str(path))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_target_that_is_never_drawn_is_refused():
    with pytest.raises(UserError, match="prior 0"):
        resolve("code=1", prior=[0.0, 0.5, 0.5])
    np.testing.assert_array_equal(resolve("code=1,web=1", prior=[0.0, 0.5, 0.5]), [0.5, 0.5, 0.0])


def test_natural_needs_sizes():
    with pytest.raises(UserError, match="sizes of the domains are not known"):
        resolve("natural", natural=None)


def test_the_option_reaches_the_policy():
    context = PolicyContext(PRIOR, names_K=NAMES, natural_K=NATURAL)
    for target, expected in (("prior", PRIOR), ("natural", NATURAL), ("code=1", [1.0, 0.0, 0.0])):
        policy = make_policy(AdoConfig(policy="ado", target=target), context)
        np.testing.assert_allclose(policy.context.target_K, expected)
    with pytest.raises(UserError, match="no domain 'zebra'"):
        make_policy(AdoConfig(target="zebra=1", policy="static"), context)


def test_a_long_target_is_no_path_and_a_file_counts_by_what_it_says(tmp_path):
    text = ",".join(f"domain{k}=1" for k in range(1000))
    assert AdoConfig(target=text).fingerprint() != AdoConfig().fingerprint()
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    for path in (first, second):
        path.write_text(json.dumps({"code": 1}))
    assert AdoConfig(target=str(first)).fingerprint() == AdoConfig(target=str(second)).fingerprint()
