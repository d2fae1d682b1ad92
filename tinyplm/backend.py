"""Which array library owns an array: the array decides what computes."""

import contextlib
import ctypes
import importlib.metadata
import sys
from types import ModuleType
from typing import Any

import numpy as np

from .errors import ConfigError, DeviceMemoryError, MissingExtraError
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
        ConfigError: it has another name.
        MissingExtraError: device is "cuda" and CuPy, a driver or a card is missing, or they do not fit.
    """
    if device == "cpu":
        return np
    if device != "cuda":
        raise ConfigError(
            f"device is {device!r}; expected 'cpu' or 'cuda'. CUDA_VISIBLE_DEVICES chooses among cards."
        )
    try:
        import cupy
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "cupy"
        said = "is not installed" if missing else f"is installed and cannot be imported ({error})"
        raise MissingExtraError(
            f"--device cuda, but CuPy {said}. {_extra()} {_OTHERWISE}"
        ) from error
    runtime = cupy.cuda.runtime
    try:
        runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        raise MissingExtraError(_no_card(runtime, str(error))) from error
    return cupy


_OTHERWISE = "--device cpu continues without it."


def driver_version() -> tuple[int, int] | None:
    """The newest CUDA that the driver of NVIDIA's cards supports, as (13, 0); None without such a driver."""
    try:
        found = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if found.cuDriverGetVersion(ctypes.byref(version)):
        return None
    return version.value // 1000, version.value % 1000 // 10


def fitting_extra(major: int) -> str | None:
    """The extra for a driver that supports CUDA of this major version; newer drivers run older versions too."""
    return "cuda13" if major >= 13 else "cuda12" if major == 12 else None


def cupy_packages() -> list[str]:
    """Those of CuPy that are installed, with versions; two share a folder and spoil each other."""
    found = []
    for name in ("cupy", "cupy-cuda12x", "cupy-cuda13x"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return found


def _extra() -> str:
    """What to install on this machine, as a sentence."""
    found = driver_version()
    if found is None:
        return (
            "There is no NVIDIA driver either: it comes first. `tinyplm doctor` then says which of "
            'pip install "tinyplm[cuda13]" and "tinyplm[cuda12]" fits it.'
        )
    extra = fitting_extra(found[0])
    said = f"The driver supports CUDA {found[0]}.{found[1]}:"
    if extra is None:
        return f'{said} update it for CUDA 12 or later, then pip install "tinyplm[cuda12]".'
    return f'{said} pip install "tinyplm[{extra}]".'


def _no_card(runtime: Any, error: str) -> str:
    """Why CuPy sees no card: no driver, one of an older CUDA, or no card."""
    there, wanted = runtime.driverGetVersion() // 1000, runtime.runtimeGetVersion() // 1000
    packages = cupy_packages()
    if len(packages) > 1:
        likely = f"{' and '.join(packages)} are both installed: pip uninstall both. {_extra()}"
    elif there == 0:
        likely = (
            "There is no NVIDIA driver, or a container was started without the card (docker: --gpus all). "
            "nvidia-smi must work first."
        )
    elif there < wanted:
        likely = (
            f"This CuPy is for CUDA {wanted} and the driver supports CUDA {there}: update the driver, or "
            f"pip uninstall cupy-cuda{wanted}x and {_extra()}"
        )
    else:
        likely = "nvidia-smi says what the driver sees, and CUDA_VISIBLE_DEVICES may hide a card."
    return f"--device cuda, but no GPU answered ({error}). {likely} {_OTHERWISE}"


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


def free_memory() -> int:
    """Bytes that this process can have on the card in use: what is free there, and what CuPy's pool keeps unused."""
    cupy = library("cuda")
    free, _ = cupy.cuda.runtime.memGetInfo()
    return int(free) + int(cupy.get_default_memory_pool().free_bytes())


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
