"""Writing a model folder so that whoever opens it, at any moment, finds one model and not two.

Everything is first written under temporary names in the same folder and flushed to the disk. Then:

- Saving again with the same settings, as training does: the weights change by one rename. Shards
  get names that are not in use, and the rename of the index decides. Whoever reads before sees
  the old weights, afterwards the new.
- Saving with other settings, or another tokenizer, into a folder that has a model: `config.json`
  is taken away first and put in place last. In between, a reader is told that there is no
  config.json; it never sees settings of one model with weights of another.

A process that is killed leaves temporary files; the next save removes those older than a day.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import CheckpointError, MissingFileError, NonFiniteError
from ..types import Array
from .folder import INDEX_BYTES
from .regular_file import inside, read_json
from .report import all_finite
from .safetensors_file import write_safetensors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PREVIOUS = "config.json.previous"
DAY = 86_400


def save_folder(
    path: str | Path,
    files: Mapping[str, bytes],
    arrays: Mapping[str, Array],
    *,
    dtype: np.dtype[Any] | None = None,
    shard_bytes: int,
) -> None:
    """Write files, config.json among them, and arrays in dtype, as one model folder.

    Raises:
        CheckpointError: path is a file, or cannot be written.
        NonFiniteError: an array has values that are not finite, or not in dtype.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give a folder to save the model into.")
    staged: dict[str, Path] = {}

    def stage(name: str, write: Callable[[BinaryIO], None]) -> None:
        staged[name] = folder / f".{name}.{os.urandom(4).hex()}.saving"
        _write_through(staged[name], write)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        shards = _shards(folder, arrays, dtype, shard_bytes)
        for shard, names in shards.items():
            content = {name: _converted(name, arrays[name], dtype) for name in names}
            stage(shard, lambda stream, content=content: write_safetensors(stream, content))  # type: ignore[misc]
            del content
        if SINGLE not in shards:
            index = {
                "metadata": {
                    "total_size": sum(
                        array.size * (dtype or array.dtype).itemsize for array in arrays.values()
                    )
                },
                "weight_map": {name: shard for shard, names in shards.items() for name in names},
            }
            stage(INDEX, lambda stream: _write_bytes(stream, as_json(index)))
        changed = [name for name, data in files.items() if not _holds(folder / name, data)]
        if changed:  # without config.json nobody reads: it goes first and comes last
            changed = ["config.json", *(name for name in changed if name != "config.json")]
        for name in changed:
            stage(name, lambda stream, data=files[name]: _write_bytes(stream, data))  # type: ignore[misc]
        _publish(folder, staged, list(shards), changed)
        for name in files:  # those of an earlier, interrupted save too
            (folder / f"{name}.previous").unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder} could not be saved: {error.strerror or error}. Is the disk full or "
            "read-only, or a file in the folder open elsewhere?"
        ) from error
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)


def _publish(folder: Path, staged: dict[str, Path], shards: list[str], changed: list[str]) -> None:
    """Give the written files their names, in the order that keeps readers safe."""
    replaced = set(_listed_shards(folder)) - set(shards)
    aside: list[str] = []
    placed: list[str] = []

    def put(name: str) -> None:
        os.replace(staged[name], folder / name)
        placed.append(name)

    try:
        for name in changed:
            if (folder / name).exists():
                os.replace(folder / name, folder / f"{name}.previous")
                aside.append(name)
                _flush(folder)
        for name in [*changed, *shards]:
            if name not in ("config.json", SINGLE):
                put(name)
        _flush(folder)
        if SINGLE in shards:
            put(SINGLE)
        else:
            put(INDEX)
            (folder / SINGLE).unlink(missing_ok=True)  # readers prefer it until it is gone
    except BaseException:
        # The old weights still count. What they need comes back, what nobody needs goes.
        for name in placed:
            (folder / name).unlink(missing_ok=True)
        for name in reversed(aside):
            os.replace(folder / f"{name}.previous", folder / name)
        raise
    _flush(folder)
    if changed:
        put("config.json")
        _flush(folder)
    if SINGLE in shards:
        (folder / INDEX).unlink(missing_ok=True)
    for shard in replaced:
        (folder / shard).unlink(missing_ok=True)


def _shards(
    folder: Path, arrays: Mapping[str, Array], dtype: np.dtype[Any] | None, shard_bytes: int
) -> dict[str, list[str]]:
    """File names and the arrays each will hold: one file, or shards under names not in use."""
    groups: list[list[str]] = [[]]
    room = shard_bytes
    for name in sorted(arrays):
        size = arrays[name].size * (dtype or arrays[name].dtype).itemsize
        if groups[-1] and size > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    stem, attempt = "model", 1
    while True:
        names = [
            f"{stem}-{number:05}-of-{len(groups):05}.safetensors"
            for number in range(1, len(groups) + 1)
        ]
        if not any((folder / name).exists() for name in names):
            return dict(zip(names, groups, strict=True))
        attempt += 1
        stem = f"model-{attempt}"


def _listed_shards(folder: Path) -> list[str]:
    """Shards of the index that is there now; none when it cannot be trusted."""
    try:
        weight_map = read_json(inside(folder, INDEX), limit=INDEX_BYTES).get("weight_map")
        names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
        return [name for name in names if inside(folder, name).suffix == ".safetensors"]
    except (CheckpointError, MissingFileError, TypeError):
        return []


def _converted(name: str, array: Array, dtype: np.dtype[Any] | None) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        made = array if dtype is None else array.astype(dtype, copy=False)
    if not all_finite(made):
        why = (
            "has values that are NaN or infinite"
            if not all_finite(array)
            else f"has values up to {np.abs(array).max():.3g}, too large for {made.dtype}"
        )
        raise NonFiniteError(f"{name} {why}; nothing was saved, what is in the folder stays.")
    return made


def _write_through(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a new file, with the permissions that any new file gets, and wait for the disk."""
    descriptor = os.open(
        path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666
    )
    with os.fdopen(descriptor, "wb") as stream:
        write(stream)
        stream.flush()
        os.fsync(stream.fileno())


def _write_bytes(stream: BinaryIO, data: bytes) -> None:
    stream.write(data)


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data


def _flush(folder: Path) -> None:
    """Make the renames so far outlive a power cut, where a folder can be flushed."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(".*.saving"):
        if path.is_file() and time.time() - path.stat().st_mtime > DAY:
            path.unlink(missing_ok=True)


def as_json(made: Mapping[str, Any]) -> bytes:
    """A JSON file's bytes: sorted, indented, readable in any script."""
    text = json.dumps(made, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()
