"""Tensor maps: what a Hopper card is told of an array, so that it copies boxes of it to shared memory by itself.

A map is 128 bytes that the driver makes of an address, sizes, strides and the size of a box (cuTensorMapEncodeTiled in
NVIDIA's "CUDA Driver API"). A kernel takes it by value. What lies outside of the array is read as zero, so that sizes
may be any; the address and all strides must be multiples of 16 bytes.
"""

import ctypes
import functools
import sys
from typing import Any, NamedTuple

import numpy as np

from ..errors import DeviceError

CODES = {"float16": 6, "float32": 7, "bfloat16": 9}
"""The driver's numbers for what values are stored as."""

LINE = 128
"""Bytes of a box's row, within which pieces of 16 bytes are swapped, so that eight rows of one piece meet all banks."""

SWAPPED, PROMOTED = 3, 2
"""The driver's numbers for such rows, and for fetching 128 bytes at once into the card's second cache."""

SIDE = 256
"""Values that a box may have along an axis."""


class TensorMap(NamedTuple):
    """A map before the driver has made its bytes. Sizes are innermost first.

    Attributes:
        address: of the first value.
        dtype: of the values.
        sizes: of the axes.
        strides: in bytes, of all axes but the first, which has no gaps.
        box: values that are copied at once, along each axis.
    """

    address: int
    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return 4 if self.dtype == "float32" else 2


def of_matrices(
    address: int,
    dtype: str,
    shape: tuple[int, int, int],
    strides: tuple[int, int],
    box: tuple[int, int],
) -> TensorMap:
    """For boxes of one matrix of several.

    Args:
        address: of the first value.
        dtype: of the values.
        shape: matrices, rows, columns.
        strides: in bytes, from one matrix to the next and from one row to the next; any where there is only one.
        box: rows, and columns, which are LINE bytes.
    """
    matrices, rows, columns = shape
    size = 4 if dtype == "float32" else 2
    step, pitch = strides
    if rows == 1:  # the driver wants a number all the same
        pitch = -(-columns * size // 16) * 16
    if matrices == 1:
        step = rows * pitch
    return TensorMap(address, dtype, (columns, rows, matrices), (pitch, step), (*box[::-1], 1))


def check(given: TensorMap) -> None:
    """Refuse what the driver would, in words.

    Raises:
        DeviceError: something is out of its range.
    """
    faults = [
        (given.address % 16 != 0, f"the address {given.address:#x} is no multiple of 16"),
        (any(s % 16 or not 0 < s < 1 << 40 for s in given.strides),
         f"strides {given.strides} are to be multiples of 16 bytes, from 16 to below 2^40"),
        (any(not 0 < n <= 1 << 32 for n in given.sizes), f"sizes {given.sizes} are to be 1 to 2^32"),
        (any(not 0 < n <= SIDE for n in given.box), f"a box of {given.box} has a side beyond 1 to {SIDE}"),
        (given.box[0] * given.itemsize != LINE, f"a box of {given.box} has no rows of {LINE} bytes"),
        (not len(given.sizes) == len(given.box) == len(given.strides) + 1 <= 5,
         f"{len(given.sizes)} sizes, {len(given.box)} sides of a box and {len(given.strides)} strides"),
    ]  # fmt: skip
    said = [text for wrong, text in faults if wrong]
    if said:
        raise DeviceError(f"No tensor map: {'; '.join(said)}. This is a fault of tinyplm.")


@functools.cache
def _driver() -> Any:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


@functools.lru_cache(maxsize=4096)
def encoded(given: TensorMap) -> np.ndarray:
    """The bytes, as a kernel's argument: (1,) of 128 bytes, from a multiple of 128 on. The same array for the same map.

    Raises:
        DeviceError: the driver refuses it.
    """
    check(given)
    n = len(given.sizes)
    room = np.zeros(2 * LINE, np.uint8)
    blob = room[-room.ctypes.data % LINE :][:LINE]
    code = _driver().cuTensorMapEncodeTiled(*encode_arguments(given, blob.ctypes.data))
    if code:
        raise DeviceError(
            f"The driver made no tensor map of {given} ({n} axes): its error {code}. It wants a context, which "
            "CuPy makes with the first array on a card, and a card of compute capability 9.0 or later."
        )
    return blob.view(f"V{LINE}")


def encode_arguments(given: TensorMap, to: int) -> tuple[Any, ...]:
    """What the driver's function is called with; the bytes go to an address."""
    n = len(given.sizes)
    plain = 0  # no interleaving; and zeros, not NaN, where nothing lies
    return (
        ctypes.c_void_p(to),
        ctypes.c_int(CODES[given.dtype]),
        ctypes.c_uint32(n),
        ctypes.c_void_p(given.address),
        (ctypes.c_uint64 * n)(*given.sizes),
        (ctypes.c_uint64 * max(n - 1, 1))(*given.strides),
        (ctypes.c_uint32 * n)(*given.box),
        (ctypes.c_uint32 * n)(*[1] * n),
        ctypes.c_int(plain),
        ctypes.c_int(SWAPPED),
        ctypes.c_int(PROMOTED),
        ctypes.c_int(plain),
    )
