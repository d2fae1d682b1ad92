"""Old `pytorch_model.bin` files, read without pickle and without torch.

Such a file is a pickle: a program that, run by Python's own reader, may import and call anything.
Here the program is interpreted by us. A closed list of opcodes builds plain containers; a closed
list of names stands for tensors, storages and dtypes; nothing is imported and nothing called. Any
other opcode or name ends the reading.

Two layouts are known. Since torch 1.6 the file is a zip archive, `NAME/data.pkl` the program and
`NAME/data/KEY` the bytes of each storage, all stored without compression, and that is demanded.
Before, it was five parts in a row: three short programs (a magic number, a version, the machine),
the program itself, the list of storage keys, and then each storage behind its length.

What a program can make us keep is bounded by its length and its count of opcodes; what a tensor
can make us read is bounded by the storage it lies in.
"""

import io
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..types import Array
from .entry import TensorEntry, dtype_named, shown
from .regular_file import RegularFile

PROGRAM_BYTES = 32_000_000
PROGRAM_OPCODES = 500_000
DIRECTORY_BYTES = 8_000_000
AXES_LIMIT = 32
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# Tensors may share a storage and lie in it with gaps. This is how much more than the file they may
# ask us to go through in total.
SHARING_LIMIT = 16

_STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.storage.UntypedStorage": "uint8",
}
_DTYPES = {
    f"torch.{name}": name
    for name in (
        *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
        *("bool", "complex64", "complex128"),
    )
}
_KNOWN_TO_PICKLE = {opcode.code: opcode for opcode in pickletools.opcodes}
_OPCODES = {
    *("PROTO", "FRAME", "STOP", "MARK", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET"),
    *("LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
    *("BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
    *("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
    "BINPERSID",
}
_CALLS = {
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
}


@dataclass(frozen=True)
class _Global:
    """A name that the program mentions; only ever compared, never looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Values from the first one used to the last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))


class _Mark:
    """Where a group of stack values begins."""


def read_torch(path: Path) -> dict[str, TensorEntry]:
    """The tensors that torch saved under names in one dictionary; values are read later.

    Raises:
        CheckpointError: the file is damaged, or holds anything but tensors in a dictionary.
    """
    file = RegularFile(path)
    start = file.read(0, min(4, file.size)).tobytes()
    if start == b"PK\x03\x04":
        state, locate = _read_archive(file)
    elif start[:1] == b"\x80":
        state, locate = _read_legacy(file)
    else:
        raise CheckpointError(
            f"{path} begins with {start!r}; it is neither a zip archive nor a pickle of torch. "
            "The file is damaged, older than torch 0.2, or something else under this name (a Git "
            "LFS pointer?). Ask the author for model.safetensors."
        )
    if not isinstance(state, dict) or not state:
        raise CheckpointError(
            f"{path} holds {'nothing' if isinstance(state, dict) else type(state).__name__}; "
            "expected a dictionary of tensors by name."
        )
    entries: dict[str, TensorEntry] = {}
    asked = 0
    for name, value in state.items():
        if not isinstance(value, _Tensor):
            raise CheckpointError(
                f"{path}: {shown(name)} is {type(value).__name__}, not a tensor. If this is a "
                "training checkpoint, save its model alone and read that."
            )
        offset, crc = locate(value.storage)
        asked += value.span * value.dtype.itemsize
        if asked > SHARING_LIMIT * file.size:
            raise CheckpointError(f"{path}: the tensors overlap more than sharing explains.")
        reader = partial(_read_tensor, file, value, offset, crc)
        entries[name] = TensorEntry(name, value.shape, value.dtype, path, reader)
    return entries


def _read_tensor(file: RegularFile, tensor: _Tensor, offset: int, crc: int | None) -> Array:
    width = tensor.dtype.itemsize
    data = file.read(offset + tensor.offset * width, tensor.span * width)
    whole = data.nbytes == tensor.storage.count * tensor.storage.dtype.itemsize
    if crc is not None and whole and zlib.crc32(data.data) != crc:
        raise CheckpointError(
            f"{file.path}: the checksum of storage {tensor.storage.key} does not match its bytes. "
            "The file is damaged; copy or download it again."
        )
    if not tensor.span:
        return data.view(tensor.dtype).reshape(tensor.shape)
    strides = [stride * width for stride in tensor.strides]
    # NumPy checks once more that no place lies outside the buffer.
    view = np.ndarray(tensor.shape, tensor.dtype, buffer=data.data, strides=strides)
    return np.ascontiguousarray(view).reshape(tensor.shape)


# ---- the two layouts

_Locate = Callable[[_Storage], tuple[int, int | None]]


def _read_archive(file: RegularFile) -> tuple[object, _Locate]:
    """The program's result, and where each storage of a zip archive begins, with its checksum."""
    _bound_directory(file)
    try:
        with file.stream() as stream, zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
        raise CheckpointError(
            f"{file.path} is a damaged zip archive ({error}). Copy or download it again."
        ) from None
    by_name = {member.filename: member for member in members}
    if len(by_name) != len(members):
        raise CheckpointError(f"{file.path}: a member of the archive is given twice; refused.")
    programs = [name for name in by_name if name.endswith("/data.pkl")]
    if len(programs) != 1 or programs[0].count("/") != 1:
        raise CheckpointError(
            f"{file.path}: expected one NAME/data.pkl in the archive, found {len(programs)}. "
            "It was not written by torch.save."
        )
    root = programs[0].removesuffix("data.pkl")

    def place(name: str) -> tuple[int, zipfile.ZipInfo]:
        member = by_name.get(name)
        if member is None:
            raise CheckpointError(f"{file.path}: the archive lacks {shown(name)}.")
        stored = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
        if not stored or member.compress_size != member.file_size:
            raise CheckpointError(
                f"{file.path}: {shown(name)} is compressed or encrypted; torch stores plainly. "
                "Refused, because a small file could become a huge one."
            )
        local = file.read(member.header_offset, 30).tobytes()
        if local[:4] != b"PK\x03\x04":
            raise CheckpointError(f"{file.path}: {shown(name)} has no header where it should be.")
        name_length, extra_length = struct.unpack("<HH", local[26:30])
        begin = member.header_offset + 30 + name_length + extra_length
        if begin + member.file_size > file.size:
            raise CheckpointError(f"{file.path}: {shown(name)} reaches past the end of the file.")
        return begin, member

    def content(name: str, limit: int) -> bytes:
        begin, member = place(name)
        if member.file_size > limit:
            raise CheckpointError(
                f"{file.path}: {shown(name)} has {member.file_size:,} bytes; at most {limit:,} "
                "are read."
            )
        data = file.read(begin, member.file_size).tobytes()
        if zlib.crc32(data) != member.CRC:
            raise CheckpointError(f"{file.path}: {shown(name)} is damaged (checksum).")
        return data

    order = f"{root}byteorder"
    if order in by_name and content(order, 16) != b"little":
        raise CheckpointError(f"{file.path} was written on a big-endian machine; not read.")

    def locate(storage: _Storage) -> tuple[int, int | None]:
        begin, member = place(f"{root}data/{storage.key}")
        if member.file_size != storage.count * storage.dtype.itemsize:
            raise CheckpointError(
                f"{file.path}: storage {shown(storage.key)} has {member.file_size:,} bytes; "
                f"{storage.count:,} values of {storage.dtype} were announced."
            )
        return begin, member.CRC

    program = io.BytesIO(content(programs[0], PROGRAM_BYTES))
    state = _run(program, file.path)
    return state, locate


def _bound_directory(file: RegularFile) -> None:
    """Refuse a directory of members so large that listing it would cost much memory."""
    end = file.read(max(file.size - 22, 0), min(22, file.size)).tobytes()
    if end[:4] != b"PK\x05\x06":
        raise CheckpointError(
            f"{file.path} does not end like a zip archive; it is cut short or something follows."
        )
    sizes = [int.from_bytes(end[12:16], "little")]
    if file.size >= 98 and file.read(file.size - 42, 4).tobytes() == b"PK\x06\x07":
        # Archives of many gigabytes have a larger record; readers look for it in two places.
        pointer = int.from_bytes(file.read(file.size - 34, 8).tobytes(), "little")
        for at in (file.size - 98, min(pointer, file.size - 98)):
            record = file.read(at, 56).tobytes()
            if record[:4] == b"PK\x06\x06":
                sizes.append(int.from_bytes(record[40:48], "little"))
    known = [size for size in sizes if size != 0xFFFFFFFF]
    if max(known, default=0) > DIRECTORY_BYTES:
        raise CheckpointError(f"{file.path}: a directory of {max(known):,} bytes; refused.")


def _read_legacy(file: RegularFile) -> tuple[object, _Locate]:
    """The program's result, and where each storage of a file of before torch 1.6 begins."""
    head = io.BytesIO(file.read(0, min(file.size, PROGRAM_BYTES)).tobytes())
    magic = _run(head, file.path)
    version = _run(head, file.path) if magic == LEGACY_MAGIC else None
    if magic != LEGACY_MAGIC or version != LEGACY_PROTOCOL:
        raise CheckpointError(
            f"{file.path} is a pickle, but not one that torch.save writes (magic number or "
            "version differ). Refused. Ask the author for model.safetensors."
        )
    machine = _run(head, file.path)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CheckpointError(f"{file.path} was written on a big-endian machine; not read.")
    storages: dict[str, _Storage] = {}
    state = _run(head, file.path, storages)
    keys = _run(head, file.path)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError(f"{file.path}: the list of storage keys is damaged.")
    if len(set(keys)) != len(keys) or set(keys) != set(storages):
        raise CheckpointError(f"{file.path}: storages and the tensors that use them differ.")
    begins: dict[str, int] = {}
    position = head.tell()
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(file.read(position, 8).tobytes(), "little", signed=True)
        size = storage.count * storage.dtype.itemsize
        if count != storage.count or position + 8 + size > file.size:
            raise CheckpointError(
                f"{file.path}: storage {shown(key)} should hold {storage.count:,} values; it "
                f"announces {count:,} and {file.size - position - 8:,} bytes are left. The file "
                "is cut short or damaged."
            )
        begins[key] = position + 8
        position += 8 + size
    if position != file.size:
        raise CheckpointError(
            f"{file.path}: {file.size - position:,} bytes follow the last storage."
        )
    return state, lambda storage: (begins[storage.key], None)


# ---- the interpreter


def _run(stream: io.BytesIO, path: Path, storages: dict[str, _Storage] | None = None) -> object:
    """Interpret one program and leave stream behind it; collect the storages it names."""
    machine = _Machine(path, {} if storages is None else storages)
    try:
        for _ in range(PROGRAM_OPCODES):
            opcode = _KNOWN_TO_PICKLE[stream.read(1).decode("latin-1")]
            # Refused before its argument is read: some of the others read in surprising ways.
            if opcode.name not in _OPCODES:
                raise machine.refused(f"uses the pickle opcode {opcode.name}")
            if opcode.name == "GLOBAL":
                argument: Any = _two_lines(stream)
            else:
                argument = opcode.arg and opcode.arg.reader(stream)
            machine.step(opcode.name, argument)
            if opcode.name == "STOP":
                return machine.result
        raise CheckpointError(f"{path}: more than {PROGRAM_OPCODES:,} steps; refused.")
    except CheckpointError:
        raise
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
        # A stack that is too short, a memo that was never set, a text that is no text.
        raise CheckpointError(
            f"{path}: the pickle in it is damaged ({type(error).__name__}). Copy or download the "
            "file again, or ask the author for model.safetensors."
        ) from None


def _two_lines(stream: io.BytesIO) -> str:
    """A module and a name in it, with a dot between."""
    lines = [stream.readline(), stream.readline()]
    if not all(line.endswith(b"\n") for line in lines):
        raise ValueError
    return ".".join(line[:-1].decode("utf-8") for line in lines)


class _Machine:
    """The stack and the memo of a pickle, able to make containers and tensor descriptions."""

    def __init__(self, path: Path, storages: dict[str, _Storage]) -> None:
        self.path = path
        self.storages = storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None
        self.copied = 0

    def step(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                stack.append(_Mark)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINSTRING" | "SHORT_BINSTRING":
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                self.need(count)
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                stack.append(tuple(self.since_mark()))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                value = stack.pop()
                self.top(list).append(value)
            case "APPENDS":
                values = self.since_mark()
                self.top(list).extend(values)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                self.need(3)
                pair = stack[-2:]
                del stack[-2:]
                self.fill(self.top(dict), pair)
            case "SETITEMS":
                values = self.since_mark()
                self.fill(self.top(dict), values)
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(self.known(argument))
            case "STACK_GLOBAL":
                self.need(2)
                module, attribute = stack[-2:]
                del stack[-2:]
                if type(module) is not str or type(attribute) is not str:
                    raise TypeError
                stack.append(self.known(f"{module}.{attribute}"))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self.call(function, arguments))
            case "BUILD":
                state = stack.pop()
                if type(self.stack[-1]) is not dict or type(state) is not dict:
                    raise self.refused("sets the state of an object")
                # The state of a dictionary of weights is `_metadata`, version numbers; not needed.
            case "BINPERSID":
                stack.append(self.storage(stack.pop()))
            case "STOP":
                self.result = stack.pop()

    def need(self, count: int) -> None:
        """Raise if the stack has fewer values."""
        if len(self.stack) < count:
            raise IndexError

    def since_mark(self) -> list[Any]:
        """Take off everything above the last mark, and the mark."""
        position = len(self.stack) - 1
        while self.stack[position] is not _Mark:  # an IndexError when there is none
            position -= 1
            if position < 0:
                raise IndexError
        values = self.stack[position + 1 :]
        del self.stack[position:]
        return values

    def top(self, kind: type) -> Any:
        """The container on top, of exactly this kind."""
        if type(self.stack[-1]) is not kind:
            raise TypeError
        return self.stack[-1]

    def fill(self, made: dict[str, Any], values: list[Any]) -> None:
        """Put key, value, key, value, ... into a dictionary."""
        if len(values) % 2:
            raise ValueError
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Only text: hashing a deep tuple can exhaust the stack, chosen integers the clock.
            if type(key) is not str:
                raise self.refused(f"uses a {type(key).__name__} as a key")
            if key in made:
                raise self.refused(f"gives {shown(key)} twice")
            made[key] = value

    def known(self, name: str) -> _Global:
        """The stand-in for a name of the closed list."""
        if name not in _STORAGES and name not in _DTYPES and name not in _CALLS:
            raise self.refused(f"asks to import {shown(name)}")
        return _Global(name)

    def call(self, function: object, arguments: object) -> object:
        """What a call of one of the known names stands for."""
        if not isinstance(function, _Global) or type(arguments) is not tuple:
            raise self.refused("calls something that is no function")
        match function.name, arguments:
            case "collections.OrderedDict", ():
                return {}
            case "collections.OrderedDict", (list() as pairs,):
                # One list may be used again and again: what it makes counts as steps do.
                self.copied += len(pairs)
                if self.copied > PROGRAM_OPCODES:
                    raise self.refused("copies too much")
                made: dict[str, Any] = {}
                for key, value in pairs:
                    self.fill(made, [key, value])
                return made
            case "torch.Size", (tuple() as extents,):
                return extents
            case "torch._utils._rebuild_parameter", (_Tensor() as tensor, _, _):
                return tensor
            case (
                "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2",
                (_Storage() as storage, offset, shape, strides, *_),
            ):
                return self.tensor(storage, storage.dtype, offset, shape, strides)
            case (
                "torch._utils._rebuild_tensor_v3",
                (_Storage() as storage, offset, shape, strides, _, _, _Global(name=name), *_),
            ) if name in _DTYPES:
                return self.tensor(storage, dtype_named(_DTYPES[name]), offset, shape, strides)
        raise self.refused(f"calls '{function.name}' with unexpected arguments")

    def storage(self, described: object) -> _Storage:
        """The storage that a persistent id describes."""
        match described:
            case ("storage", _Global(name=name), str() as key, str(), int() as count, *rest):
                if name in _STORAGES and type(count) is int and count >= 0 and rest in ([], [None]):
                    made = _Storage(key, dtype_named(_STORAGES[name]), count)
                    if self.storages.setdefault(key, made) == made:
                        return made
        raise self.refused("describes a storage in an unknown or contradictory way")

    def tensor(
        self, storage: _Storage, dtype: np.dtype[Any], offset: Any, shape: Any, strides: Any
    ) -> _Tensor:
        """A tensor that lies within its storage and is not larger than it."""
        axes = type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides)
        if not axes or len(shape) > AXES_LIMIT:
            raise self.refused("makes a tensor without a proper shape and strides")
        if not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
            raise self.refused("makes a tensor of a shape, stride or offset that is no count")
        # The stride of an axis with one place or none is never taken, and may be anything.
        strides = tuple(s if n > 1 else 0 for n, s in zip(shape, strides, strict=True))
        made = _Tensor(storage, dtype, offset, shape, strides)
        room = storage.count * storage.dtype.itemsize // dtype.itemsize
        size = 1
        widest = dtype.itemsize
        for extent in shape:
            size *= extent
            widest *= max(extent, 1)
        if size > room or offset + made.span > room or widest >= 2**63:
            raise self.refused(
                f"makes a tensor of {size:,} values up to place {offset + made.span:,} of a "
                f"storage of {room:,}"
            )
        return made

    def refused(self, what: str) -> CheckpointError:
        """The error for a program that wants more than tensors."""
        return CheckpointError(
            f"{self.path.name} {what}; refused. Only tensors and plain containers are read. Ask "
            "the author for model.safetensors."
        )
