"""Opening files that nobody vouches for: regular files inside one folder, and JSON in them.

A model folder is input. A name in it may lead out of the folder, be a device that never ends or a
pipe that never starts; a text may nest without end or give one key two values. Each such case is
refused with a reason before anything is read into memory.
"""

import io
import json
import math
import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from ..errors import CheckpointError, MissingFileError
from ..types import Array
from .entry import shown

# Enough for 300,000 tensors; it bounds the memory that a parsed text can take.
JSON_VALUES = 3_000_000


def inside(folder: Path, name: str) -> Path:
    """The path of a plain file name in folder, refused if it leads anywhere else.

    Links are followed and must end inside the folder. The one exception is the layout of the
    Hugging Face cache, where `snapshots/REVISION/name` is a link into `blobs/` beside it.

    Raises:
        CheckpointError: the name has folders in it, or a link leads out.
        MissingFileError: there is no such file.
    """
    plain = (
        name not in ("", ".", "..")
        and not any(character in name for character in "/\\:\0")
        and PurePosixPath(name).name == name
        and PureWindowsPath(name).name == name
    )
    if not plain:
        raise CheckpointError(
            f"{folder} names the file {shown(name)}; refused. Only plain file names inside the "
            "folder are read, without '/', '\\', ':' or '..'. Put all files into one folder and "
            "correct the index."
        )
    home = folder.resolve()
    homes = [home]
    if home.parent.name == "snapshots":
        homes.append(home.parent.parent / "blobs")
    try:
        target = (home / name).resolve(strict=True)
    except FileNotFoundError:
        raise MissingFileError(
            f"{folder} has no file {shown(name)}, or it is a link to a file that is gone. "
            "Was the download or the copy interrupted?"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder}: {shown(name)} cannot be followed ({error}).") from None
    if not any(target.is_relative_to(place) for place in homes):
        raise CheckpointError(
            f"{folder}: {shown(name)} is a link to {target}, outside the folder; refused. "
            "Copy the file into the folder if you trust it."
        )
    return target


class RegularFile:
    """A regular file on disk, read in pieces by offset, that must not change meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as stream:
            status = os.fstat(stream.fileno())
        self.size = status.st_size
        self._identity = _identity(status)

    def read(self, offset: int, count: int) -> Array:
        """Exactly count bytes from offset on, in a fresh array of uint8.

        Raises:
            CheckpointError: the file ends before, or is not the file it was.
        """
        with self.stream() as stream:
            if offset < 0 or count < 0 or offset + count > self.size:
                raise CheckpointError(
                    f"{self.path} has {self.size:,} bytes; {count:,} bytes from {offset:,} on were "
                    "asked for. The file is truncated or damaged."
                )
            buffer = np.empty(count, dtype=np.uint8)
            view = buffer.data
            stream.seek(offset)
            filled = 0
            while filled < count:
                got = stream.readinto(view[filled:])
                if not got:
                    raise CheckpointError(f"{self.path} became shorter while it was being read.")
                filled += got
        return buffer

    def stream(self) -> io.FileIO:
        """The open file, to be closed by the caller.

        Raises:
            CheckpointError: it is not the file it was when first opened.
        """
        stream = self._open()
        if _identity(os.fstat(stream.fileno())) != self._identity:
            stream.close()
            raise CheckpointError(
                f"{self.path} changed while it was being read. Is a save or a download running? "
                "Try again when it has ended."
            )
        return stream

    def _open(self) -> io.FileIO:
        try:
            # Looked at before it is opened, because opening a device can do something already.
            self._refuse_irregular(os.stat(self.path))
            # Not blocking, so that a pipe put here after that look cannot make us wait.
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            stream = io.FileIO(os.open(self.path, flags | getattr(os, "O_CLOEXEC", 0)), "rb")
        except FileNotFoundError:
            raise MissingFileError(f"There is no file {self.path}.") from None
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be opened: {error.strerror}.") from None
        try:
            self._refuse_irregular(os.fstat(stream.fileno()))
        except CheckpointError:
            stream.close()
            raise
        return stream

    def _refuse_irregular(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, a pipe or a socket"
            raise CheckpointError(f"{self.path} is {kind}; expected a regular file. Refused.")


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_json(path: Path, *, limit: int) -> dict[str, Any]:
    """The object in a JSON file of at most limit bytes.

    Raises:
        CheckpointError: too large, not UTF-8, not JSON, not an object, or one key given twice.
    """
    file = RegularFile(path)
    if file.size > limit:
        raise CheckpointError(
            f"{path} has {file.size:,} bytes; at most {limit:,} are expected of such a file. "
            "It is probably something else under this name."
        )
    return parse_json(file.read(0, file.size).tobytes(), where=str(path))


def parse_json(data: bytes, *, where: str) -> dict[str, Any]:
    """The object that data spells, with each key once and finite numbers only.

    Raises:
        CheckpointError: it is anything else; the message begins with where.
    """
    if data.count(b"{") + data.count(b"[") + data.count(b",") > JSON_VALUES:
        raise CheckpointError(f"{where}: more than {JSON_VALUES:,} values; refused.")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CheckpointError(
                f"{where}: {shown(twice)} is given twice, and readers differ in which one they "
                "take; refused. Remove one of the two."
            )
        return made

    def refuse_constant(text: str) -> float:
        raise CheckpointError(f"{where}: {text} is not a JSON number; refused.")

    def finite(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else refuse_constant(text[:40])

    try:
        made = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=refuse_constant,
            parse_float=finite,
        )
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError(f"{where}: nested too deeply; refused.") from None
    except ValueError as error:  # bytes that are not UTF-8, broken JSON, numbers of many digits
        raise CheckpointError(
            f"{where} is not valid JSON in UTF-8 ({error}). The file is damaged or cut short; "
            "copy or download it again."
        ) from None
    if not isinstance(made, dict):
        raise CheckpointError(
            f"{where}: expected a JSON object {{...}}, found a {type(made).__name__}."
        )
    return made
