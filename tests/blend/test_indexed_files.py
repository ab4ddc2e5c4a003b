"""Prefixes and blends as their files and words describe them."""

import shutil

import numpy as np
import pytest

from ado_megatron.blend import indexed_files
from ado_megatron.blend.indexed_files import (
    check_distinct,
    look_at,
    parse_blend,
    read_prefix,
    reads_elsewhere,
    sampled_content,
)
from ado_megatron.errors import UserError
from tests.kit.training import write_prefix


def test_blends_by_hand():
    assert parse_blend("0.3 a 7 b".split(), "x") == ([0.3, 7.0], ["a", "b"])
    assert parse_blend("a b c".split(), "x") == (None, ["a", "b", "c"])


@pytest.mark.parametrize(
    "words, says",
    [("0.5 a 0.5", "must be pairs"), ("1 a -1 b", "the weight of b in x is -1"),
     ("0 a 0 b", "all weights in x are zero"), ("1 a", "names 1 domain"),
     ("1 a 2 a", "names a twice"), ("1 a 1 b\udce9", "which is not UTF-8"),
     ("1 a 1 b\0", "which is not UTF-8")],
)  # fmt: skip
def test_a_bad_blend_is_a_sentence(words, says):
    with pytest.raises(UserError, match=says) as caught:
        parse_blend(words.split(), "x")
    str(caught.value).encode()  # it can be printed


def test_other_content_of_the_same_size_is_another_identity(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 200, 200_000)
    first = read_prefix(write_prefix(tmp_path / "a", [tokens])).identity()
    assert read_prefix(write_prefix(tmp_path / "a", [tokens])).identity() == first
    shuffled = read_prefix(write_prefix(tmp_path / "a", [np.roll(tokens, 1)])).identity()
    assert shuffled[:4] == first[:4] and shuffled[4] != first[4]


def test_all_samples_count_and_a_small_file_is_read_whole(tmp_path):
    path, size = tmp_path / "x.bin", 100_000
    path.write_bytes(bytes(size))
    whole = sampled_content(path)
    last = size - indexed_files.SAMPLE_BYTES
    for number in range(indexed_files.SAMPLES):
        content = bytearray(size)
        content[last * number // (indexed_files.SAMPLES - 1)] = 1
        path.write_bytes(content)
        assert sampled_content(path) != whole
    small = set()
    for at in range(300):
        path.write_bytes(bytes(at) + b"x" + bytes(299 - at))
        small.add(sampled_content(path))
    assert len(small) == 300
    path.write_bytes(b"")
    assert sampled_content(path) >= 0


def test_one_file_by_two_names_is_refused(tmp_path):
    write_prefix(tmp_path / "a", [np.arange(50)])
    write_prefix(tmp_path / "b", [np.arange(50)])
    a, b = read_prefix(str(tmp_path / "a")), read_prefix(str(tmp_path / "b"))
    check_distinct([a, b], "x")
    with pytest.raises(UserError, match="x names one domain twice: .*a.bin and .*/./a.bin are the same file"):
        check_distinct([a, b, read_prefix(f"{tmp_path}/./a")], "x")


def test_of_many_prefixes_the_content_is_known_without_their_indices(tmp_path):
    paths = [write_prefix(tmp_path / name, [np.arange(n)]) for n, name in enumerate("abc", 3)]
    (tmp_path / "b.idx").unlink()
    found = look_at([*paths, "s3://bucket/d", f"{tmp_path}/a.bin/e"])
    assert [one and one.path for one in found] == [*paths, None, None]
    assert [one.content for one in found[:3]] == [sampled_content(path + ".bin") for path in paths]
    with pytest.raises(UserError, match="names one domain twice"):
        check_distinct(look_at([paths[0], f"{tmp_path}/./a"]), "x")
    (tmp_path / "d.bin").mkdir()
    with pytest.raises(UserError, match="d.bin cannot be read: Is a directory"):
        look_at([f"{tmp_path}/d"])


def test_a_blend_file_of_a_copied_directory_is_told_from_all_others(tmp_path):
    here, copy = tmp_path / "here", tmp_path / "copy"
    here.mkdir()
    write_prefix(here / "a_text_document", [np.arange(9)])
    (here / "manifest.json").write_text("{}")
    (here / "blend.txt").write_text(f"1.0 {here}/a_text_document\n")
    shutil.copytree(here, copy)
    (tmp_path / "link").symlink_to(here)
    assert reads_elsewhere(here / "blend.txt") is None and reads_elsewhere(tmp_path / "link" / "blend.txt") is None
    sentence = reads_elsewhere(copy / "blend.txt")
    assert sentence.startswith(f"{copy}/blend.txt names {here}/a_text_document, not the a_text_document beside it")
    (copy / "manifest.json").unlink()  # a blend file of the user's own means what it says
    assert reads_elsewhere(copy / "blend.txt") is None and reads_elsewhere(tmp_path / "none") is None
