"""The demo's corpora: eight kinds of text that every installation has."""

import json

import numpy as np
import pytest

from ado_megatron import cli
from ado_megatron.errors import UserError
from ado_megatron.prepare import corpora


def test_the_demo_catalogue_has_eight_kinds_with_natural_shares():
    sources = corpora.demo_domains()
    sizes = {source.name: source.total_bytes() for source in sources}
    assert len(sources) >= 8
    assert max(sizes.values()) / sum(sizes.values()) < 0.6
    assert min(sizes.values()) / sum(sizes.values()) < 0.02
    for source in sources:
        documents = [text for text, _ in source]
        assert len(set(documents)) == len(documents) >= 12
        assert [text for text, _ in source] == documents


def test_the_demo_command_writes_eight_domains_of_natural_shares(tmp_path):
    assert cli.main(["prepare", "--demo", "--out", str(tmp_path / "demo"), "--workers", "2"]) == 0
    manifest = json.loads((tmp_path / "demo" / "manifest.json").read_text())
    assert len(manifest["domains"]) >= 8 and manifest["vocab_size"] == 2048
    tokens = np.array([domain["tokens"] for domain in manifest["domains"]])
    shares = tokens / tokens.sum()
    assert 0.4 < shares.max() < 0.6 and 0.003 < shares.min() < 0.015
    for domain in manifest["domains"]:
        assert domain["valid_tokens"] > 500 and domain["tokens"] > 10 * 64
        assert (tmp_path / "demo" / f"{domain['prefix']}.bin").stat().st_size == 2 * domain["tokens"]


def test_too_little_text_for_the_demo_is_said(monkeypatch):
    monkeypatch.setattr(corpora, "CATALOGUE", {"arithmetic": corpora.CATALOGUE["arithmetic"]})
    monkeypatch.setattr(corpora, "SUBSTITUTES", {})
    with pytest.raises(UserError, match="text of 8 kinds and finds 1 here"):
        corpora.demo_domains()


def test_python_is_split_into_code_and_docstrings(tmp_path):
    doc = ("About. " * 40).strip()
    (tmp_path / "m.py").write_text(f'"""{doc}"""\n# note\n\ndef f():\n    "short"\n    return 1\n')
    assert corpora.code_and_docstrings(tmp_path / "m.py") == ("def f():\n    return 1\n", (doc + "\n\n",))
    (tmp_path / "bad.py").write_text("def (")
    assert corpora.code_and_docstrings(tmp_path / "bad.py") == ("", ())
