"""The .npz reader against numpy's own, and against files whose headers claim what they do not hold."""

import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from ado_megatron.npz import nest, read_npz, unnest


@given(
    array=arrays_of.arrays(
        st.sampled_from(["<f8", "<i4", "?", "<u2", "<f4"]), arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0)
    ),
    compressed=st.booleans(), by_column=st.booleans(),
)  # fmt: skip
def test_what_numpy_writes_is_read(array, compressed, by_column):
    file = io.BytesIO()
    array = np.asfortranarray(array) if by_column else array
    (np.savez_compressed if compressed else np.savez)(file, a=array, names=np.array(["wiki", "日本語"]))
    got = read_npz(file)
    np.testing.assert_array_equal(got["a"], array, strict=True)
    assert got["names"].tolist() == ["wiki", "日本語"] and got["a"].flags.writeable


def npz_of(npy, name="a.npy", **kwargs):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **kwargs) as archive:
        archive.writestr(name, npy)
    return file


def npy(shape="(1000000000000,)", descr="'<f8'", body=b"\0" * 80):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (npz_of(npy()), "claims shape"),
        (npz_of(npy("(4294967296, 4294967296, 10)")), "claims shape"),  # the product wraps around in 64 bits
        (npz_of(npy("(-10,)")), "claims shape"),
        (npz_of(npy("(9,)")), "claims shape"),
        (npz_of(npy("(10,)", "'|O'")), "holds object, not numbers"),
        (npz_of(npy("(10,)", "[('x', '<f8')]")), "not numbers or text"),
        (npz_of(npy("(5,)", "'<U4'", b"\xff" * 80)), "text that is none"),
        (npz_of(b"hello"), "no whole .npz file"),
        (npz_of(npy("(10,)"), compression=zipfile.ZIP_BZIP2), "packed in a way"),
        (io.BytesIO(b"PK\x03\x04" + b"\0" * 100), "no whole .npz file"),
        (io.BytesIO(b""), "no whole .npz file"),
    ],
)
def test_what_is_none_is_refused_in_words(file, words):
    with pytest.raises(ValueError, match=words):
        read_npz(file)


def test_memory_is_bounded_before_anything_is_unpacked():
    bomb = npz_of(npy(f"({30 << 20},)", "'|i1'", bytes(30 << 20)), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="too large"):
        read_npz(bomb, most_bytes=1 << 20)
    data = bytearray(npz_of(npy("(10,)")).getvalue())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 1 << 30)  # the size that the directory claims
    with pytest.raises(ValueError, match="claims 1073741824 bytes"):
        read_npz(io.BytesIO(bytes(data)))


def test_nested_names_come_apart_again():
    flat = nest("a/", {"x": [1, 2]}) | nest("ab/", {"x": [3]}) | nest("a.", {"x": 4})
    assert unnest("a/", flat)["x"].tolist() == [1, 2] and unnest("a.", flat)["x"].tolist() == 4
    assert list(unnest("ab/", flat)) == ["x"] and list(flat) == ["a/x", "ab/x", "a.x"]
