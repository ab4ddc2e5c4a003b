"""prepare: what is written is the text that was given, split by content, and nothing is left behind by a refusal."""
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from ado_megatron import cli
from ado_megatron.prepare import command as prepare
from ado_megatron.prepare.documents import Files, digest, in_validation
from ado_megatron.prepare.encode import Encoder, chunks
from tests.kit.documents import run, texts, write_jsonl


@pytest.fixture
def model_file(tmp_path, tokenizer):
    path = tmp_path / "given.model"
    path.write_bytes(tokenizer.data)
    return path


def documents_of(prefix):
    """The documents of a .bin/.idx pair, read with megatron-core, as tuples of token ids."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    data = IndexedDataset(str(prefix))
    return [tuple(int(t) for t in data[i]) for i in range(len(data))]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_every_document_is_in_exactly_one_split_and_decodes_to_its_text(tmp_path, model_file, suffix):
    given = {"a": texts(80, 1), "b": texts(30, 2)}
    sources = [f"{name}={write_jsonl(tmp_path / (name + suffix), docs)}" for name, docs in given.items()]
    assert run(tmp_path, model_file, *sources, more=["--validation", "0.2"]) == 0
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    for name, docs in given.items():
        train = documents_of(tmp_path / "out" / f"{name}_text_document")
        valid = documents_of(tmp_path / "out" / f"{name}_valid_text_document")
        assert all(ids[-1] == processor.eos_id() and processor.eos_id() not in ids[:-1] for ids in train + valid)
        decoded = {side: [processor.decode(list(ids[:-1])) for ids in part] for side, part in
                   (("train", train), ("valid", valid))}  # fmt: skip
        assert sorted(decoded["train"] + decoded["valid"]) == sorted(docs)
        assert len(valid) == sum(in_validation(digest(text), 0.2) for text in docs)


def test_manifest_and_blends_agree_with_the_files(tmp_path, model_file):
    a, b = write_jsonl(tmp_path / "a.jsonl", texts(50, 1)), write_jsonl(tmp_path / "b.jsonl", texts(20, 2))
    assert run(tmp_path, model_file, f"a={a}", f"b={b}") == 0
    out = tmp_path / "out"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["vocab_size"] == 320 and manifest["tokenizer"] == "tokenizer.model"
    assert (out / "tokenizer.model").read_bytes() == model_file.read_bytes()
    for side, file in (("", "blend.txt"), ("valid_", "valid_blend.txt")):
        words = (out / file).read_text().split()
        tokens = np.array([sum(map(len, documents_of(prefix))) for prefix in words[1::2]])
        assert [Path(prefix).name for prefix in words[1::2]] == [f"{n}_{side}text_document" for n in "ab"]
        assert tokens.tolist() == [domain[f"{side}tokens"] for domain in manifest["domains"]]
        np.testing.assert_allclose([float(w) for w in words[0::2]], tokens / tokens.sum(), atol=1e-6)


def test_the_number_of_workers_does_not_change_a_byte(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("ado_megatron.prepare.encode.CHUNK_CHARS", 500)
    documents = [(text, 0) for text in texts(70)]

    def encode(workers):
        encoder = Encoder(tokenizer, workers)
        try:
            return [(key, ids.tolist()) for encoded, _ in encoder(documents) for key, ids in encoded]
        finally:
            encoder.close()

    one = encode(1)
    assert len(one) == 70
    assert encode(3) == one


def test_chunks_lose_no_document_and_drop_the_empty_ones(monkeypatch):
    monkeypatch.setattr("ado_megatron.prepare.encode.CHUNK_CHARS", 100)
    given = [("x" * size, at) for at, size in enumerate([10, 95, 0, 300, 1, 1])] + [(" \n", 99)]
    made = list(chunks(given))
    assert [t for part, _ in made for t in part] == [t for t, _ in given if t.strip()]
    assert [len(part) for part, _ in made] == [2, 1, 2]
    assert made[-1][1] == 99


def test_copies_are_dropped_unless_kept(tmp_path, model_file):
    docs = texts(20)
    source = f"a={write_jsonl(tmp_path / 'a.jsonl', docs + [text + '  ' for text in docs])}"
    assert run(tmp_path, model_file, source) == 0
    domain = json.loads((tmp_path / "out" / "manifest.json").read_text())["domains"][0]
    assert (domain["documents"] + domain["valid_documents"], domain["duplicates"]) == (20, 20)
    assert run(tmp_path, model_file, source, more=["--overwrite", "--no-dedupe"]) == 0
    domain = json.loads((tmp_path / "out" / "manifest.json").read_text())["domains"][0]
    assert (domain["documents"] + domain["valid_documents"], domain["duplicates"]) == (40, 0)


@pytest.mark.parametrize("fraction", ["0.000001", "0.999999"])
def test_both_sides_get_a_document_whatever_the_share(tmp_path, model_file, fraction):
    source = f"a={write_jsonl(tmp_path / 'a.jsonl', texts(5))}"
    assert run(tmp_path, model_file, source, more=["--validation", fraction]) == 0
    domain = json.loads((tmp_path / "out" / "manifest.json").read_text())["domains"][0]
    assert sorted([domain["documents"], domain["valid_documents"]]) == [1, 4]


def test_the_split_depends_on_the_content_alone():
    keys = [digest(text) for text in texts(4000)]
    held = [in_validation(key, 0.1) for key in keys]
    assert 330 < sum(held) < 470  # 400 ± 4 standard deviations
    assert all(in_validation(key, 0.3) for key, out in zip(keys, held, strict=True) if out)  # more held out: a superset
    assert digest("a\n b \n") == digest("a \n b")
    assert digest("a b") != digest("ab")


def test_a_long_text_file_is_cut_at_blank_lines_and_a_directory_is_read_in_order(tmp_path):
    (tmp_path / "d" / "sub").mkdir(parents=True)
    paragraphs = [f"paragraph {i}\nsecond line\n\n" for i in range(40)]
    (tmp_path / "d" / "b.txt").write_text("".join(paragraphs))
    (tmp_path / "d" / "sub" / "a.py").write_text("x = 1\n")
    (tmp_path / "d" / "skip.bin").write_bytes(b"\xff\xfe")
    source = Files.find("d", str(tmp_path / "d"), (".py",), document_chars=100)
    documents = [text for text, _ in source]
    assert "".join(documents) == "".join(paragraphs) + "x = 1\n"
    cut = [text for text in documents if text.startswith("paragraph")]
    assert len(cut) > 5 and all(text.endswith("\n\n") and 100 <= len(text) < 130 for text in cut[:-1])
    assert [at for _, at in source][-1] == source.total_bytes()


CUT_GZIP = gzip.compress(json.dumps({"text": os.urandom(5000).hex()}).encode() + b"\n")[:600]
REFUSALS = {
    "empty file": (lambda d: (d / "bad.txt").write_text(" \n\n"), "bad.txt", "there is no text in it"),
    "empty directory": (lambda d: (d / "bad").mkdir(), "bad", "no file under"),
    "missing": (lambda d: None, "bad.txt", "there is no file or directory"),
    "unknown suffix": (lambda d: (d / "bad.bin").write_text("x"), "bad.bin", "--suffix adds one"),
    "not utf-8": (lambda d: (d / "bad.txt").write_bytes(b"abc\xff\xfe\n"), "bad.txt", "is not UTF-8 text"),
    "no json": (lambda d: (d / "bad.jsonl").write_text('{"text": "a"}\nnonsense\n'), "bad.jsonl", "line 2 of"),
    "other key": (lambda d: (d / "bad.jsonl").write_text('{"content": "a"}\n'), "bad.jsonl", "--text-key"),
    "no string": (lambda d: (d / "bad.jsonl").write_text('{"text": 5}\n'), "bad.jsonl", "is not a string"),
    "cut gzip": (lambda d: (d / "bad.jsonl.gz").write_bytes(CUT_GZIP), "bad.jsonl.gz", "cannot read"),
    "no gzip": (lambda d: (d / "bad.jsonl.gz").write_text("plain"), "bad.jsonl.gz", "cannot read"),
    "no zstandard": (lambda d: (d / "bad.jsonl.zst").write_text("plain text"), "bad.jsonl.zst", "cannot read"),
    "one document": (lambda d: (d / "bad.txt").write_text("only one\n"), "bad.txt", "one document only"),
    "unreadable": (lambda d: (d / "bad.txt").symlink_to("/proc/self/mem"), "bad.txt", "cannot read"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_a_bad_domain_is_refused_by_name_and_leaves_nothing(tmp_path, model_file, capsys, case):
    make, file, words = REFUSALS[case]
    make(tmp_path)
    good = write_jsonl(tmp_path / "good.jsonl", texts(5))
    before = sorted(tmp_path.iterdir())
    assert run(tmp_path, model_file, f"fine={good}", f"broken={tmp_path / file}") == 2
    error = capsys.readouterr().err
    assert "domain broken" in error and words in error and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_refusal_keeps_the_data_that_stood_there(tmp_path, model_file, capsys):
    good = write_jsonl(tmp_path / "good.jsonl", texts(9))
    assert run(tmp_path, model_file, f"a={good}") == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert run(tmp_path, model_file, f"a={good}") == 2  # no --overwrite
    assert "--overwrite" in capsys.readouterr().err
    (tmp_path / "bad.txt").write_text("")
    assert run(tmp_path, model_file, f"a={good}", f"b={tmp_path / 'bad.txt'}", more=["--overwrite"]) == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert run(tmp_path, model_file, f"b={good}", more=["--overwrite"]) == 0
    assert not (tmp_path / "out" / "a_text_document.bin").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.txt", "given.model", "good.jsonl", "out"]


def test_a_directory_that_prepare_did_not_make_is_never_replaced(tmp_path, model_file, capsys):
    good = write_jsonl(tmp_path / "good.jsonl", texts(9))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    assert run(tmp_path, model_file, f"a={good}", more=["--overwrite"]) == 2
    assert "was not made by prepare" in capsys.readouterr().err
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_reuse_keeps_the_same_and_refuses_another(tmp_path, model_file, capsys):
    good = write_jsonl(tmp_path / "good.jsonl", texts(9))
    assert run(tmp_path, model_file, f"a={good}") == 0
    stamp = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    assert run(tmp_path, model_file, f"a={good}", more=["--reuse"]) == 0
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == stamp
    assert run(tmp_path, model_file, f"a={good}", more=["--reuse", "--validation", "0.3"]) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give --domain NAME=PATH"),
        (["--demo", "--domain", "a=b"], "give --domain NAME=PATH"),
        (["--domain", "a"], "write NAME=PATH"),
        (["--domain", "a=b", "--suffix", "md"], "--suffix md is no file ending"),
        (["--domain", "a b=c"], "write NAME=PATH"),
        (["--domain", "../a=c"], "write NAME=PATH"),
        (["--demo", "--validation", "1"], "--validation 1.0"),
        (["--demo", "--validation", "nan"], "--validation nan"),
        (["--demo", "--workers", "0"], "--workers 0"),
        (["--demo", "--workers", "many"], "invalid int value"),
        (["--demon"], "--help` lists the options"),
        (["--domain", "a=b", "--tokenizer", "nowhere.model"], "no file or directory b"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(tmp_path, capsys, words, says):
    assert cli.main(["prepare", "--out", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_two_domains_of_one_name_and_white_space_in_the_path(tmp_path, capsys):
    good = write_jsonl(tmp_path / "good.jsonl", texts(9))
    twice = ["--domain", f"a={good}", "--domain", f"a={good}"]
    assert cli.main(["prepare", "--out", str(tmp_path / "out"), *twice]) == 2
    assert "two domains a" in capsys.readouterr().err
    clash = ["--domain", f"a={good}", "--domain", f"a_valid={good}"]
    assert cli.main(["prepare", "--out", str(tmp_path / "out"), *clash]) == 2
    assert "domains a and a_valid would share a file" in capsys.readouterr().err
    assert cli.main(["prepare", "--out", str(tmp_path / "my out"), "--demo"]) == 2
    assert "white space" in capsys.readouterr().err


def test_an_interrupt_while_writing_leaves_no_trace(tmp_path, model_file, monkeypatch):
    good = write_jsonl(tmp_path / "good.jsonl", texts(9))
    before = sorted(tmp_path.iterdir())

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "write_blends", interrupt)
    assert run(tmp_path, model_file, f"a={good}") == 130
    assert sorted(tmp_path.iterdir()) == before
