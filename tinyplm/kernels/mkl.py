"""Products by Intel's MKL, where the extra 'mkl' is installed: one thread; float32, float64, or bfloat16 to float32.

The usual way into MKL is libmkl_rt. On Linux it loads the rest for the whole process to see, and a PyTorch that is
imported afterwards then calls this MKL in place of its own, with one thread. So the three layers that are needed (the C
interface, no threads, core) are loaded together for us alone: a shared library that holds nothing but their names, made
in memory, asks for them, and symbols are looked up among the libraries loaded with it. What was measured and what was
refused: docs/decisions/0006-bf16-products.md.

A bfloat16 is held as the upper half of its float32, in arrays of uint16, which NumPy and Numba know; a view with
`ml_dtypes.bfloat16` shows the same memory as numbers.
"""

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import platform
import re
import struct
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import DtypeError, MissingExtraError, ShapeError
from ..types import Array

CPUINFO = Path("/proc/cpuinfo")
"""Where Linux describes the processor."""

_ROW_MAJOR, _PLAIN, _TURNED = 101, 111, 112  # names of the C interface
_SEQUENTIAL = 1  # of mkl_set_threading_layer
_SAME_BITS = 2  # of mkl_cbwr_set: the same for the same numbers, wherever in memory they lie

_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")
_LAYERS = (
    "intel_lp64",
    "sequential",
    "core",
)  # the first has the functions with 64-bit integers too


class Mkl(NamedTuple):
    """The library as it was loaded.

    Attributes:
        version: of the distribution.
        function: cblas_gemm_bf16bf16f32 with 64-bit integers; it lets go of Python's lock while it computes.
        address: of that function, for compiled code; its arguments are those of cblas_sgemm.
        sgemm: address of cblas_sgemm with 64-bit integers.
        dgemm: address of cblas_dgemm with 64-bit integers.
    """

    version: str
    function: Any
    address: int
    sgemm: int
    dgemm: int


def load() -> Mkl | None:
    """MKL; None where it is not installed or cannot be used, see `reason`."""
    found = _load()
    return found if isinstance(found, Mkl) else None


def reason() -> str:
    """Why there is no MKL; empty where there is."""
    found = _load()
    return found if isinstance(found, str) else ""


def has_amx() -> bool:
    """Whether the processor multiplies tiles of bfloat16 (AMX); asked on Linux only, elsewhere False.

    Linux lets a process use the tiles once it has asked; MKL asks by itself.
    """
    return "amx_bf16" in (_flags() or ())


def is_worthwhile() -> bool:
    """Whether MKL is there, and the processor may have instructions for bfloat16; without them it cannot be faster."""
    flags = _flags()
    return load() is not None and (flags is None or not flags.isdisjoint(_INSTRUCTIONS))


@functools.cache
def _flags() -> frozenset[str] | None:
    """What the processor can do, in Linux's words; None where the system does not say."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split()) if found else None


def gemm(a_NK: Array, b_KM: Array, y_NM: Array, *, alpha: float = 1.0, beta: float = 0.0) -> None:
    """Y = alpha a b + beta y, by the calling thread alone and without Python's lock.

    Numerics:
        Products are exact and summed in float32. A processor with bfloat16 instructions takes numbers below 1.2e-38
        for zero. With beta 0, y need not hold numbers.

    Args:
        a_NK: bfloat16 as uint16; copied unless one of its strides is that of neighbours.
        b_KM: likewise.
        y_NM: float32, its rows without gaps between columns.
        alpha: of the product.
        beta: of what y holds.

    Raises:
        MissingExtraError: MKL is not there.
        DtypeError: operands that are not uint16, or a result that is not float32.
        ShapeError: shapes do not fit, or y is not laid out as it must be.
    """
    mkl = load()
    if mkl is None:
        raise MissingExtraError(
            f'bfloat16 products by MKL are not to be had: {reason()}. pip install "tinyplm[mkl]" installs it; '
            'tinyplm.precision("bfloat16") works without.'
        )
    if a_NK.dtype != np.uint16 or b_KM.dtype != np.uint16 or y_NM.dtype != np.float32:
        raise DtypeError(
            f"gemm takes bfloat16 as uint16 and writes float32, got {a_NK.dtype}, {b_KM.dtype} and {y_NM.dtype}."
        )
    if (*a_NK.shape, b_KM.shape[1]) != (y_NM.shape[0], *b_KM.shape) or a_NK.ndim != 2:
        raise ShapeError(
            f"gemm: {a_NK.shape} times {b_KM.shape} does not give {y_NM.shape}; a is (N, K), b (K, M) and y (N, M)."
        )
    if not y_NM.flags.writeable or (y_NM.size and not _is_plain(y_NM)):
        raise ShapeError("gemm: y must be writable, with the columns of a row side by side.")
    (N, K), M = a_NK.shape, b_KM.shape[1]
    if not y_NM.size:
        return
    if not K:
        if beta:
            y_NM *= beta
        else:
            y_NM[...] = 0
        return
    (turn_a, a_NK, step_a), (turn_b, b_KM, step_b) = _laid_out(a_NK), _laid_out(b_KM)
    mkl.function(
        *(_ROW_MAJOR, turn_a, turn_b, N, M, K, alpha, a_NK.ctypes.data, step_a),
        *(b_KM.ctypes.data, step_b, beta, y_NM.ctypes.data, _step(y_NM)),
    )


def _is_plain(x: Array) -> bool:
    """Whether the columns of a row are neighbours, and rows follow one another."""
    R, C = x.shape
    return (C == 1 or x.strides[1] == x.itemsize) and (
        R == 1 or (x.strides[0] >= C * x.itemsize and x.strides[0] % x.itemsize == 0)
    )


def _step(x: Array) -> int:
    """Values from one row to the next; a single row has none."""
    return max(x.shape[1], x.strides[0] // x.itemsize if x.shape[0] > 1 else 1)


def _laid_out(x: Array) -> tuple[int, Array, int]:
    """How BLAS is told of a matrix: whether it is turned, the array, and values between its rows or columns."""
    if _is_plain(x):
        return _PLAIN, x, _step(x)
    if _is_plain(x.T):
        return _TURNED, x, _step(x.T)
    x = np.ascontiguousarray(x)
    return _PLAIN, x, x.shape[1]


@functools.cache
def _load() -> Mkl | str:
    """MKL, or why there is none."""
    try:
        distribution = importlib.metadata.distribution("mkl")
    except importlib.metadata.PackageNotFoundError:
        return "the package mkl is not installed"
    if _is_in_process():
        return "this process has loaded an MKL already, which we leave to whoever did"
    files = [Path(str(file.locate())) for file in distribution.files or ()]
    try:
        library = _open_layers(files) if sys.platform == "linux" else _open_whole(files)
        function = library.cblas_gemm_bf16bf16f32_64
        addresses = [
            ctypes.cast(found, ctypes.c_void_p).value or 0
            for found in (function, library.cblas_sgemm_64, library.cblas_dgemm_64)
        ]
        library.MKL_CBWR_Set(_SAME_BITS)
    except (OSError, AttributeError, StopIteration) as error:
        return f"mkl {distribution.version} cannot be used here ({error or 'files are missing'})"
    integer, number, pointer = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
    function.argtypes = [
        *(ctypes.c_int, ctypes.c_int, ctypes.c_int, integer, integer, integer, number),
        *(pointer, integer, pointer, integer, number, pointer, integer),
    ]
    function.restype = None
    return Mkl(distribution.version, function, *addresses)


def _is_in_process() -> bool:
    """Whether somebody else has loaded MKL's libraries: two copies of one name would share their settings."""
    if sys.platform == "win32":
        names = ("mkl_rt.2.dll", "mkl_rt.3.dll", "mkl_core.2.dll", "mkl_core.3.dll")
        return any(ctypes.windll.kernel32.GetModuleHandleW(name) for name in names)
    with contextlib.suppress(OSError):
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        return re.search(r"/libmkl_(rt|core)\.", maps) is not None
    return False


