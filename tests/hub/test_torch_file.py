"""The interpreter of old .bin files: what it reads, and everything it must not do."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyplm.errors import CheckpointError
from tinyplm.hub.torch_file import read_torch

# torch need not be installed: these programs are spelled out in the opcodes that it writes.

LEGACY_HEAD = (
    pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    + pickle.dumps(1001, 2)
    + pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}, 2)
)


class Mentioned:
    """Pickles as a mention of module.name with nothing else."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Called:
    """Pickles as a call."""

    def __init__(self, module, name, *arguments):
        self.function, self.arguments = Mentioned(module, name), arguments


class Kept:
    """Pickles as a storage, by persistent id."""

    def __init__(self, key, kind, count, *rest):
        self.id = ("storage", Mentioned("torch", kind), key, "cpu", count, *rest)


class Writer(pickle._Pickler):
    """Python's own pickler, which writes the stand-ins above as torch would its objects."""

    def persistent_id(self, value):
        return value.id if isinstance(value, Kept) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Mentioned):
            self.write(b"c" + f"{value.module}\n{value.name}\n".encode())
        elif isinstance(value, Called):
            self.save(value.function)
            self.save(value.arguments)
            self.write(b"R")
        else:
            super().save(value, save_persistent_id)


def program(value, protocol=2):
    stream = io.BytesIO()
    Writer(stream, protocol).dump(value)
    return stream.getvalue()


def tensor(key="0", count=6, shape=(2, 3), strides=(3, 1), offset=0, kind="FloatStorage", rest=()):
    hooks = Called("collections", "OrderedDict")
    return Called(
        *("torch._utils", "_rebuild_tensor_v2"),
        *(Kept(key, kind, count, *rest), offset, shape, strides, False, hooks),
    )


def archive(path, value, storages, *, method=zipfile.ZIP_STORED, extra=None, root="model"):
    data = value if isinstance(value, bytes) else program(value)
    with zipfile.ZipFile(path, "w", method) as made:
        made.writestr(f"{root}/data.pkl", data)
        made.writestr(f"{root}/byteorder", "little")
        for key, array in storages.items():
            made.writestr(f"{root}/data/{key}", array.tobytes())
        for name, text in (extra or {}).items():
            made.writestr(name, text)
    return path


def legacy(path, value, storages, *, tail=b""):
    parts = [LEGACY_HEAD, program(value), pickle.dumps(list(storages), 2)]
    for array in storages.values():
        parts += [struct.pack("<q", array.size), array.tobytes()]
    path.write_bytes(b"".join(parts) + tail)
    return path


SIX = np.arange(6, dtype="float32")


@pytest.fixture(params=["archive", "legacy"])
def saved(request, tmp_path):
    """A function that saves in one of the two layouts."""

    def save(value, storages):
        if request.param == "archive":
            return archive(tmp_path / "pytorch_model.bin", value, storages)
        return legacy(tmp_path / "pytorch_model.bin", value, storages)

    save.rest = () if request.param == "archive" else (None,)
    return save


def test_tensors_are_read_from_both_layouts(saved):
    entry = read_torch(saved({"w": tensor(rest=saved.rest)}, {"0": SIX}))["w"]
    assert (entry.shape, entry.dtype) == ((2, 3), np.dtype("float32"))
    np.testing.assert_array_equal(entry.read(), SIX.reshape(2, 3))


