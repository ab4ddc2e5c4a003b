"""Bad input of `ado-megatron pretrain`: one sentence, exit code 2, nothing written, nothing started."""

import os
import shutil

import numpy as np
import pytest

from ado_megatron import cli
from ado_megatron.trainer import launch
from ado_megatron.trainer.check_data import check_data
from ado_megatron.trainer.options import parse
from tests.kit.training import VOCAB, write_data, write_prefix

NAMES = [f"domain{k}_text_document" for k in range(3)]


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


@pytest.fixture(autouse=True)
def no_launch(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)

    def refuse(*_):
        raise AssertionError("processes were started")

    monkeypatch.setattr(launch, "_start", refuse)


def pretrain(tmp_path, *argv: str) -> list[str]:
    return [
        "pretrain",
        "--run-dir",
        str(tmp_path / "run"),
        "--seq-length",
        "16",
        "--micro-batch",
        "2",
        "--global-batch",
        "8",
        *map(str, argv),
    ]


def blend(data, weights=("0.5", "0.3", "0.2")) -> list[str]:
    return [word for weight, name in zip(weights, NAMES, strict=False) for word in (weight, str(data / name))]


def damage(path, how):
    content = path.read_bytes()
    path.write_bytes({"truncate": content[: len(content) // 2], "magic": b"x" * 9 + content[9:], "empty": b""}[how])


CASES = {
    "missing prefix": (
        lambda d: ["--data-path", "0.5", d / NAMES[0], "0.5", d / "nowhere"],
        "nowhere.idx does not exist",
    ),
    "idx without bin": (
        lambda d: (os.remove(d / (NAMES[1] + ".bin")), ["--data", d])[1],
        r"domain1_text_document.bin does not exist \(but .*idx does\)",
    ),
    "bin without idx": (
        lambda d: (os.remove(d / (NAMES[1] + ".idx")), ["--data", d])[1],
        r"domain1_text_document.idx does not exist \(but .*bin does\)",
    ),
    "truncated bin": (
        lambda d: (damage(d / (NAMES[0] + ".bin"), "truncate"), ["--data", d])[1],
        "domain0_text_document.bin has .* bytes but",
    ),
    "truncated idx": (
        lambda d: (damage(d / (NAMES[0] + ".idx"), "truncate"), ["--data", d])[1],
        "(truncated or damaged|bytes but)",
    ),
    "empty idx": (
        lambda d: (damage(d / (NAMES[0] + ".idx"), "empty"), ["--data", d])[1],
        "is not an index of Megatron",
    ),
    "no idx at all": (
        lambda d: (damage(d / (NAMES[0] + ".idx"), "magic"), ["--data", d])[1],
        "is not an index of Megatron",
    ),
    "negative weight": (
        lambda d: ["--data-path", *blend(d, ("0.5", "-0.1", "0.6"))],
        "the weight of .*domain1_text_document in --data-path is -0.1",
    ),
    "nan weight": (lambda d: ["--data-path", *blend(d, ("0.5", "nan", "0.6"))], "weight of .* is nan"),
    "infinite weight": (lambda d: ["--data-path", *blend(d, ("0.5", "inf", "0.6"))], "weight of .* is inf"),
    "zero weights": (lambda d: ["--data-path", *blend(d, ("0", "0.0", "0"))], "all weights in --data-path are zero"),
    "one domain": (lambda d: ["--data-path", "1.0", d / NAMES[0]], "names 1 domain; a mixture needs at least two"),
    "a prefix twice": (lambda d: ["--data-path", *blend(d), *blend(d)], "twice"),
    "odd list": (lambda d: ["--data-path", "0.5", d / NAMES[0], "0.5"], "must be pairs"),
    "short domain": (
        lambda d: (write_prefix(d / NAMES[2], [np.arange(16)]), ["--data", d])[1],
        "domain2_text_document has 16 tokens, fewer than one sample of --seq-length 16 needs",
    ),
    "vocabulary above the model's": (
        lambda d: ["--data", d, "--vocab-size", "100"],
        "has 200 tokens but --vocab-size gives the model 100",
    ),
    "token above the vocabulary": (
        lambda d: (write_prefix(d / NAMES[2], [np.full(400, VOCAB)]), ["--data", d])[1],
        "domain2_text_document.bin holds the token id 200 but the vocabulary has 200",
    ),
    "no vocabulary": (lambda d: ["--data-path", *blend(d)], "give --tokenizer or --vocab-size"),
    "bad tokenizer": (lambda d: ["--data", d, "--tokenizer", d / "blend.txt"], "tokenizer .*blend.txt cannot be read"),
    "no such directory": (lambda d: ["--data", d / "none"], "has no blend.txt"),
    "no args file": (lambda d: ["--data-args-path", d / "none"], "--data-args-path .* cannot be read"),
    "args file that is no text": (
        lambda d: ((d / "b").write_bytes(b"1 \xff"), ["--data-args-path", d / "b"])[1],
        r"--data-args-path .*b cannot be read \(it is not UTF-8 text: byte 2\)",
    ),
    "damaged manifest": (
        lambda d: ((d / "manifest.json").write_text('{"vocab_size": "many"}'), ["--data", d])[1],
        "manifest.json is damaged .*prepare the data anew",
    ),
    "manifest that is no object": (
        lambda d: ((d / "manifest.json").write_text("[1]"), ["--data", d])[1], "manifest.json is damaged",
    ),
    "empty args file": (lambda d: ((d / "e").write_text(""), ["--data-args-path", d / "e"])[1], "is empty"),
    "validation of another number": (
        lambda d: ["--data", d, "--valid-data-path", d / NAMES[0], d / NAMES[1]],
        "names 2 prefixes but there are 3",
    ),
    "bad cap": (lambda d: ["--data", d, "--ado-max-epochs", "lots"], "(?i)max-epochs|lots"),
    "supply": (lambda d: ["--data", d, "--ado-max-epochs", "1", "--steps", "100000"], "(?i)epoch"),
    "no groups file": (lambda d: ["--data", d, "--ado-groups", d / "none.json"], "none.json"),
    "bad ado option": (lambda d: ["--data", d, "--ado-refit-interval", "0"], "--ado-refit-interval must be at least 1"),
    "synchronous fits under a ramp": (
        lambda d: ["--data", d, "--rampup-batch-size", "4", "2", "16", "--ado-fit-lag", "0"],
        "--ado-fit-lag 0 needs steps of whole blocks",
    ),
    "indivisible world": (lambda d: ["--data", d, "--num-processes", "3", "--tp", "2"], "3 processes cannot be split"),
    "run directory is a file": (lambda d: ["--data", d, "--run-dir", d / "blend.txt"], "is a file"),
    "a name that is not UTF-8": (
        lambda d: ["--data-path", "0.5", d / NAMES[0], "0.5", os.fsdecode(bytes(d) + b"/caf\xe9")],
        r"--data-path names '.*caf.udce9', which is not UTF-8",
    ),
    "a name of 300 characters": (
        lambda d: ["--data-path", "0.5", d / NAMES[0], "0.5", d / ("x" * 300)],
        "xxx.* cannot be looked up: File name too long",
    ),
    "the same file by a link": (
        lambda d: [
            [(d / f"link{end}").symlink_to(d / (NAMES[0] + end)) for end in (".bin", ".idx")],
            ["--data-path", *blend(d), "0.1", d / "link"],
        ][1],
        "--data-path names one domain twice: .*domain0_text_document.bin and .*link.bin are the same file",
    ),
    "the same file by another path": (
        lambda d: ["--data-path", *blend(d), "0.1", f"{d}/./{NAMES[1]}"],
        "names one domain twice: .* are the same file",
    ),
    "no signal": (lambda d: ["--data", d, "--exit-signal", "KILL"], "--exit-signal KILL is no signal"),
    "foreign directory": (
        lambda d: ((d / "ado").mkdir(), ["--data", d, "--run-dir", d])[1],
        "not a run of this trainer",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence_before_anything_starts(name, data, tmp_path, capsys):
    import re

    make, words = CASES[name]
    argv = pretrain(tmp_path, *make(data))
    before = sorted(data.rglob("*"))
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("ado-megatron: error: ") and error.count("\n") == 1 and "Traceback" not in error
    assert re.search(words, error), error
    assert not (tmp_path / "run").exists() and sorted(data.rglob("*")) == before


def test_good_input_reaches_the_launcher_with_a_free_port(data, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(launch, "_start", lambda *arguments: started.append(arguments) or 0)
    assert cli.main(pretrain(tmp_path, "--data", data, "--num-processes", "2")) == 0
    assert cli.main(pretrain(tmp_path, "--data", data, "--resume", "--ado-policy", "static", "--tp", "2")) == 0
    (two, port, _), (default, other_port, _) = started
    assert (two, default) == (2, 2) and port != other_port and min(port, other_port) > 1023


def test_a_moved_prepared_directory_and_prefixes_without_weights_are_found(data, tmp_path):
    moved = tmp_path / "elsewhere"
    data.rename(moved)
    spec = check_data(parse(["--run-dir", "r", "--data", str(moved), "--seq-length", "16"])[0])
    assert [prefix.tokens for prefix in spec.train_C] == [6000, 3000, 2000] and spec.vocab_size == VOCAB
    assert spec.weights_C == (0.6, 0.3, 0.1) and len(spec.valid_C) == 3
    argv = ["--run-dir", "r", "--vocab-size", "200", "--data-path", *[str(moved / name) for name in NAMES]]
    assert check_data(parse(argv)[0]).weights_C is None


def test_a_copied_prepared_directory_reads_its_own_files(data, tmp_path):
    """prepare writes absolute paths, for Megatron reads them as they are; the original must not be read silently."""
    for name in ("blend.txt", "valid_blend.txt"):
        words = (data / name).read_text().split()
        words[1::2] = [str(data / word) for word in words[1::2]]
        (data / name).write_text(" ".join(words))
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    write_prefix(copy / NAMES[0], [np.arange(100)] * 7)
    by_directory = ["--data", str(copy)]
    by_file = ["--data-args-path", str(copy / "blend.txt"), "--valid-data-args-path", str(copy / "valid_blend.txt"),
               "--vocab-size", "200"]  # fmt: skip
    for words in (by_directory, by_file):
        spec = check_data(parse(["--run-dir", "r", "--seq-length", "16", *words])[0])
        assert {os.path.dirname(prefix.path) for prefix in spec.train_C + spec.valid_C} == {str(copy)}
        assert spec.train_C[0].tokens == 700


def test_a_blend_file_beside_no_prepared_data_means_what_it_says(data, tmp_path):
    shutil.copytree(data, tmp_path / "other")
    (data / "manifest.json").unlink()
    (data / "given.txt").write_text(" ".join(blend(tmp_path / "other")))
    words = ["--data-args-path", str(data / "given.txt"), "--vocab-size", "200"]
    spec = check_data(parse(["--run-dir", "r", "--seq-length", "16", *words])[0])
    assert {os.path.dirname(prefix.path) for prefix in spec.train_C} == {str(tmp_path / "other")}
