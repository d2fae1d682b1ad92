"""Everything needed to go on as if nothing had happened, on disk, all of it or none of it.

A checkpoint is a folder `checkpoint-000400` with one safetensors file for each group of arrays,
`state.json` for everything else, whatever files the caller adds, and `manifest.json`, written
last, with the size and the SHA-256 of every other file and of itself. Nothing is pickled.

    A save, in order                                 If killed there, the next load finds
    1. write a folder under a temporary name,        the old checkpoints
       flushing each file, the manifest last
    2. flush that folder                             the old checkpoints
    3. the same step exists already: set it aside    the one set aside, by its temporary name
    4. rename the new folder to its name, flush      the new checkpoint
    5. rename outdated ones, then delete them        the new checkpoint

Left-overs of killed runs are cleared by the next save. One run writes to a folder at a time; any
number may read. Every change on disk goes through the functions of `os` named in this file, so
that the tests can end the process before each single one of them.
"""

import base64
import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tinyplm.errors import CheckpointError, ConfigError, DtypeError, TinyplmWarning

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 1

_FINAL = re.compile(r"checkpoint-(\d{6,})")
_TEMPORARY = re.compile(r"\.(checkpoint-(\d{6,}))\.(writing|replaced|removing)-[0-9a-f]{8}")
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
_CHUNK = 1 << 24  # bytes a call: some systems refuse more than 2 GiB at once
_LONGEST_MANIFEST = 1 << 26


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a run had saved after update `step`: arrays in groups, the rest as plain values."""

    path: Path
    step: int
    arrays: dict[str, dict[str, np.ndarray[Any, Any]]]
    state: dict[str, Any]


def save(
    folder: Path,
    step: int,
    *,
    arrays: Mapping[str, Mapping[str, np.ndarray[Any, Any]]],
    state: Mapping[str, Any],
    keep: int = 2,
    also: Callable[[Path], None] | None = None,
) -> Path:
    """Write `folder/checkpoint-{step}`; a crash at any moment leaves the old or the new one whole.

    Each group of `arrays` becomes one file: `{"model": ...}` is written to `model.safetensors`.
    Dtypes are kept bit for bit: bool, the integers, float16, bfloat16, float32, float64. `state`
    may hold None, bools, integers of any size, floats (inf and the bits of nan included), strings,
    lists, tuples, dicts and NumPy arrays, so the state of a NumPy generator can be put there as it
    is; NumPy scalars come back as Python numbers. `also` is called with the unfinished folder and
    may write more files into it (a config, a tokenizer); they are flushed and listed in the
    manifest like the rest.

    The newest `keep` checkpoints up to this step stay. Those of later steps are left alone, with a
    warning, because `load_latest` would prefer them.

    Raises:
        CheckpointError: the disk is full or refuses; the message names the newest intact one.
        DtypeError: a value that a checkpoint cannot hold, named by where it was found.
        ConfigError: a negative step, keep below 1, or a group name that cannot be a file name.
    """
    folder = Path(folder)
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ConfigError(f"step={step!r}: expected a whole number of updates, 0 or more.")
    if keep < 1:
        raise ConfigError(
            f"keep={keep}: at least 1 checkpoint has to stay, or a crash loses the run."
        )
    # All that can be wrong with the values is found here, before anything on disk changes.
    texts = {STATE: _dump(_encode(dict(state), "state"))}
    headers = {group: _header(group, named) for group, named in arrays.items()}
    needed = sum(map(len, texts.values())) + sum(map(len, headers.values()))
    needed += sum(array.nbytes for named in arrays.values() for array in named.values())

    final = folder / f"checkpoint-{step:06d}"
    temporary = _temporary(final, "writing")
    aside = _temporary(final, "replaced")
    try:
        _make_folders(folder)
        _clear(folder)
        os.mkdir(temporary)
        files = _add(temporary, also)
        needed += sum(entry["bytes"] for entry in files.values())
        for group, named in arrays.items():
            name = f"{group}.safetensors"
            files[name] = _write(temporary / name, _content(headers[group], named))
        for name, text in texts.items():
            files[name] = _write(temporary / name, [text])
        _write(temporary / MANIFEST, [_manifest(step, sorted(arrays), files)])
        _flush_folder(temporary)
        if os.path.lexists(final):
            # A folder cannot be renamed onto another; loading knows the name it has in between.
            os.rename(final, aside)
        os.rename(temporary, final)
        _flush_folder(folder)
    except OSError as error:
        _undo(temporary, aside, final)
        raise CheckpointError(_not_saved(folder, final, error, needed)) from error
    except Exception:  # of the caller's `also`
        _undo(temporary, aside, final)
        raise
    _prune(folder, step, keep)
    return final


def load_latest(folder: Path) -> Checkpoint | None:
    """Return the newest intact checkpoint of `folder`, or None if no run ever finished one there.

    Damaged ones are passed over with a TinyplmWarning that names the file and the cause.

    Raises:
        CheckpointError: there are checkpoints and all are damaged; never a silent fresh start.
    """
    found: list[tuple[int, bool, Path]] = []
    for path in _entries(Path(folder)):
        if step := _FINAL.fullmatch(path.name):
            found.append((int(step[1]), True, path))
        elif (match := _TEMPORARY.fullmatch(path.name)) and match[3] == "replaced":
            # Set aside by a save of the same step that was killed before it could rename the new
            # one.
            found.append((int(match[2]), False, path))
    damage: list[str] = []
    for _, _, path in sorted(found, reverse=True):
        try:
            checkpoint = load(path)
        except CheckpointError as error:
            damage.append(str(error))
            continue
        for cause in damage:
            warnings.warn(
                f"Passed over a damaged checkpoint and took {path.name} instead. {cause}",
                TinyplmWarning,
                stacklevel=2,
            )
        return checkpoint
    if damage:
        raise CheckpointError(
            f"{folder}: none of its {len(damage)} checkpoints is intact, so there is nothing to "
            "resume from. Restore one from a copy, or start anew in another folder.\n"
            + "\n".join(damage)
        )
    return None


def load(path: Path) -> Checkpoint:
    """Read one checkpoint folder after checking every byte of it against its manifest.

    Arrays are new and writable; their order within a group is not kept.

    Raises:
        CheckpointError: a file is missing, cut short or changed; the message names it.
    """
    path = Path(path)
    step, groups, files = _verify(path)
    try:
        state = _decode(json.loads((path / STATE).read_bytes()))
        arrays = {group: _read_arrays(path / f"{group}.safetensors") for group in groups}
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        # The checksums were right, so these bytes were written by something else than `save`.
        raise _damaged(path, f"not written by this library ({error})") from error
    if not isinstance(state, dict) or STATE not in files:
        raise _damaged(path / STATE, "expected an object listed in the manifest")
    return Checkpoint(path=path, step=step, arrays=arrays, state=state)


def replace_file(path: Path, content: bytes) -> None:
    """Give a file new content, all or nothing, flushed to disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    _write(temporary, [content])
    os.replace(temporary, path)
    _flush_folder(path.parent)


