"""What this machine has for the work: versions, linear algebra, memory, graphics card, and two measured speeds."""

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..backend import cupy_packages, driver_version, fitting_extra
from ..kernels import compilers as of_device_code
from ..kernels import mkl
from ..kernels.compilers import Compiler
from ..kernels.cuda import OLDEST
from ..kernels.precision import PRECISIONS, in_use
from ..kernels.threads import available, products_by

LIBRARIES = ("numpy", "tokenizers", "safetensors", "ml_dtypes")
EXTRAS = {
    "numba": "fast", "matplotlib": "plot", "cupy": "cuda12 or cuda13",
    "numba_cuda": "cuda12 or cuda13", "mpi4py": "mpi",
}  # fmt: skip
NUMPY_OF_BFLOAT16 = "2.1.2"
"""The oldest NumPy with which CuPy has bfloat16; as in pyproject.toml."""


def doctor() -> dict[str, Any]:
    """All of it, as values for JSON; CuPy is not imported, and the card is asked through its driver alone."""
    card, compilers = cuda(), list(of_device_code.found())
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {"tinyplm": __version__} | {name: _version(name) for name in LIBRARIES},
        "extras": {name: _version(name) for name in EXTRAS},
        "cores": cores(),
        "memory_bytes": memory(),
        "blas": blas(),
        "kernels": {
            "compiled": find_spec("numba") is not None,
            "threads": available(),
            "products": products_by(),
        },
        "cpu_features": cpu_features(),
        "cuda": card,
        "compilers": [compiler.name for compiler in compilers],
        "in_the_way_of_cuda": in_the_way(card, cupy_packages(), compilers),
        "amx": mkl.has_amx(),
        "mkl": {
            "version": found.version if (found := mkl.load()) else None,
            "reason": mkl.reason(),
            "gflops_of_one_thread": mkl_speed() if found else None,
        },
        "precision": {name: in_use(name) for name in PRECISIONS},
        "matmul_gflops": matmul_speed(),
        "copy_gigabytes_per_second": copy_speed(),
    }


def _version(name: str) -> str | None:
    """Of a package that is installed and can be found; CuPy has several names."""
    if find_spec(name) is None:
        return None
    if name == "cupy":
        return ", ".join(found.split()[1] for found in cupy_packages()) or None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int | None:
    """Bytes of main memory, or of the container's share; None where the system does not say."""
    total: int | None = None
    if sys.platform == "win32":
        status = _WindowsMemory()
        status.length = ctypes.sizeof(status)
        if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            total = int(status.total)
    else:
        with contextlib.suppress(ValueError, OSError):
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            share = int(Path(limit).read_text(encoding="ascii"))
            total = share if total is None else min(total, share)
    return total


class _WindowsMemory(ctypes.Structure):
    _fields_ = (
        ("length", ctypes.c_ulong),
        ("load", ctypes.c_ulong),
        ("total", ctypes.c_ulonglong),
        *((f"other_{i}", ctypes.c_ulonglong) for i in range(6)),
    )


def blas() -> dict[str, Any]:
    """NumPy's library of linear algebra, and the threads it runs; None where it does not say."""
    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    found = {"name": built.get("name"), "version": built.get("version"), "threads": None}
    for library in _openblas():
        for suffix in ("64_", ""):
            for prefix in ("scipy_openblas", "openblas"):
                count = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
                if count is not None:
                    count.restype = ctypes.c_int
                    return found | {"threads": int(count())}
    return found


def _openblas() -> Iterator[ctypes.CDLL]:
    """The copies of OpenBLAS that NumPy's own wheels bring, which are loaded already."""
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs", package / ".libs"):
        for path in sorted(folder.glob("*openblas*")):
            with contextlib.suppress(OSError):
                yield ctypes.CDLL(str(path))


def cpu_features() -> list[str]:
    """Vector instructions that NumPy found and uses."""
    extensions = np.show_config(mode="dicts").get("SIMD Extensions", {})
    return [*extensions.get("baseline", ()), *extensions.get("found", ())]


