"""Notices data that was changed in place between forward and backward.

A pullback is only right for the values that its forward pass saw. Memory that nobody outside the engine can reach
cannot have changed, so it costs nothing. Memory that was handed out for writing (`tensor.data`) is *exposed*, and so
is an array passed to an op as it stands: a checksum is taken when an op keeps it and compared before the pullback
runs. Updates that announce themselves (`tensor.write()`) leave a time stamp instead, on the clock that numbers nodes.

On a card only announced writes are noticed: a checksum would have to wait for it.
"""

import weakref
import zlib
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

import numpy as np

from ..backend import is_array, namespace
from ..types import Array

exposed: dict[int, tuple["weakref.ref[Array]", int]] = {}
"""By identity of the array that owns the memory: the owner, and its checksum when it was handed out."""

written: dict[int, tuple["weakref.ref[Array]", int]] = {}
"""By identity of the owner: the owner, and when it was last written with announcement."""


def owner_of(array: Array) -> Array:
    """The array whose memory this one shows: itself, or the last array in its chain of bases."""
    base = array.base
    while base is not None and is_array(base):
        array, base = base, base.base
    return array


def checksum(array: Array) -> int:
    """A 32-bit fingerprint of the bytes."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def expose(array: Array) -> None:
    """Note that array can be written from outside from now on."""
    owner = owner_of(array)
    if id(owner) not in exposed and namespace(owner) is np:
        _note(exposed, owner, checksum(owner))


def announce(array: Array, time: int) -> None:
    """Note that array is written in place at this time."""
    _note(written, owner_of(array), time)


def _note(table: dict[int, tuple["weakref.ref[Array]", int]], owner: Array, value: int) -> None:
    key = id(owner)
    table[key] = (weakref.ref(owner, lambda _: table.pop(key, None)), value)


def kept(thing: Any) -> Iterator[Array]:
    """Every array that a pullback keeps, read from its closure: the memory cost of a node."""
    if isinstance(thing, FunctionType):
        for cell in thing.__closure__ or ():
            yield from kept(cell.cell_contents)
    elif isinstance(thing, tuple | list):
        for item in thing:
            yield from kept(item)
    elif is_array(thing):
        yield thing


def fingerprints(pullback: Any, outside: set[int]) -> dict[int, int]:
    """Checksums of what a pullback keeps and others can write, by identity of the owner.

    outside: owners of the arrays that the op was given as they stand.
    """
    if not outside and not exposed:
        return {}
    owners = {id(owner): owner for owner in map(owner_of, kept(pullback))}
    return {
        key: checksum(owner)
        for key, owner in owners.items()
        if (key in outside or key in exposed) and namespace(owner) is np
    }


def changed(pullback: Any, taken: dict[int, int], recorded: int) -> Array | None:
    """The first array kept by a pullback that was written to since it was recorded, if any."""
    for array in kept(pullback):
        owner = owner_of(array)
        key = id(owner)
        if key in written and written[key][1] > recorded:
            return array
        if key in taken or key in exposed:
            before = taken[key] if key in taken else exposed[key][1]
            if checksum(owner) != before:
                return array
    return None


def hold_array(values: Iterable[Any]) -> bool:
    """Whether an option is an array of NumPy, or a key with one in it."""
    for value in values:
        if value.__class__ is tuple or value.__class__ is list:
            if hold_array(value):
                return True
        elif isinstance(value, np.ndarray):
            return True
    return False


def watch(pullback: Any, result: Any, given: list[Any]) -> dict[int, int] | None:
    """Checksums of what a pullback keeps of memory that others can write; `given` came from outside.

    A result that shows such memory is exposed itself.
    """
    outside = {id(owner_of(array)) for array in kept(given)}
    for array in kept(result if isinstance(result, tuple) else [result]):
        if id(owner_of(array)) in outside:
            expose(array)
    return fingerprints(pullback, outside) if pullback is not None else None
