"""Old `pytorch_model.bin` files, read without pickle and without torch.

Such a file is a pickle that describes tensors, and the bytes of their storages. The pickle is
interpreted by `torch_program`, which calls nothing. Two layouts are known:

Since torch 1.6 the file is a zip archive, `NAME/data.pkl` the program and `NAME/data/KEY` the bytes
of each storage, all stored without compression, and that is demanded. Before, it was five parts in
a row: three short programs (a magic number, a version, the machine), the program itself, the list
of storage keys, and then each storage behind its length.

What a tensor can make us read is bounded by the storage it lies in.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import CheckpointError
from ..types import Array
from .entry import TensorEntry, shown
from .regular_file import RegularFile
from .torch_program import Storage, StoredTensor, run_program

PROGRAM_BYTES = 32_000_000
DIRECTORY_BYTES = 8_000_000
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# Tensors may share a storage and lie in it with gaps. This is how much more than the file they may
# ask us to go through in total.
SHARING_LIMIT = 16


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
        if not isinstance(value, StoredTensor):
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


def _read_tensor(file: RegularFile, tensor: StoredTensor, offset: int, crc: int | None) -> Array:
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

_Locate = Callable[[Storage], tuple[int, int | None]]


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

    def locate(storage: Storage) -> tuple[int, int | None]:
        begin, member = place(f"{root}data/{storage.key}")
        if member.file_size != storage.count * storage.dtype.itemsize:
            raise CheckpointError(
                f"{file.path}: storage {shown(storage.key)} has {member.file_size:,} bytes; "
                f"{storage.count:,} values of {storage.dtype} were announced."
            )
        return begin, member.CRC

    program = io.BytesIO(content(programs[0], PROGRAM_BYTES))
    state = run_program(program, file.path)
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
    magic = run_program(head, file.path)
    version = run_program(head, file.path) if magic == LEGACY_MAGIC else None
    if magic != LEGACY_MAGIC or version != LEGACY_PROTOCOL:
        raise CheckpointError(
            f"{file.path} is a pickle, but not one that torch.save writes (magic number or "
            "version differ). Refused. Ask the author for model.safetensors."
        )
    machine = run_program(head, file.path)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CheckpointError(f"{file.path} was written on a big-endian machine; not read.")
    storages: dict[str, Storage] = {}
    state = run_program(head, file.path, storages)
    keys = run_program(head, file.path)
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
