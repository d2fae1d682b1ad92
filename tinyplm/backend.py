"""Which array library owns an array: the array decides what computes."""

import ctypes
import sys
from types import ModuleType
from typing import Any

import numpy as np

from .errors import DeviceMemoryError, MissingExtraError
from .types import Array


def namespace(x: Any) -> ModuleType:
    """The library that owns x: CuPy for its arrays, NumPy for everything else."""
    if type(x) is np.ndarray or "cupy" not in sys.modules:
        return np
    cupy = sys.modules["cupy"]
    return cupy if isinstance(x, cupy.ndarray) else np


def is_array(x: Any) -> bool:
    """Whether x is an array of either library."""
    return isinstance(x, np.ndarray) or namespace(x) is not np


def to_numpy(x: Array) -> Array:
    """The same values as a NumPy array; x itself when it is one already."""
    xp = namespace(x)
    return x if xp is np else xp.asnumpy(x)


def library(device: str) -> ModuleType:
    """The array library for a device name, "cpu" or "cuda".

    Raises:
        MissingExtraError: device is "cuda" and CuPy or a driver is missing.
    """
    if device == "cpu":
        return np
    try:
        import cupy
    except ImportError as error:
        raise MissingExtraError(
            "--device cuda, but CuPy is not installed. `tinyplm doctor` says which CUDA version "
            'the driver supports: pip install "tinyplm[cuda13]" or "tinyplm[cuda12]". '
            "--device cpu continues without it."
        ) from error
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise MissingExtraError(
            f"--device cuda, but no GPU answered ({error}). Check the driver with nvidia-smi; "
            "--device cpu continues without it."
        ) from error
    return cupy


def on_device(x: Array, device: str, dtype: Any = None) -> Array:
    """The same values on a device, "cpu" or "cuda", perhaps of another dtype; x itself when it is so already.

    Raises:
        MissingExtraError: device is "cuda" and CuPy or a driver is missing.
        DeviceMemoryError: it has no room.
    """
    xp = library(device)
    if xp is np:
        x = to_numpy(x)
    if dtype is not None and x.dtype != dtype:
        x = x.astype(dtype)  # before it goes up, and after it came down
    if xp is np:
        return x
    try:
        return xp.asarray(x)
    except MemoryError as error:
        free, total = xp.cuda.runtime.memGetInfo()
        raise DeviceMemoryError(
            f"No room on the device for {x.nbytes:,} bytes (shape {x.shape}, {x.dtype.name}): {free:,} of {total:,} "
            "bytes are free. Use a smaller model, or --precision bfloat16; other programs on the card (nvidia-smi "
            "shows them) may hold the rest."
        ) from error


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed memory for the next allocation; whether it will.

    By default glibc hands large blocks back to the system as they are freed, and every step of a training loop asks
    for them again, page by page. Elsewhere nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # no such library, or not this function
        return False
    trim_threshold, mmap_threshold, most = -1, -3, (1 << 31) - 1  # names and limit of malloc.h
    return bool(mallopt(trim_threshold, most)) and bool(mallopt(mmap_threshold, most))
