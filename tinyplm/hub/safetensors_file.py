"""The safetensors format: eight bytes of length, a JSON header, then the arrays, nothing else.

Reading is ours because the header is input: every rule of the format is checked before an array is
made, and one more, that no tensor is named twice. Bytes are read when a tensor is asked for, by
plain reads and not through a map, so that a file cut short meanwhile is an error and not a crash,
and a folder can be saved over while a model read from it is alive.

    bytes 0-7      N, little-endian
    bytes 8-8+N    {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
    the rest       row-major little-endian values; offsets count from here, without hole or overlap
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import CheckpointError, DtypeError
from ..types import Array
from .entry import TensorEntry, dtype_named, shown
from .regular_file import RegularFile, parse_json

HEADER_LIMIT = 100_000_000
# NumPy has at most 32 axes in its oldest supported form; a weight has four.
AXES_LIMIT = 32
BYTES_LIMIT = 2**63

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


def read_safetensors(path: Path) -> dict[str, TensorEntry]:
    """What a safetensors file holds, by name, in file order; values are read later.

    Raises:
        CheckpointError: the file breaks a rule of the format; the message says which.
    """
    file = RegularFile(path)
    if file.size < 8:
        raise CheckpointError(
            f"{path} has {file.size} bytes; a safetensors file has at least 8. "
            "The download or the save was interrupted."
        )
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    if length > HEADER_LIMIT or length > file.size - 8:
        raise CheckpointError(
            f"{path} announces a header of {length:,} bytes, but has {file.size - 8:,} bytes after "
            f"the length, and {HEADER_LIMIT:,} are allowed. The file is cut short, or is not "
            "safetensors (a Git LFS pointer, or a page saved in its place?)."
        )
    text = file.read(8, length).tobytes()
    if not text.startswith(b"{"):
        raise CheckpointError(f"{path}: the header must begin with '{{'; found {text[:8]!r}.")
    header = parse_json(text, where=f"{path}, header")
    del text
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ must map texts to texts.")

    found = [(name, *_described(path, name, info)) for name, info in header.items()]
    found.sort(key=lambda one: (one[3], one[4]))
    entries: dict[str, TensorEntry] = {}
    expected = 0
    for name, shape, dtype, begin, end in found:
        if begin != expected:
            kind = "overlaps the tensor before it" if begin < expected else "leaves a hole"
            raise CheckpointError(
                f"{path}: {shown(name)} begins at {begin:,}, which {kind}; expected {expected:,}."
            )
        expected = end
        reader = partial(_read, file, 8 + length + begin, shape, dtype)
        entries[name] = TensorEntry(name, shape, dtype, path, reader)
    available = file.size - 8 - length
    if expected != available:
        kind = "cut short" if expected > available else "followed by something else"
        raise CheckpointError(
            f"{path}: the tensors take {expected:,} bytes, but {available:,} bytes follow the "
            f"header; the file is {kind}. Copy or download it again."
        )
    return entries


def _described(
    path: Path, name: str, info: object
) -> tuple[tuple[int, ...], np.dtype[Any], int, int]:
    """Shape, dtype and offsets of one header entry, each checked."""
    if not isinstance(info, dict) or info.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            f"{path}: {shown(name)} must have dtype, shape and data_offsets and nothing else."
        )
    code, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise CheckpointError(
            f"{path}: {shown(name)} has the dtype {shown(code)}, which is not read. "
            f"Known: {', '.join(DTYPES)}."
        )
    if not _whole_numbers(shape) or len(shape) > AXES_LIMIT:
        raise CheckpointError(
            f"{path}: the shape of {shown(name)} must be a list of at most {AXES_LIMIT} whole "
            "numbers, none negative."
        )
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise CheckpointError(
            f"{path}: data_offsets of {shown(name)} must be two whole numbers, none negative."
        )
    dtype = dtype_named(DTYPES[code])
    begin, end = offsets
    size = room = dtype.itemsize
    for extent in shape:
        size *= extent
        room *= max(extent, 1)  # NumPy counts (0, 2**62) as too big, though nothing is in it
        if room >= BYTES_LIMIT:
            raise CheckpointError(f"{path}: {shown(name)} would have {room:,} bytes or more.")
    if end - begin != size:
        raise CheckpointError(
            f"{path}: {shown(name)} is {code} of shape {tuple(shape)}, {size:,} bytes, but its "
            f"offsets {begin:,} to {end:,} hold {end - begin:,}."
        )
    return tuple(shape), dtype, begin, end


def _whole_numbers(values: object) -> bool:
    # bool is an int to Python, and 3.0 equals 3: only the exact type will do.
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _read(file: RegularFile, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    count = dtype.itemsize
    for extent in shape:
        count *= extent
    return file.read(offset, count).view(dtype).reshape(shape)


def write_safetensors(stream: BinaryIO, arrays: Mapping[str, Array]) -> None:
    """Write arrays to an open file, wider dtypes first and then by name.

    Raises:
        DtypeError: an array has a dtype that the format does not know.
    """
    codes = {dtype_named(name): code for code, name in DTYPES.items()}
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in order:
        array = arrays[name]
        if array.dtype not in codes:
            raise DtypeError(f"{name} has dtype {array.dtype}, which safetensors cannot hold.")
        header[name] = {
            "dtype": codes[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # so that every array begins at a multiple of eight
    stream.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        stream.write(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
