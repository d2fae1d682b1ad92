"""The pickle inside an old .bin file, as a program that we interpret and that can do nothing.

Run by Python's own reader, a pickle may import and call anything. Here a closed list of opcodes
builds plain containers, and a closed list of names stands for tensors, storages and dtypes; nothing
is imported and nothing called. Any other opcode or name ends the reading. What a program can make
us keep is bounded by its count of opcodes.
"""

import io
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from .entry import dtype_named, shown

PROGRAM_OPCODES = 500_000
AXES_LIMIT = 32

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
class Storage:
    """Where values lie: the key of a block of bytes, and how many of what it holds."""

    key: str
    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor described: which places of its storage it shows, in what order."""

    storage: Storage
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


def run_program(
    stream: io.BytesIO, path: Path, storages: dict[str, Storage] | None = None
) -> object:
    """What one program leaves; stream is behind it then, storages has those that it named.

    Raises:
        CheckpointError: the program is damaged, too long, or does anything but describe tensors.
    """
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

    def __init__(self, path: Path, storages: dict[str, Storage]) -> None:
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
            case "torch._utils._rebuild_parameter", (StoredTensor() as tensor, _, _):
                return tensor
            case (
                "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2",
                (Storage() as storage, offset, shape, strides, *_),
            ):
                return self.tensor(storage, storage.dtype, offset, shape, strides)
            case (
                "torch._utils._rebuild_tensor_v3",
                (Storage() as storage, offset, shape, strides, _, _, _Global(name=name), *_),
            ) if name in _DTYPES:
                return self.tensor(storage, dtype_named(_DTYPES[name]), offset, shape, strides)
        raise self.refused(f"calls '{function.name}' with unexpected arguments")

    def storage(self, described: object) -> Storage:
        """The storage that a persistent id describes."""
        match described:
            case ("storage", _Global(name=name), str() as key, str(), int() as count, *rest):
                if name in _STORAGES and type(count) is int and count >= 0 and rest in ([], [None]):
                    made = Storage(key, dtype_named(_STORAGES[name]), count)
                    if self.storages.setdefault(key, made) == made:
                        return made
        raise self.refused("describes a storage in an unknown or contradictory way")

    def tensor(
        self, storage: Storage, dtype: np.dtype[Any], offset: Any, shape: Any, strides: Any
    ) -> StoredTensor:
        """A tensor that lies within its storage and is not larger than it."""
        axes = type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides)
        if not axes or len(shape) > AXES_LIMIT:
            raise self.refused("makes a tensor without a proper shape and strides")
        if not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
            raise self.refused("makes a tensor of a shape, stride or offset that is no count")
        # The stride of an axis with one place or none is never taken, and may be anything.
        strides = tuple(s if n > 1 else 0 for n, s in zip(shape, strides, strict=True))
        made = StoredTensor(storage, dtype, offset, shape, strides)
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
