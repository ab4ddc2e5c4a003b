"""Domains: names, groups, priors, identity; and what is refused, by name. Legend: K domains, C datasets."""

import json

import numpy as np
import pytest

from ado_megatron.blend.domains import Domains
from ado_megatron.blend.options import BlendOptions
from ado_megatron.config import AdoConfig
from ado_megatron.errors import UserError

PREFIXES = [
    "/data/wiki_text_document",
    "/data/code/py_text_document",
    "/data/code/c_text_document",
    "/data/law_text_document",
]
LENGTHS = [100, 300, 100, 500]


def build(prefixes=PREFIXES, weights=(4, 1, 3, 2), lengths=LENGTHS, **options):
    return Domains.build(prefixes, weights, lengths, AdoConfig(**options))


@pytest.fixture
def groups(tmp_path):
    def write(content, name="groups.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def test_without_groups_each_prefix_is_a_domain_with_the_users_weight():
    domains = build()
    assert domains.names_K == ("wiki", "py", "c", "law")
    assert domains.domain_of_C.tolist() == [0, 1, 2, 3] and domains.share_C.tolist() == [1, 1, 1, 1]
    assert domains.prior_K.tolist() == [0.4, 0.1, 0.3, 0.2]


@pytest.mark.parametrize(
    ("options", "prior"),
    [
        ({"prior": "natural"}, [0.1, 0.3, 0.1, 0.5]),
        ({"prior": "uniform"}, [0.25] * 4),
        ({"prior": "temperature", "temperature": 1.0}, [0.1, 0.3, 0.1, 0.5]),
        ({"prior": "temperature", "temperature": 2.0}, np.sqrt([1, 3, 1, 5]) / np.sqrt([1, 3, 1, 5]).sum()),
    ],
)
def test_priors(options, prior):
    assert np.allclose(build(**options).prior_K, prior, atol=1e-15)


def test_groups_act_on_domains_and_keep_the_users_proportions_inside(groups):
    path = groups({"text": ["wiki", "/data/law_text_document"], "code": ["*/code/*"]})
    domains = build(groups=path)
    assert domains.names_K == ("text", "code") and domains.domain_of_C.tolist() == [0, 1, 1, 0]
    assert np.allclose(domains.share_C, [4 / 6, 1 / 4, 3 / 4, 2 / 6])
    assert np.allclose(domains.prior_K, [0.6, 0.4])
    assert np.allclose(domains.weights_C([0.5, 0.5]), [1 / 3, 1 / 8, 3 / 8, 1 / 6])
    assert np.allclose(build(groups=path, prior="natural").prior_K, [0.6, 0.4])
    assert np.allclose(build(weights=(0, 1, 3, 0), groups=path).share_C, [1 / 6, 1 / 4, 3 / 4, 5 / 6])


def test_groups_may_be_yaml(groups):
    domains = build(groups=groups("text: [wiki, law]\ncode:\n  - py\n  - c\n", "groups.yaml"))
    assert domains.names_K == ("text", "code")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"text": ["wiki", "law"], "code": ["py"]}, "prefix /data/code/c_text_document is in no domain"),
        ({"text": ["wiki", "law"], "code": ["*/code/*", "l*w"]}, "law_text_document is in the domains text and code"),
        ({"all": ["/data/*", "books"]}, "'books' of domain 'all' .* matches no prefix"),
        ({"all": []}, "'all' .* must have a list"),
        ({}, "must map each domain"),
        ("{", "JSON"),
        ("a: [b", "neither JSON nor YAML"),
        ("2026-13-45", "neither JSON nor YAML"),
        ("[" * 5000, "neither JSON nor YAML"),
    ],
)
def test_groups_that_do_not_fit_are_refused_by_name(groups, content, message):
    with pytest.raises(UserError, match=message):
        build(groups=groups(content))


def test_a_groups_file_that_is_missing_or_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read no-such-file \(No such file"):
        build(groups="no-such-file")
    (tmp_path / "groups.json").write_bytes(b"{\"a\": [\"\xff\"]}")
    with pytest.raises(UserError, match=r"--ado-groups: cannot read .*groups.json \(it is not UTF-8 text: byte 8\)"):
        build(groups=str(tmp_path / "groups.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prefixes": [*PREFIXES[:3], PREFIXES[0]]}, "prefix /data/wiki_text_document is in the blend twice"),
        ({"weights": (1, -2, 1, 1)}, "py_text_document has weight -2"),
        ({"weights": (1, np.nan, 1, 1)}, "py_text_document has weight nan"),
        ({"weights": (0, 0, 0, 0)}, "all weights .* zero"),
        ({"weights": (1e308,) * 4}, "too large to be added up"),
        ({"prefixes": [*PREFIXES[:3], "d\udce9"]}, r"the prefix 'd.udce9', which is not UTF-8"),
        ({"weights": (1, 1)}, "4 prefixes, 2 weights"),
        ({"lengths": [1, 1, 0, 1]}, "c_text_document holds no sample"),
        ({"prefixes": [], "weights": (), "lengths": []}, "no prefix"),
    ],
)
def test_blends_that_cannot_be_are_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        build(**change)


def test_names_take_as_much_of_the_path_as_tells_them_apart():
    domains = build(["/a/x/wiki", "/a/y/wiki", "/b/z_text_document"], (1, 1, 1), (1, 1, 1))
    assert domains.names_K == ("x/wiki", "y/wiki", "b/z")
    assert domains.domain_of_name("y/wiki") == 1
    with pytest.raises(UserError, match="no domain 'wiki'; the domains are x/wiki"):
        domains.domain_of_name("wiki")


def test_a_dataset_keeps_its_identity_when_data_moves_or_the_blend_is_reordered():
    here, there = build(), build([p.replace("/data", "/scratch") for p in PREFIXES[::-1]], (1,) * 4, LENGTHS[::-1])
    assert here.stream_id_C.tolist() == there.stream_id_C.tolist()[::-1]
    twins = build(["/a/part", "/b/part"], (1, 1), (5, 5))
    assert len(set(twins.stream_id_C.tolist())) == 2 and (twins.stream_id_C >= 0).all()


def test_the_fingerprint_follows_the_data_and_the_groups(groups):
    moved = [p.replace("/data", "/scratch") for p in PREFIXES]
    assert build().fingerprint() == build(moved, (1, 1, 1, 1)).fingerprint()
    path = groups({"all": ["/data/*"]})
    others = [build(lengths=[100, 300, 100, 501]), build(PREFIXES[:2], (1, 1), LENGTHS[:2]), build(groups=path)]
    others.append(Domains.build(PREFIXES, (4, 1, 3, 2), LENGTHS, AdoConfig(), documents_C=[1, 2, 3, 4]))
    assert len({domains.fingerprint() for domains in [build(), *others]}) == 5


def test_what_the_files_say_counts_in_the_fingerprint_where_it_is_known():
    known = [Domains.build(["a", "b"], None, [5, 7], BlendOptions(), [1, 2], content) for content in ([3, 4], [3, 5])]
    unknown = Domains.build(["a", "b"], None, [5, 7], BlendOptions(), [1, 2])
    assert len({domains.fingerprint() for domains in [*known, unknown]}) == 3
    assert {domains.fingerprint(content=False) for domains in known} == {unknown.fingerprint()}