def test_strides_and_offsets_are_followed(saved):
    value = {
        "transposed": tensor(shape=(3, 2), strides=(1, 3), rest=saved.rest),
        "column": tensor(shape=(2,), strides=(3,), offset=1, rest=saved.rest),
        "scalar": tensor(shape=(), strides=(), offset=5, rest=saved.rest),
        "empty": tensor(shape=(0, 3), strides=(3, 1), rest=saved.rest),
        "odd stride": tensor(shape=(1, 3), strides=(10**30, 1), rest=saved.rest),
    }
    read = {name: entry.read() for name, entry in read_torch(saved(value, {"0": SIX})).items()}
    np.testing.assert_array_equal(read["transposed"], SIX.reshape(2, 3).T)
    np.testing.assert_array_equal(read["column"], [1, 4])
    assert read["scalar"] == 5
    assert read["scalar"].shape == ()
    assert read["empty"].shape == (0, 3)
    np.testing.assert_array_equal(read["odd stride"], [[0, 1, 2]])


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *(("DoubleStorage", "f8"), ("HalfStorage", "f2"), ("BFloat16Storage", ml_dtypes.bfloat16)),
        *(
            ("LongStorage", "i8"),
            ("IntStorage", "i4"),
            ("ShortStorage", "i2"),
            ("CharStorage", "i1"),
        ),
        *(("ByteStorage", "u1"), ("BoolStorage", "?"), ("ComplexFloatStorage", "c8")),
    ],
)
def test_every_storage_has_its_dtype(saved, kind, dtype):
    array = np.array([0, 1, 1, 0, 1, 1]).astype(dtype)
    entry = read_torch(saved({"w": tensor(kind=kind, rest=saved.rest)}, {"0": array}))["w"]
    assert entry.dtype == array.dtype
    np.testing.assert_array_equal(entry.read().ravel(), array)


def test_parameters_ordered_dictionaries_and_shared_storages_are_read(tmp_path):
    hooks = Called("collections", "OrderedDict")
    pairs = [["w", Called("torch._utils", "_rebuild_parameter", tensor(), True, hooks)]]
    pairs += [["tied", tensor()]]
    value = Called("collections", "OrderedDict", pairs)
    read = read_torch(archive(tmp_path / "a", value, {"0": SIX}))
    np.testing.assert_array_equal(read["w"].read(), read["tied"].read())


def test_protocol_four_is_read(tmp_path):
    data = program({"w": tensor()}, protocol=4)
    np.testing.assert_array_equal(
        read_torch(archive(tmp_path / "a", data, {"0": SIX}))["w"].read()[1], [3, 4, 5]
    )


# ---- attacks

FIRED = []


def fire(*arguments):
    FIRED.append(arguments)


