"""prepare when its input or its machine fails: one sentence or the right result, and nobody and nothing left behind."""

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import zstandard

from ado_megatron import cli
from ado_megatron.errors import UserError
from ado_megatron.prepare.documents import Files
from ado_megatron.prepare.output import partial_directory, sweep
from ado_megatron.prepare.tokenizer import train_sentencepiece

TEXTS = [f"document {i} " + "alpha beta gamma delta " * 20 for i in range(60)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "given.model"
    path.write_bytes(train_sentencepiece(TEXTS, 300).data)
    return path


def read(path: Path) -> list[str]:
    return [text for text, _ in Files.find("d", str(path)) if text.strip()]


def command(out, model, *domains) -> list[str]:
    line = [sys.executable, "-m", "ado_megatron.cli", "prepare", "--out", str(out), "--tokenizer", str(model)]
    return line + ["--workers", "2"] + [word for domain in domains for word in ("--domain", domain)]


# ---------------------------------------------------------------- what is read


def test_a_zstandard_file_cut_at_a_flush_is_refused(tmp_path):
    """At a flush all of the frame so far can be decompressed: half of the documents would pass for all."""
    writer = zstandard.ZstdCompressor().compressobj()
    half = LINES.index(b"\n", len(LINES) // 2) + 1
    flushed = writer.compress(LINES[:half]) + writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    whole = flushed + writer.compress(LINES[half:]) + writer.flush()
    (tmp_path / "cut.jsonl.zst").write_bytes(flushed)
    with pytest.raises(UserError, match="domain d: cannot read .*cut.jsonl.zst: it ends inside a zstandard frame"):
        read(tmp_path / "cut.jsonl.zst")
    (tmp_path / "whole.jsonl.zst").write_bytes(whole)
    assert read(tmp_path / "whole.jsonl.zst") == TEXTS


def test_zstandard_files_of_many_frames_and_skippable_ones_are_read_to_the_end(tmp_path):
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00note"
    frames = [zstandard.compress(line + b"\n") for line in LINES.splitlines()]
    (tmp_path / "many.jsonl.zst").write_bytes(skippable + b"".join(frames) + skippable)
    assert read(tmp_path / "many.jsonl.zst") == TEXTS
    (tmp_path / "many.jsonl.zst").write_bytes(b"".join(frames)[:-3])
    with pytest.raises(UserError, match="inside a zstandard frame"):
        read(tmp_path / "many.jsonl.zst")


def test_flipped_bytes_of_compressed_files_are_a_sentence(tmp_path):
    for name, packed in (("a.jsonl.gz", gzip.compress(LINES)), ("a.jsonl.zst", zstandard.compress(LINES))):
        refused = 0
        for at in range(20, len(packed) - 1, max(1, len(packed) // 25)):
            flipped = bytearray(packed)
            flipped[at] ^= 0xFF
            (tmp_path / name).write_bytes(flipped)
            try:
                read(tmp_path / name)
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and name in str(error)
        assert refused > 5


def test_linked_directories_are_read_and_a_circle_of_links_ends(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("from elsewhere\n")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").write_text("from here\n")
    (tmp_path / "d" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d" / "up").symlink_to(tmp_path / "d")
    (tmp_path / "d" / "again").symlink_to(tmp_path / "elsewhere")
    assert sorted(read(tmp_path / "d")) == ["from elsewhere\n", "from here\n"]


NO_FILES = {
    "a pipe": (lambda path: os.mkfifo(path), "is a pipe or a device"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a pipe or a device"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "is a link to nowhere, which cannot be found"),
}


@pytest.mark.parametrize("case", NO_FILES)
@pytest.mark.parametrize("inside", [True, False], ids=["in a directory", "by itself"])
def test_what_cannot_be_read_to_an_end_is_refused_at_once(case, inside, tmp_path):
    make, words = NO_FILES[case]
    (tmp_path / "d").mkdir()
    make(tmp_path / "d" / "x.txt")
    with pytest.raises(UserError, match=f"domain d: .*x.txt {words}"):
        Files.find("d", str(tmp_path / "d" if inside else tmp_path / "d" / "x.txt"))


def test_one_long_line_is_not_told_to_change_what_cannot_help(tmp_path, model, capsys):
    (tmp_path / "line.txt").write_text("alpha beta " * 30_000)
    (tmp_path / "lines.txt").write_text("alpha beta\n" * 300)
    said = []
    for name in ("line", "lines"):
        assert cli.main(command(tmp_path / "out", model, f"d={tmp_path / name}.txt")[3:]) == 2
        said.append(capsys.readouterr().err)
    assert "one document only" in said[0] and "--document-chars" not in said[0] and "line ends" in said[0]
    assert "a smaller --document-chars cuts" in said[1]


# ---------------------------------------------------------------- what is written


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, model):
    """A limit on the size of files fails writes as a full disk does."""
    (tmp_path / "a.jsonl").write_bytes(LINES)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    line = command(tmp_path / "out", model, f"a={tmp_path / 'a.jsonl'}")
    done = subprocess.run(line, preexec_fn=limit, capture_output=True, text=True, timeout=120)
    said = [text for text in done.stderr.splitlines() if "tokenizing" not in text]
    assert done.returncode == 2 and len(said) == 1, done.stderr
    assert "error: --out" in said[0] and "cannot be written: File too large" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def _workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_prepare_takes_its_workers_along_and_a_rerun_sweeps_up(number, tmp_path, model, monkeypatch):
    (tmp_path / "big.jsonl").write_bytes(b"".join(LINES.replace(b"document", b"document %d" % i) for i in range(3000)))
    process = subprocess.Popen(command(tmp_path / "out", model, f"a={tmp_path / 'big.jsonl'}"), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(workers := _workers_of(process)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2 and process.poll() is None
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode == (143 if number == signal.SIGTERM else -9) and "Traceback" not in errors
    psutil.wait_procs(workers, timeout=20)
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    partial = list(tmp_path.glob(".out.partial-*"))
    assert len(partial) == (0 if number == signal.SIGTERM else 1)
    monkeypatch.setattr("ado_megatron.prepare.output.JUST_MADE", 0.0)
    sweep(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.jsonl"]


def test_a_partial_directory_of_a_living_prepare_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("ado_megatron.prepare.output.JUST_MADE", 0.0)
    with partial_directory(tmp_path / "out") as folder:
        sweep(tmp_path / "out")
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_data_that_a_kill_left_moved_aside_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setattr("ado_megatron.prepare.output.JUST_MADE", 0.0)
    (tmp_path / ".out.old-x" / "data").mkdir(parents=True)
    (tmp_path / ".out.old-x" / "data" / "manifest.json").write_text("{}")
    sweep(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "manifest.json").is_file()


def test_a_domain_that_cannot_be_validated_is_named(tmp_path, model, caplog):
    (tmp_path / "rare.jsonl").write_bytes(LINES)
    assert cli.main(command(tmp_path / "out", model, f"rare={tmp_path / 'rare.jsonl'}")[3:]) == 0
    (domain,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["domains"]
    assert domain["valid_tokens"] >= 0.1 * (domain["tokens"] + domain["valid_tokens"])
    (said,) = [record.message for record in caplog.records if "held out" in record.message]
    assert said.startswith(f"domain rare: {domain['valid_tokens']:,} tokens are held out, fewer than the 4,096")