def cuda() -> dict[str, Any]:
    """The driver's CUDA version, its cards with their compute capabilities, and the extra that fits.

    All empty without a driver.
    """
    nothing: dict[str, Any] = {"driver": None, "cards": [], "capabilities": [], "extra": None}
    version = driver_version()
    if version is None:
        return nothing
    found = nothing | {"driver": f"{version[0]}.{version[1]}", "extra": fitting_extra(version[0])}
    library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    count = ctypes.c_int()
    if library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)):
        return found
    for i in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(128)
        if not library.cuDeviceGet(ctypes.byref(device), i):
            library.cuDeviceGetName(name, len(name), device)
            found["cards"].append(name.value.decode(errors="replace"))
            found["capabilities"].append(_capability(library, device))
    return found


def _capability(library: Any, device: ctypes.c_int) -> str:
    """A card's compute capability, as "9.0"."""
    parts = []
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        value = ctypes.c_int()
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        parts.append(str(value.value))
    return ".".join(parts)


def in_the_way(
    found: dict[str, Any],
    packages: list[str],
    compilers: list[Compiler],
    numpy: str = np.__version__,
) -> list[str]:
    """What keeps `--device cuda` from working here, each with what to do; nothing if it should work.

    Args:
        found: what `cuda` says.
        packages: CuPy's that are installed, as in "cupy-cuda13x 14.2.0".
        compilers: for device code, best first.
        numpy: the version of NumPy.
    """
    if found["driver"] is None:
        return [
            "no NVIDIA driver: a card needs one, and in a container it must be let in (docker: --gpus all)"
        ]
    driver, extra = f"the driver supports CUDA {found['driver']}", found["extra"]
    if extra is None:
        return [f"{driver}: update it for CUDA 12 or later"]
    said, install, major = [], f'pip install "tinyplm[{extra}]"', int(found["driver"].split(".")[0])
    if not found["cards"]:
        said.append(
            "the driver sees no card: see nvidia-smi, and whether CUDA_VISIBLE_DEVICES hides it"
        )
    if found["capabilities"] and all(float(c) < OLDEST / 10 for c in found["capabilities"]):
        said.append(
            f"no card of compute capability {OLDEST / 10} or later: CuPy's own code computes, which is slower"
        )
    if not packages:
        said.append(f"no CuPy; {driver}: {install}")
    elif len(packages) > 1:
        said.append(
            f"{' and '.join(packages)} are both installed: pip uninstall both, then {install}"
        )
    elif (name := packages[0].split()[0]).endswith("x") and int(name[-3:-1]) > major:
        said.append(
            f"{name}, and {driver}: pip uninstall {name}, then {install}; or update the driver"
        )
    if np.lib.NumpyVersion(numpy) < NUMPY_OF_BFLOAT16:
        said.append(
            f"no bfloat16 on a card, as CuPy has it with NumPy {NUMPY_OF_BFLOAT16} or later, and here is {numpy}: "
            f"{install}"
        )
    if not compilers:
        said.append(f'no compiler for device code: pip install "cupy-{extra}x[ctk]"')
    elif compilers[0].major > major:
        said.append(
            f"{compilers[0].name}, and {driver}: pip uninstall nvidia-cuda-nvrtc, then {install}; or update the driver"
        )
    return said


def matmul_speed(size: int = 1_024) -> float:
    """Billions of operations a second in a product of two square float32 matrices."""
    a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    out = np.empty_like(a)
    return 2 * size**3 / _fastest(lambda: np.matmul(a, a, out=out)) / 1e9


def mkl_speed(size: int = 1_024) -> float:
    """Billions of operations a second in MKL's product of two square bfloat16 matrices by one thread."""
    a = np.full((size, size), 0x3F80, np.uint16)  # ones
    y = np.empty((size, size), np.float32)
    return 2 * size**3 / _fastest(lambda: mkl.gemm(a, a, y)) / 1e9


def copy_speed(megabytes: int = 64) -> float:
    """Gigabytes a second that a copy reads and writes, in arrays larger than most caches."""
    source = np.ones(megabytes * 250_000, np.float32)
    target = np.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: np.copyto(target, source)) / 1e9


def _fastest(work: Callable[[], Any], repeats: int = 5) -> float:
    """Seconds of the fastest of a few runs after one to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
