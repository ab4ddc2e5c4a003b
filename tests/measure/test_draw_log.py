"""The draw log on disk: what is written is read back, what is torn is ignored, what is damaged is refused."""

import json
import os
import resource
import struct
import zlib

import numpy as np
import pytest

from ado_megatron.errors import UserError
from ado_megatron.measure import DrawFile, DrawLog
from ado_megatron.measure.draw_log import CHUNK, MAGIC, SIZES
from ado_megatron.stream.sample_key import pack_key
from tests.kit.draws import as_version, chunk_starts


def test_records_survive_the_file_bit_for_bit_and_cost_few_bytes(tmp_path):
    rng = np.random.default_rng(0)
    log = DrawLog(tmp_path, 3, attempt=1, step=0, lengths_C=[1 << 40], seed=0)
    key_SxB = pack_key(np.arange(40 * 1024).reshape(40, 1024), rng.integers(0, 22, (40, 1024)))
    sample_SxB = rng.integers(0, 1 << 20, (40, 1024))
    for step in range(40):
        log.drawn(step, key_SxB[step], sample_SxB[step])
    log.close()
    steps = list(DrawFile.open(log.path).steps())
    assert [step.step for step in steps] == list(range(40))
    assert np.array_equal([step.key_N for step in steps], key_SxB)
    assert np.array_equal([step.sample_N for step in steps], sample_SxB)
    assert log.path.stat().st_size < 5 * key_SxB.size


def chunk(payload, complete=1):
    crc = zlib.crc32(complete.to_bytes(8, "little") + payload)
    return CHUNK.pack(MAGIC, len(payload), crc, complete) + payload


@pytest.fixture
def log(tmp_path):
    """A log of three chunks, one step each."""
    log = DrawLog(tmp_path, 0, attempt=1, step=0, lengths_C=[9], seed=0)
    for step in range(3):
        log.drawn(step, [pack_key(step, 0)], [step])
        log.flush()
    return log


def test_the_layout_is_the_one_of_the_docstring(log):
    data = log.path.read_bytes()
    header = json.loads(data[: data.index(b"\n")])
    assert header["version"] == 3 and header["stream_id_C"] == [0] and header["first_sample"] == 0
    at = chunk_starts(log.path)[1]
    magic, size, crc, complete = struct.unpack_from("<4sIIq", data, at)
    payload = data[at + 20 : at + 20 + size]
    assert (magic, complete, crc) == (b"ADOC", 2, zlib.crc32(data[at + 12 : at + 20 + size]))
    assert struct.unpack_from("<QQQ", payload) == (1, 1, 1)
    numbers = zlib.decompress(payload[24:])  # kind 0, step 1, one key, one sample; the key; the sample
    assert numbers[:8] == bytes([0, 1, 1, 1, 0, 0, 0, 0])
    assert np.frombuffer(numbers[32:40], "<i8") == pack_key(1, 0) and np.frombuffer(numbers[40:], "<i8") == 1


def test_every_cut_leaves_the_whole_chunks_before_it(log):
    data, starts = log.path.read_bytes(), chunk_starts(log.path)
    for length in range(len(data) + 1):
        log.path.write_bytes(data[:length])
        found = DrawFile.open(log.path)
        whole = sum(end <= length for end in starts[1:])
        assert [step.step for step in found.steps()] == list(range(whole))
        assert found.complete == whole and found.torn == (length not in starts)


def test_zeros_that_a_crash_left_at_the_end_are_torn_and_damage_in_the_middle_is_refused(log):
    data, starts = log.path.read_bytes(), chunk_starts(log.path)
    log.path.write_bytes(data + bytes(100))
    assert DrawFile.open(log.path).torn and DrawFile.open(log.path).complete == 3
    for at in range(starts[1], starts[2]):
        log.path.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        try:
            found = DrawFile.open(log.path)
        except UserError as error:
            assert f"is damaged at byte {starts[1]}" in str(error)
        else:  # a length that now points past the end
            assert found.torn and starts[1] + 4 <= at < starts[1] + 8


@pytest.mark.parametrize("version", [1, 2])
def test_logs_of_earlier_versions_are_read(log, version):
    as_version(log.path, version)
    found = DrawFile.open(log.path)
    assert [step.step for step in found.steps()] == [0, 1, 2] and found.complete == 3 and not found.torn
    data = log.path.read_bytes()
    log.path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert DrawFile.open(log.path).torn


def test_a_chunk_that_claims_more_than_it_holds_is_refused_without_reading_it(log):
    data, starts = log.path.read_bytes(), chunk_starts(log.path)
    body = zlib.compress(np.zeros(6, "<i8").tobytes())
    bomb = zlib.compress(bytes(10_000_000))
    for payload in (
        b"short", SIZES.pack(1, 1, 1) + b"no zlib", SIZES.pack(1, 1, 1) + body[:-6], SIZES.pack(1, 1, 1) + bomb,
        SIZES.pack(1 << 60, 1, 1) + body, SIZES.pack(1, 1, 1) + zlib.compress(np.full(6, 9, "<i8").tobytes()),
    ):  # fmt: skip
        log.path.write_bytes(data[: starts[0]] + chunk(payload))
        with pytest.raises(UserError, match="cannot be unpacked"):
            list(DrawFile.open(log.path).steps())
    log.path.write_bytes(data[: starts[0]] + chunk(SIZES.pack(1, 1, 1) + body))
    assert [step.step for step in DrawFile.open(log.path).steps()] == [0]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 4}, {"format": "x"}, {"step": "0"}, {"seed": -1}, {"lengths_C": [0]}, {"lengths_C": 5},
        {"start_C": [0, 0]}, {"stream_id_C": None}, {"first_sample": 1.5}, {"rank": True}, {"attempt": 1 << 80},
    ],
)  # fmt: skip
def test_a_header_of_another_form_is_refused(log, change):
    line, rest = log.path.read_bytes().split(b"\n", 1)
    log.path.write_bytes(json.dumps(json.loads(line) | change).encode() + b"\n" + rest)
    with pytest.raises(UserError, match="is not a draw log of a version up to 3"):
        DrawFile.open(log.path)


def test_a_failed_flush_names_the_file_keeps_the_records_and_leaves_no_half_chunk(log):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    log.drawn(3, [pack_key(3, 0)], [3])
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(log.path) + 10, before[1]))
        with pytest.raises(OSError) as caught:
            log.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(log.path)
    log.flush()
    found = DrawFile.open(log.path)
    assert [step.step for step in found.steps()] == [0, 1, 2, 3] and not found.torn