# --- writing -------------------------------------------------------------------------------------


def _temporary(final: Path, kind: str) -> Path:
    """Return a name for `final` that no run takes for a finished checkpoint."""
    return final.with_name(f".{final.name}.{kind}-{secrets.token_hex(4)}")


def _entries(folder: Path) -> list[Path]:
    """Return what lies in a folder, by name; nothing if there is no such folder."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _make_folders(folder: Path) -> None:
    """Make a folder and those above it, each flushed into its parent."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)
    _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    """Make new names in a folder survive a power cut."""
    if os.name == "nt":
        return  # Windows opens no folder for flushing; NTFS keeps its own journal of names.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network and user-space file systems have no such operation; the data itself is
        # flushed.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _write(path: Path, chunks: Iterable[Any]) -> dict[str, Any]:
    """Write a new file, flush it to disk, and return its entry in the manifest."""
    digest, size = hashlib.sha256(), 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o666)  # less the umask: as private as any other file of the user
    try:
        for chunk in chunks:
            rest = memoryview(chunk)
            digest.update(rest)
            size += len(rest)
            while len(rest):
                rest = rest[os.write(handle, rest[:_CHUNK]) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _add(temporary: Path, also: Callable[[Path], None] | None) -> dict[str, dict[str, Any]]:
    """Let the caller write files, flush them, and return their manifest entries."""
    files = {}
    if also is not None:
        also(temporary)
        for path in sorted(temporary.rglob("*")):
            if path.is_dir():
                _flush_folder(path)
                continue
            # Windows flushes only what is open for writing.
            handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            size, digest = _measure(path)
            name = path.relative_to(temporary).as_posix()
            if not _is_inside(name):
                raise ConfigError(f"{name!r}: no other system reads this file name. Rename it.")
            files[name] = {"bytes": size, "sha256": digest}
    return files


def _header(group: str, named: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """Return the first bytes of a safetensors file that is to hold these arrays, if it can."""
    if not _GROUP.fullmatch(group):
        raise ConfigError(
            f"arrays has a group {group!r}: expected letters, digits, '_' and '-', as it "
            "names a file."
        )
    # Readers look for the format's name; "pt" is the one they all accept.
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, array in _in_order(named):
        where = f"arrays[{group!r}][{name!r}]"
        if not isinstance(array, np.ndarray):
            raise DtypeError(f"{where} is a {type(array).__name__}; expected a NumPy array.")
        if array.dtype.name not in _DTYPES:
            raise DtypeError(
                f"{where} has dtype {array.dtype}; a checkpoint holds {', '.join(_DTYPES)}. "
                "Convert it, or put it into state."
            )
        if name == "__metadata__" or not _is_text(name):
            raise ConfigError(
                f"{where}: this name cannot be written to a safetensors file. Rename it."
            )
        end = start + array.nbytes
        table[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _in_order(named: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Sort by size of an element, largest first, so that every array starts at a multiple of it."""
    return sorted(named.items(), key=lambda item: -getattr(item[1], "itemsize", 0))


def _content(header: bytes, named: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[Any]:
    """Yield the bytes of a safetensors file, array by array, so that no second copy is held."""
    yield header
    for _, array in _in_order(named):
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        # bfloat16 and empty arrays have no buffer of their own that could be written.
        yield np.asarray(array, order="C").reshape(-1).view(np.uint8)


def _dump(value: Any) -> bytes:
    """Return strict JSON, in the one form that is compared byte for byte when read again."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _manifest(step: int, groups: list[str], files: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Return the manifest: it lists each file, and its own checksum without that line."""
    body: dict[str, Any] = {"format": FORMAT, "step": step, "groups": groups, "files": files}
    return _dump(body | {"sha256": hashlib.sha256(_dump(body)).hexdigest()})


# --- clearing up ---------------------------------------------------------------------------------


def _clear(folder: Path) -> None:
    """Remove what killed runs left behind, or put it back; only names of our own pattern."""
    for path in _entries(folder):
        if not (match := _TEMPORARY.fullmatch(path.name)):
            continue
        final = folder / match[1]
        if match[3] != "replaced":
            _delete(path)
        elif not os.path.lexists(final):
            os.rename(path, final)


def _prune(folder: Path, step: int, keep: int) -> None:
    """Remove outdated checkpoints; the new one is on disk, so a failure is only a warning."""
    kept, later, found = 0, [], []
    for path in _entries(folder):
        if match := _FINAL.fullmatch(path.name):
            found.append((int(match[1]), path))
        elif (match := _TEMPORARY.fullmatch(path.name)) and match[3] == "replaced":
            _retire(path, match[1])
    for number, path in sorted(found, reverse=True):
        if number > step:
            later.append(path.name)
        elif kept >= keep:
            _retire(path, path.name)
        elif _looks_whole(path):  # a damaged one must not push out the last good one
            kept += 1
    if later:
        warnings.warn(
            f"{folder} also holds {', '.join(sorted(later))}, of a later step than {step}: if "
            "intact, resuming starts from there, not from this run. Remove it, or save to another "
            "folder.",
            TinyplmWarning,
            stacklevel=3,
        )


def _looks_whole(path: Path) -> bool:
    """Whether manifest and sizes fit: what can be told without reading everything at each save."""
    try:
        _, _, files = _read_manifest(path)
        return all((path / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (CheckpointError, OSError):
        return False


def _retire(path: Path, name: str) -> None:
    """Delete a checkpoint, first taking away its name so that no half-deleted one is ever found."""
    doomed = _temporary(path.with_name(name), "removing")
    try:
        os.rename(path, doomed)
    except OSError as error:
        warnings.warn(
            f"{path} is outdated but could not be removed ({error.strerror or error}). The new "
            "checkpoint is safe; if another program has this one open, close it, or remove it by "
            "hand.",
            TinyplmWarning,
            stacklevel=4,
        )
        return
    _delete(doomed)


def _delete(path: Path) -> None:
    """Delete a folder or a file of ours as far as possible; the next save tries again."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            for entry in _entries(path):
                _delete(entry)
            os.rmdir(path)
        else:
            os.unlink(path)


def _undo(temporary: Path, aside: Path, final: Path) -> None:
    """Leave things as they were before a save that failed."""
    if os.path.lexists(aside) and not os.path.lexists(final):
        with contextlib.suppress(OSError):
            os.rename(aside, final)
    _delete(temporary)


def _not_saved(folder: Path, final: Path, error: OSError, needed: int) -> str:
    """Say what failed, how much room it takes and what is left to resume from."""
    where = f" ({Path(error.filename).name})" if isinstance(error.filename, str) else ""
    text = f"{final} could not be saved: {error.strerror or error}{where}."
    advice = " Check that the folder can be written to, or choose another one, and resume."
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        text += f" It needs at least {needed:,} bytes"
        with contextlib.suppress(OSError):
            text += f"; {shutil.disk_usage(folder).free:,} are free on that disk"
        text += "."
        advice = " Free some space, or choose a folder on another disk, and resume."
    intact = None
    with warnings.catch_warnings(), contextlib.suppress(CheckpointError, OSError):
        warnings.simplefilter("ignore", TinyplmWarning)
        intact = load_latest(folder)
    if intact is None:
        return text + " There is no intact checkpoint in this folder." + advice
    return text + f" The newest intact checkpoint is {intact.path.name}." + advice


# --- reading -------------------------------------------------------------------------------------


def _damaged(path: Path, cause: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {cause}. Use an older checkpoint of this run, or copy this one again."
    )


def _measure(path: Path, limit: int | None = None) -> tuple[int, str]:
    """Return size and SHA-256 of a file, reading at most a little more than `limit` bytes."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if limit is not None and size > limit:
                break
    return size, digest.hexdigest()


def _read_manifest(path: Path) -> tuple[int, list[str], dict[str, dict[str, Any]]]:
    """Return step, groups and files, once the manifest fits itself and the folder's name."""
    file = path / MANIFEST
    if not path.is_dir():
        raise _damaged(path, "no such folder")
    if not file.is_file():
        raise _damaged(file, "missing, so the checkpoint was never finished or lost its manifest")
    try:
        if file.stat().st_size > _LONGEST_MANIFEST:
            raise _damaged(file, f"longer than {_LONGEST_MANIFEST:,} bytes, so it is no manifest")
        content = file.read_bytes()
        body = json.loads(content)
        step, groups, files = body["step"], body["groups"], body["files"]
        if not (
            type(step) is int
            and all(isinstance(group, str) and _GROUP.fullmatch(group) for group in groups)
            and all(type(entry["bytes"]) is int for entry in files.values())
        ):
            raise TypeError("an entry of another type than expected")
        whole = content == _manifest(step, groups, files)
    except OSError as error:
        raise _damaged(file, f"cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(file, f"changed or cut short ({type(error).__name__}: {error})") from error
    # Compared as bytes, so that no changed byte goes unnoticed, not even a blank.
    if not whole:
        version = body.get("format")
        if isinstance(version, int) and version > FORMAT:
            raise _damaged(file, f"format {version}, but this version reads up to {FORMAT}: update")
        raise _damaged(file, "changed since it was written (its own checksum does not fit)")
    match = _FINAL.fullmatch(path.name)
    if match and int(match[1]) != step:
        raise _damaged(path, f"the name does not fit: the manifest says step {step}")
    for name in [*files, *(f"{group}.safetensors" for group in groups)]:
        if not _is_inside(name):
            raise _damaged(file, f"names {name!r}, which is outside the folder; refused")
        if name not in files:
            raise _damaged(file, f"lists the group of {name} but not the file")
    return step, groups, files


def _is_inside(name: str) -> bool:
    """Whether a name with forward slashes stays within the folder, on every system."""
    path = PurePosixPath(name)
    return not (path.is_absolute() or ".." in path.parts or re.search(r"[\\:]", name))


def _verify(path: Path) -> tuple[int, list[str], dict[str, dict[str, Any]]]:
    """Check every byte of a checkpoint; return what its manifest says."""
    step, groups, files = _read_manifest(path)
    for name, entry in files.items():
        file = path / name
        try:
            if not file.is_file():
                raise _damaged(file, "missing")
            size, digest = _measure(file, limit=entry["bytes"])
        except OSError as error:
            raise _damaged(file, f"cannot be read ({error.strerror or error})") from error
        if size != entry["bytes"]:
            seen = f"{size:,} bytes" if size < entry["bytes"] else "longer"
            raise _damaged(file, f"{seen}, but {entry['bytes']:,} bytes were written")
        if digest != entry["sha256"]:
            raise _damaged(file, "changed since it was written (its SHA-256 does not fit)")
    return step, groups, files


def _read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    import ml_dtypes  # noqa: F401  makes NumPy know the name bfloat16
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise _damaged(path, f"no safetensors file ({error})") from error


# --- state as JSON -------------------------------------------------------------------------------
#
# What JSON has no form for becomes an object with one key that starts with a dollar sign; an
# ordinary dict with such a key, or with keys that are no strings, becomes a "$dict" of pairs.


def _is_text(value: Any) -> bool:
    # Half of a surrogate pair would not come back as it was.
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _encode(value: Any, where: str) -> Any:
    if isinstance(value, np.generic) and value.dtype.name in _DTYPES:
        value = value.item()
    if value is None or isinstance(value, bool) or _is_text(value):
        return value
    if isinstance(value, int):
        # Other JSON readers take numbers for float64, and Python limits the digits it reads.
        return int(value) if value.bit_length() <= 53 else {"$int": hex(value)}
    if isinstance(value, float):
        return float(value) if np.isfinite(value) else {"$float": struct.pack(">d", value).hex()}
    if isinstance(value, list):
        return [_encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item, f"{where}[{i}]") for i, item in enumerate(value)]}
    if isinstance(value, Mapping):
        pairs = [(key, _encode(item, f"{where}[{key!r}]")) for key, item in value.items()]
        if all(_is_text(key) and not key.startswith("$") for key, _ in pairs):
            return dict(pairs)
        return {"$dict": [[_encode(key, f"a key of {where}"), item] for key, item in pairs]}
    if isinstance(value, np.ndarray) and value.dtype.name in _DTYPES:
        little = (
            value.astype(value.dtype.newbyteorder("<")) if value.dtype.byteorder == ">" else value
        )
        content = base64.b64encode(little.tobytes()).decode()
        return {"$array": [value.dtype.name, list(value.shape), content]}
    raise DtypeError(
        f"{where} is a {type(value).__name__}; a checkpoint's state holds None, bool, int, float, "
        "str, list, tuple, dict and NumPy arrays. Convert it, or leave it out."
    )


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not next(iter(value)).startswith("$"):
        return {key: _decode(item) for key, item in value.items()}
    [(kind, item)] = value.items()
    match kind:
        case "$int":
            return int(item, 16)
        case "$float":
            return struct.unpack(">d", bytes.fromhex(item))[0]
        case "$tuple":
            return tuple(_decode(part) for part in item)
        case "$dict":
            return {_decode(key): _decode(part) for key, part in item}
        case "$array":
            import ml_dtypes  # noqa: F401  makes NumPy know the name bfloat16

            name, shape, content = item
            if name not in _DTYPES:
                raise ValueError(f"an array of dtype {name!r}")
            flat = np.frombuffer(base64.b64decode(content, validate=True), dtype=np.dtype(name))
            return flat.reshape(shape).copy()
    raise ValueError(f"unknown key {kind!r}")