def _open_whole(files: list[Path]) -> ctypes.CDLL:
    """Where libraries see each other's symbols only by library: the one that loads the rest, without threads."""
    name = re.compile(r"(lib)?mkl_rt(\.\d+)*\.(dll|dylib)")
    path = next(file for file in files if name.fullmatch(file.name))
    library = ctypes.CDLL(str(path.resolve()))
    library.MKL_Set_Threading_Layer(_SEQUENTIAL)
    return library


def _open_layers(files: list[Path]) -> ctypes.CDLL:
    """The layers, for us alone: see the beginning of this file."""
    if platform.machine() != "x86_64" or sys.byteorder != "little":
        raise OSError(f"MKL is for x86-64, this is {platform.machine()}")
    needed = []
    for layer in _LAYERS:
        name = re.compile(rf"libmkl_{layer}\.so(\.\d+)*")
        needed.append(str(next(file for file in files if name.fullmatch(file.name)).resolve()))
    handle = os.memfd_create("tinyplm-mkl")
    try:
        os.write(handle, _library_that_needs(needed))
        return ctypes.CDLL(f"/proc/self/fd/{handle}", mode=os.RTLD_LOCAL | os.RTLD_LAZY)
    finally:
        os.close(handle)


def _library_that_needs(paths: list[str]) -> bytes:
    """An ELF shared library for x86-64 without code, whose loading loads these libraries in one scope.

    It has an ELF header, three program headers (what to map, where the dynamic section is, a stack that is not
    executable), the dynamic section, one empty symbol and the names.
    """
    names, at = b"\0", []
    for path in paths:
        at.append(len(names))
        names += os.fsencode(path) + b"\0"
    header, program, entry, symbol = 64, 56, 16, 24  # bytes of each
    dynamic_at = header + 3 * program
    dynamic_size = entry * (len(paths) + 5)
    symbols_at = dynamic_at + dynamic_size
    names_at = symbols_at + symbol
    whole = names_at + len(names)

    needed, string_table, symbol_table, string_size, symbol_size, end = 1, 5, 6, 10, 11, 0
    dynamic = [
        *((needed, offset) for offset in at),
        *((string_table, names_at), (symbol_table, symbols_at)),
        *((string_size, len(names)), (symbol_size, symbol), (end, 0)),
    ]

    def segment(kind: int, start: int, size: int, alignment: int) -> bytes:
        readable_and_writable = 6  # the loader writes addresses into the dynamic section
        return struct.pack(
            "<IIQQQQQQ", kind, readable_and_writable, start, start, start, size, size, alignment
        )

    shared, x86_64, version = 3, 62, 1
    load, dynamic_kind, stack = 1, 2, 0x6474E551
    return b"".join(
        [
            struct.pack(
                "<16sHHIQQQIHHHHHH",
                *(b"\x7fELF\2\1\1", shared, x86_64, version, 0, header, 0, 0),
                *(header, program, 3, 64, 0, 0),
            ),
            segment(load, 0, whole, 4096),
            segment(dynamic_kind, dynamic_at, dynamic_size, 8),
            segment(stack, 0, 0, 16),
            *(struct.pack("<QQ", *pair) for pair in dynamic),
            bytes(symbol),
            names,
        ]
    )
