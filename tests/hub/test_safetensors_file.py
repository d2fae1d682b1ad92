"""The safetensors reader against good, damaged and lying files."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyplm.errors import CheckpointError, DtypeError, MissingFileError
from tinyplm.hub import safetensors_file
from tinyplm.hub.safetensors_file import read_safetensors, write_safetensors

KINDS = [
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "float32", "float64", "complex64"),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
]


def file_of(header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def described(shape=(2,), dtype="F32", offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def write(path, arrays):
    with open(path, "wb") as stream:
        write_safetensors(stream, arrays)
    return path


@pytest.fixture
def arrays(rng):
    return {
        "b": rng.normal(size=(3, 4)).astype("float32"),
        "a": rng.normal(size=(5,)).astype("float64"),
        "empty": np.zeros((0, 3), "float32"),
        "scalar": np.array(2.5, "float32"),
        "한글": rng.normal(size=(2, 2)).astype(ml_dtypes.bfloat16),
    }


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_dtype_comes_back_with_the_same_bits(tmp_path, rng, kind):
    array = np.frombuffer(rng.bytes(96), np.uint8).reshape(6, 16).copy()
    array = (array & 1 if kind == "bool" else array).view(kind)
    read = read_safetensors(write(tmp_path / "a", {"x": array}))["x"].read()
    assert read.dtype == array.dtype
    assert read.shape == array.shape
    assert read.tobytes() == array.tobytes()


def test_the_library_reads_what_is_written_here(tmp_path, arrays):
    theirs = safetensors.numpy.load_file(write(tmp_path / "a", arrays))
    assert theirs.keys() == arrays.keys()
    for name, array in arrays.items():
        assert theirs[name].dtype == array.dtype
        np.testing.assert_array_equal(theirs[name], array)


def test_what_the_library_writes_is_read_here(tmp_path, arrays):
    safetensors.numpy.save_file(arrays, tmp_path / "a", metadata={"format": "pt"})
    ours = read_safetensors(tmp_path / "a")
    assert ours.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (ours[name].shape, ours[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(ours[name].read(), array)


def test_both_write_the_same_order(tmp_path, arrays):
    safetensors.numpy.save_file(arrays, tmp_path / "theirs")
    theirs, ours = read_safetensors(tmp_path / "theirs"), write(tmp_path / "ours", arrays)
    assert list(read_safetensors(ours)) == list(theirs)


def test_an_array_read_belongs_to_the_caller(tmp_path):
    entry = read_safetensors(write(tmp_path / "a", {"x": np.ones(3, "float32")}))["x"]
    entry.read()[:] = 7
    np.testing.assert_array_equal(entry.read(), [1, 1, 1])


def test_arrays_that_are_not_contiguous_are_written_as_they_look(tmp_path, rng):
    array = rng.normal(size=(4, 6)).astype("float32")
    read = read_safetensors(write(tmp_path / "a", {"x": array.T[::2]}))["x"].read()
    np.testing.assert_array_equal(read, array.T[::2])


def test_a_dtype_that_the_format_lacks_is_refused_on_writing(tmp_path):
    with pytest.raises(DtypeError, match="x has dtype"):
        write(tmp_path / "a", {"x": np.zeros(2, "complex128")})


DEEP = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
LIES = {
    "empty file": (b"", "has 0 bytes"),
    "seven bytes": (b"\0" * 7, "has 7 bytes"),
    "length without header": (file_of(b"", length=0), "must begin with"),
    "header longer than the file": (file_of({}, length=1000), "announces a header of 1,000"),
    "header over the limit": (file_of(b"{}", length=100_000_001), "100,000,000 are allowed"),
    "header of all ones": (b"\xff" * 100, "announces a header"),
    "space before the header": (file_of(b" {}"), "must begin with"),
    "list": (file_of(b"[]"), "must begin with"),
    "cut JSON": (file_of(b'{"x":'), "not valid JSON"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "not valid JSON in UTF-8"),
    "two objects": (file_of(b"{}{}"), "not valid JSON"),
    "deep": (file_of(DEEP), "nested too deeply"),
    "long number": (file_of(b'{"x":' + b"9" * 9999 + b"}"), "not valid JSON"),
    "NaN": (file_of(b'{"x": NaN}'), "not a JSON number"),
    "overflow": (file_of(b'{"x": 1e999}'), "not a JSON number"),
    "name twice": (
        file_of(b'{"x":%b,"x":%b}' % ((json.dumps(described()).encode(),) * 2), bytes(8)),
        "'x' is given twice",
    ),
    "name twice, escaped": (
        file_of(b'{"x":%b,"\\u0078":%b}' % ((json.dumps(described()).encode(),) * 2), bytes(8)),
        "'x' is given twice",
    ),
    "dtype twice": (
        file_of(b'{"x":{"dtype":"F32","dtype":"F64","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "'dtype' is given twice",
    ),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata as list": (file_of({"__metadata__": []}), "__metadata__"),
    "entry as list": (file_of({"x": []}), "must have dtype, shape and data_offsets"),
    "entry without dtype": (file_of({"x": {"shape": [], "data_offsets": [0, 0]}}), "must have"),
    "entry with more": (file_of({"x": described() | {"more": 1}}, bytes(8)), "nothing else"),
    "unknown dtype": (file_of({"x": described(dtype="F31")}, bytes(8)), "'F31', which is not read"),
    "dtype is a list": (file_of({"x": described(dtype=[])}, bytes(8)), "which is not read"),
    "half-byte dtype": (file_of({"x": described(dtype="F4")}, bytes(8)), "'F4', which is not read"),
    "negative shape": (file_of({"x": described((-2, -1))}, bytes(8)), "none negative"),
    "fraction": (file_of({"x": described((2.0,))}, bytes(8)), "whole numbers"),
    "truth value": (file_of({"x": described((True, 2))}, bytes(8)), "whole numbers"),
    "text": (file_of({"x": described(("2",))}, bytes(8)), "whole numbers"),
    "many axes": (file_of({"x": described((1,) * 33 + (2,))}, bytes(8)), "at most 32"),
    "overflow of 64 bits": (file_of({"x": described((2**62, 4))}, bytes(8)), "would have"),
    "overflow hidden by zero": (
        file_of({"x": described((2**62, 2**62, 0), offsets=(0, 0))}),
        "would have",
    ),
    "negative offset": (file_of({"x": described(offsets=(-8, 0))}, bytes(8)), "none negative"),
    "three offsets": (file_of({"x": described(offsets=(0, 8, 8))}, bytes(8)), "two whole numbers"),
    "offsets backwards": (file_of({"x": described(offsets=(8, 0))}, bytes(8)), "offsets 8 to 0"),
    "size wrong": (file_of({"x": described((3,))}, bytes(8)), "12 bytes, but its offsets 0 to 8"),
    "hole at the start": (file_of({"x": described(offsets=(8, 16))}, bytes(16)), "leaves a hole"),
    "hole": (
        file_of({"x": described(), "y": described(offsets=(16, 24))}, bytes(24)),
        "'y' begins at 16, which leaves a hole; expected 8",
    ),
    "overlap": (
        file_of({"x": described(), "y": described(offsets=(4, 12))}, bytes(12)),
        "'y' begins at 4, which overlaps",
    ),
    "same place twice": (file_of({"x": described(), "y": described()}, bytes(8)), "overlaps"),
    "data cut short": (file_of({"x": described()}, bytes(7)), "cut short"),
    "no data": (file_of({"x": described()}), "cut short"),
    "something after the end": (file_of({"x": described()}, bytes(9)), "followed by something"),
    "a zip archive after the end": (file_of({}, b"PK\x03\x04"), "followed by something"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS pointer"),
}


@pytest.mark.parametrize("case", LIES, ids=str)
def test_a_lying_file_is_refused_with_its_reason(tmp_path, case):
    data, reason = LIES[case]
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(CheckpointError, match=reason):
        read_safetensors(tmp_path / "a")


@pytest.mark.parametrize(
    "dtype", ["F6_E2M3", "F8_E4M3FN", "f32", "F32 ", "I128", "", "C128", "BF16\0"]
)
def test_only_the_known_dtypes_are_read(tmp_path, dtype):
    (tmp_path / "a").write_bytes(file_of({"x": described(dtype=dtype)}, bytes(8)))
    with pytest.raises(CheckpointError, match="is not read"):
        read_safetensors(tmp_path / "a")


def test_a_header_padded_with_spaces_is_read(tmp_path):
    text = json.dumps({"x": described()}).encode() + b"   "
    (tmp_path / "a").write_bytes(file_of(text, np.array([1, 2], "float32").tobytes()))
    np.testing.assert_array_equal(read_safetensors(tmp_path / "a")["x"].read(), [1, 2])


def test_a_file_cut_at_any_byte_is_refused(tmp_path, arrays):
    whole = write(tmp_path / "a", arrays).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "b").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_safetensors(tmp_path / "b")


def test_a_file_cut_after_it_was_opened_is_an_error_and_no_crash(tmp_path, arrays):
    path = write(tmp_path / "a", arrays)
    entries = read_safetensors(path)
    os.truncate(path, 300)
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        entries["b"].read()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingFileError, match="nothing"):
        read_safetensors(tmp_path / "nothing")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a")
    with pytest.raises(CheckpointError, match="a device, a pipe or a socket"):
        read_safetensors(tmp_path / "a")


def test_devices_and_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="a folder"):
        read_safetensors(tmp_path)
    if os.path.exists("/dev/zero"):
        (tmp_path / "a").symlink_to("/dev/zero")
        with pytest.raises(CheckpointError, match="a device"):
            read_safetensors(tmp_path / "a")


GOOD = {
    "w": np.arange(6, dtype="float32").reshape(2, 3),
    "bias": np.arange(4, dtype="float16"),
    "n": np.arange(3, dtype="int64"),
}


@pytest.fixture(scope="module")
def good_file(tmp_path_factory):
    path = write(tmp_path_factory.mktemp("good") / "a", GOOD)
    return path, path.read_bytes()


def header_end(data):
    return 8 + int.from_bytes(data[:8], "little")


def try_to_read(path):
    """The values of every tensor, or None when refused; anything else that is raised is a bug."""
    try:
        return {name: entry.read() for name, entry in read_safetensors(path).items()}
    except CheckpointError:
        return None


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_a_changed_header_is_refused_or_says_what_it_means(good_file, data):
    path, whole = good_file
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, header_end(whole) - 1))
        changed[position] = data.draw(
            st.one_of(st.integers(0, 255), st.sampled_from(b'0129[]{},:"'))
        )
    path.write_bytes(changed)
    read = try_to_read(path)
    if read is not None:
        # What is left is a valid file: the library must see the same arrays in it.
        theirs = safetensors.numpy.load(bytes(changed))
        assert theirs.keys() == read.keys()
        for name, array in read.items():
            assert array.shape == theirs[name].shape
            assert array.tobytes() == theirs[name].tobytes()


@settings(max_examples=300, deadline=None)
@given(
    header=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "x", "y"]), inner
            )
        ),
        max_leaves=12,
    ),
    data=st.binary(max_size=24),
)
def test_headers_of_any_form_never_end_in_another_error(good_file, header, data):
    path, _ = good_file
    path.write_bytes(file_of(header, data))
    try_to_read(path)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_noise_never_ends_in_another_error(good_file, data):
    path, _ = good_file
    path.write_bytes(data)
    try_to_read(path)


def test_the_limit_on_values_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr("tinyplm.hub.regular_file.JSON_VALUES", 20)
    (tmp_path / "a").write_bytes(file_of({f"x{i}": [] for i in range(30)}))
    with pytest.raises(CheckpointError, match="more than 20 values"):
        read_safetensors(tmp_path / "a")
    assert safetensors_file.HEADER_LIMIT == 100_000_000