class Reduced:
    """A real payload: Python's own pickle would call what this names."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


PAYLOADS = {
    "os.system": (Reduced(os.system, "echo fired"), f"{os.system.__module__}.system"),
    "builtins.eval": (Reduced(eval, "1"), "__builtin__.eval"),
    "builtins.getattr": (Reduced(getattr, "a", "upper"), "__builtin__.getattr"),
    "own function": (Reduced(fire, 1), f"{fire.__module__}.fire"),
    "pickle.loads": (Reduced(pickle.loads, b"N."), "pickle"),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("layout", ["archive", "legacy", "bare"])
def test_a_payload_is_refused_by_name_and_never_runs(tmp_path, payload, protocol, layout):
    value, _ = PAYLOADS[payload]
    data = pickle.dumps({"w": value}, protocol)
    path = tmp_path / "pytorch_model.bin"
    if layout == "archive":
        archive(path, data, {})
    else:
        path.write_bytes((LEGACY_HEAD if layout == "legacy" else b"") + data)
    FIRED.clear()
    with pytest.raises(CheckpointError):
        read_torch(path)
    assert not FIRED


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_refusal_names_what_was_asked_for(tmp_path, payload):
    value, name = PAYLOADS[payload]
    path = archive(tmp_path / "pytorch_model.bin", pickle.dumps({"w": value}, 2), {})
    with pytest.raises(CheckpointError) as caught:
        read_torch(path)
    message = str(caught.value)
    assert message.startswith(f"pytorch_model.bin asks to import '{name}")
    assert message.endswith(
        "refused. Only tensors and plain containers are read. Ask the author for model.safetensors."
    )


NESTED = b"\x80\x02" + b")" + b"\x85" * 400_000 + b"."
REFUSED = {
    "name through attributes": (
        b"\x80\x04\x8c\x05torch\x8c\x0cload.__call_\x93.",
        "asks to import",
    ),
    "module that is no text": (b"\x80\x04)\x8c\x01a\x93.", "damaged"),
    "a known name called wrongly": (Called("torch", "Size", 3), "unexpected arguments"),
    "a dtype called": (Called("torch", "float32"), "unexpected arguments"),
    "a call of text": (b"\x80\x02U\x01a)R.", "no function"),
    "arguments that are a list": (b"\x80\x02ctorch\nSize\n]R.", "no function"),
    "NEWOBJ": (b"\x80\x02ctorch\nSize\n)\x81.", "the pickle opcode NEWOBJ"),
    "INST": (b"(S'a'\nios\nsystem\n.", "the pickle opcode"),
    "OBJ": (b"(ctorch\nSize\no.", "the pickle opcode OBJ"),
    "EXT1": (b"\x80\x02\x82\x01.", "the pickle opcode EXT1"),
    "PERSID": (b"Pabc\n.", "the pickle opcode PERSID"),
    "BUILD on a name": (b"\x80\x02ctorch\nSize\n}b.", "sets the state"),
    "BUILD with other state": (b"\x80\x02}Nb.", "sets the state"),
    "key that is a number": ({1: None}, "uses a int as a key"),
    "key that is a tuple": ({(1, 2): None}, "uses a tuple as a key"),
    "key twice": (b"\x80\x02}(U\x01aNU\x01aNu.", "gives 'a' twice"),
    "deep tuple": (NESTED, "holds tuple"),
    "deep tuple as key": (b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.", "uses a tuple as a key"),
    "too many steps": (b"\x80\x02" + b"N0" * 600_000 + b".", "opcode POP|more than 500,000 steps"),
    "too many values": (b"\x80\x02(" + b"N" * 600_000 + b"t.", "more than 500,000 steps"),
    "copies of one list": (
        b"\x80\x02(ccollections\nOrderedDict\nq\x00]("
        + b"".join(b"(U\x03%03dNt" % i for i in range(999))
        + b"e\x85q\x01R"
        + b"h\x00h\x01R" * 999
        + b"t.",
        "copies too much",
    ),
    "empty stack": (b"\x80\x02\x85.", "damaged"),
    "no mark": (b"\x80\x02Nt.", "damaged"),
    "memo never set": (b"\x80\x02h\x05.", "damaged"),
    "no STOP": (b"\x80\x02N", "damaged"),
    "nothing": (b"", "damaged"),
    "text longer than the file": (b"\x80\x02X\xff\xff\xff\x7fa.", "damaged"),
    "unknown opcode": (b"\x80\x02\xfe.", "damaged"),
    "append to a dictionary": (b"\x80\x02}Na.", "damaged"),
    "item for a list": (b"\x80\x02]U\x01aNs.", "damaged"),
    "a list": ([1], "holds list"),
    "no tensors": ({}, "holds nothing"),
    "a training checkpoint": ({"epoch": 3, "model": {}}, "'epoch' is int, not a tensor"),
    "nested dictionary": ({"model": {"w": None}}, "'model' is dict, not a tensor"),
    "a storage by itself": ({"w": Kept("0", "FloatStorage", 6)}, "'w' is Storage"),
    "unknown storage": ({"w": tensor(kind="QInt8Storage")}, "asks to import 'torch.QInt8Storage'"),
    "storage of a dtype's name": ({"w": tensor(kind="float32")}, "describes a storage"),
    "negative storage": ({"w": tensor(count=-6)}, "describes a storage"),
    "count that is a truth value": ({"w": tensor(count=True)}, "describes a storage"),
    "storage with a view": ({"w": tensor(rest=(("1", 0, 2),))}, "describes a storage"),
    "storage of two sizes": ({"w": tensor(), "v": tensor(count=5)}, "contradictory"),
    "storage that is not there": ({"w": tensor("7")}, "lacks 'model/data/7'"),
    "storage outside": ({"w": tensor("../data.pkl")}, "lacks 'model/data/../data.pkl'"),
    "storage larger than stored": ({"w": tensor(count=7)}, "7 values of float32 were announced"),
    "shape larger": ({"w": tensor(shape=(3, 3))}, "makes a tensor of 9 values"),
    "past the end": ({"w": tensor(offset=1)}, "up to place 7 of a storage of 6"),
    "strides past the end": ({"w": tensor(strides=(4, 1))}, "up to place 7"),
    "one value repeated": (
        {"w": tensor(shape=(10**6, 10**6), strides=(0, 0))},
        "makes a tensor of",
    ),
    "negative offset": ({"w": tensor(offset=-1)}, "no count"),
    "negative stride": ({"w": tensor(strides=(-3, 1))}, "no count"),
    "negative shape": ({"w": tensor(shape=(-2, -3))}, "no count"),
    "shape of fractions": ({"w": tensor(shape=(2.0, 3))}, "no count"),
    "shape of truth values": ({"w": tensor(shape=(True, 3))}, "no count"),
    "shape that is a list": ({"w": tensor(shape=[2, 3])}, "without a proper shape"),
    "fewer strides": ({"w": tensor(strides=(1,))}, "without a proper shape"),
    "too many axes": ({"w": tensor(shape=(1,) * 40, strides=(1,) * 40)}, "without a proper shape"),
    "overflow hidden by zero": (
        {"w": tensor(shape=(0, 2**62, 4), strides=(0, 0, 0))},
        "makes a tensor",
    ),
    "sharing without end": (
        {f"w{i}": tensor() for i in range(2000)},
        "overlap more than sharing explains",
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_a_program_that_does_anything_else_is_refused(tmp_path, case, monkeypatch):
    value, reason = REFUSED[case]
    if case == "sharing without end":
        monkeypatch.setattr("tinyplm.hub.torch_file.SHARING_LIMIT", 0.1)
    with pytest.raises(CheckpointError, match=reason):
        read_torch(archive(tmp_path / "a", value, {"0": SIX}))


def test_a_compressed_archive_is_refused_before_it_is_expanded(tmp_path):
    bomb = np.zeros(10_000_000, "uint8")
    value = {"w": tensor(count=10**7, shape=(10**7,), strides=(1,), kind="ByteStorage")}
    path = archive(tmp_path / "a", value, {"0": bomb}, method=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    with pytest.raises(CheckpointError, match="compressed or encrypted"):
        read_torch(path)
    data = program(value)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("model/data.pkl", data)
        made.writestr("model/data/0", bomb.tobytes(), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="'model/data/0' is compressed"):
        read_torch(path)


def test_archives_that_torch_does_not_write_are_refused(tmp_path):
    path = tmp_path / "a"
    for members, reason in (
        ({"a.txt": "x"}, "found 0"),
        ({"data.pkl": "x"}, "found 0"),
        ({"a/data.pkl": "N.", "b/data.pkl": "N."}, "found 2"),
        ({"a/b/data.pkl": "N."}, "expected one"),
        ({"a/data.pkl": "N.", "a/byteorder": "big"}, "big-endian"),
    ):
        with zipfile.ZipFile(path, "w") as made:
            for name, text in members.items():
                made.writestr(name, text)
        with pytest.raises(CheckpointError, match=reason):
            read_torch(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_given_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w") as made:
        made.writestr("a/data.pkl", "N.")
        made.writestr("a/data.pkl", "N.")
    with pytest.raises(CheckpointError, match="given twice"):
        read_torch(tmp_path / "a")


def test_a_damaged_storage_is_noticed_by_its_checksum(tmp_path):
    path = archive(tmp_path / "a", {"w": tensor()}, {"0": SIX})
    whole = path.read_bytes()
    path.write_bytes(whole.replace(SIX.tobytes(), SIX[::-1].tobytes()))
    with pytest.raises(CheckpointError, match="checksum"):
        read_torch(path)["w"].read()


def test_a_large_directory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tinyplm.hub.torch_file.DIRECTORY_BYTES", 1000)
    more = {f"model/extra/{i}": b"" for i in range(30)}
    path = archive(tmp_path / "a", {"w": tensor()}, {"0": SIX}, extra=more)
    with pytest.raises(CheckpointError, match="a directory of"):
        read_torch(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "neither a zip archive nor a pickle"),
        (b"version https://git-lfs", "LFS pointer"),
        (b"<!doctype html>", "neither"),
        (b"PK\x03\x04", "does not end like a zip"),
        (pickle.dumps({"w": 1}, 2), "not one that torch.save writes"),
        (LEGACY_HEAD, "damaged"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(7, 2), "version differ"),
    ],
)
def test_files_that_are_something_else_are_refused(tmp_path, data, reason):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(CheckpointError, match=reason):
        read_torch(tmp_path / "a")


def test_the_old_layout_is_held_to_its_lengths(tmp_path):
    value = {"w": tensor(rest=(None,))}
    path = legacy(tmp_path / "a", value, {"0": SIX}, tail=b"more")
    with pytest.raises(CheckpointError, match="4 bytes follow the last storage"):
        read_torch(path)
    legacy(path, value, {"0": SIX[:5]})
    with pytest.raises(CheckpointError, match="should hold 6 values; it announces 5"):
        read_torch(path)
    for keys in ({}, {"1": SIX}, {"0": SIX, "1": SIX}):
        legacy(path, value, keys)
        with pytest.raises(CheckpointError, match="storages and the tensors that use them differ"):
            read_torch(path)


def test_either_layout_cut_at_any_byte_is_refused(saved):
    path = saved({"w": tensor(rest=saved.rest), "b": tensor(rest=saved.rest)}, {"0": SIX})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_torch(path)


@pytest.fixture(scope="module")
def good_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    value = OrderedDict(w=tensor(rest=()), b=tensor("1", 2, (2,), (1,)))
    older = OrderedDict(w=tensor(rest=(None,)), b=tensor("1", 2, (2,), (1,), rest=(None,)))
    value, older = Called("collections", "OrderedDict", list(map(list, value.items()))), dict(older)
    storages = {"0": SIX, "1": SIX[:2] + 1}
    made = [archive(folder / "new", value, storages), legacy(folder / "old", older, storages)]
    return folder / "changed", [path.read_bytes() for path in made]


def read_or_refuse(path):
    try:
        return {name: entry.read() for name, entry in read_torch(path).items()}
    except CheckpointError:
        return None


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_changed_bytes_are_refused_or_read_within_the_storage(good_files, data):
    path, wholes = good_files
    changed = bytearray(data.draw(st.sampled_from(wholes)))
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(changed)
    read = read_or_refuse(path)
    if read is not None:
        assert sum(array.nbytes for array in read.values()) <= 16 * len(changed)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([bytes([code]) for code in b"N()]}tasuebRQ.\x85\x86\x87\x88\x94h\x00"]),
            st.sampled_from(
                [b"U\x01a", b"K\x02", b"q\x00", b"h\x00", b"ctorch\nSize\n", b"cos\nsystem\n"]
            ),
            st.sampled_from(
                [
                    b"ctorch._utils\n_rebuild_tensor_v2\n",
                    b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x06tQ",
                    b"ccollections\nOrderedDict\n)R",
                    b"K\x00K\x02\x85K\x01\x85\x89",
                ]
            ),
        ),
        max_size=20,
    )
)
def test_programs_of_any_form_never_end_in_another_error(tmp_path_factory, parts):
    path = tmp_path_factory.getbasetemp() / "program"
    read_or_refuse(archive(path, b"\x80\x02" + b"".join(parts) + b".", {"0": SIX}))
