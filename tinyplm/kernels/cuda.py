"""Device code: compiling the .cu files of this folder, keeping what was compiled, and launching it through CuPy.

A file is compiled as a whole when the first of its kernels is launched, by NVRTC for the card that is there. It is kept
in the user's cache folder under a name made of its text, the options, the compiler and the card. Nothing is compiled,
and CuPy is not imported, before that. Which compiler does it is for `compilers` to say.

Kernels are for arrays of float32, float16 or bfloat16 in row-major order without gaps; they compute in float32. No
launch waits for the device.
"""

import contextlib
import functools
import hashlib
import os
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..backend import is_array, library, namespace
from ..errors import DeviceError, DeviceMemoryError, TinyplmWarning
from ..types import Array
from . import compilers
from .precision import cache_file

FOLDER = Path(__file__).parent
PARTS = (
    "prelude",
    "tensor_cores",
    "hopper",
    "gelu_curve",
    "matmul_result",
    "matmul_given",
    "attention_tiles",
    "attention_rules",
)
"""Files without kernels of their own: the first is put before every file, others where its first line names them."""
TEMPLATES = (
    *(
        "matmul",
        "matmul_few",
        "matmul_few_float32",
        "matmul_parts",
        "matmul_float32",
        "matmul_hopper",
    ),
    *("attention", "attention_pullback", "attention_decode"),
)
"""Files whose kernels are made one by one, as `source` is told."""
FILES = tuple(
    sorted(p.stem for p in FOLDER.glob("*.cu") if p.stem not in PARTS and p.stem not in TEMPLATES)
)
"""Every other file of kernels."""

TYPES = ("float32", "float16", "bfloat16")
"""What values may be stored as."""

THREADS = 256
"""Threads of a block, where a kernel does not want another number; as in prelude.cu."""

HELD = 32
"""Values of a row that a thread holds in registers at most; as in prelude.cu."""

OLDEST = 80
"""The oldest compute capability, 8.0, without its point: the first with bfloat16."""

DYNAMIC_SHARED = 48 * 1024
"""Bytes of dynamic shared memory that a kernel may have without being asked for."""


def source(file: str) -> str:
    """The text of a file, behind the parts it builds on: its first line may name some, as `// after: tensor_cores`.

    What follows the name of a file of templates is what a kernel is made for: "matmul float16 64" ends with
    MAKE(float16, 64). So no more is compiled than is launched.
    """
    file, *made_for = file.split(" ")
    text = (FOLDER / f"{file}.cu").read_text(encoding="utf-8")
    if made_for:
        text += f"MAKE({', '.join(made_for)})\n"
    first = text.partition("\n")[0]
    named = first.removeprefix("// after: ").split() if first.startswith("// after: ") else []
    parts = [(FOLDER / f"{part}.cu").read_text(encoding="utf-8") for part in ("prelude", *named)]
    return "\n".join((*parts, text))


class Card(NamedTuple):
    """What choices depend on of a card.

    Attributes:
        capability: compute capability, as 90 for 9.0.
        processors: multiprocessors.
        shared: bytes of shared memory that a block can have.
    """

    capability: int
    processors: int
    shared: int


def card() -> Card:
    """The one in use."""
    from cupy.cuda import runtime

    return _card(runtime.getDevice())


@functools.cache
def _card(device: int) -> Card:
    from cupy.cuda import Device, runtime

    has, capability = runtime.getDeviceProperties(device), int(Device(device).compute_capability)
    return Card(capability, has["multiProcessorCount"], has["sharedMemPerBlockOptin"])


def architecture() -> str:
    """What to compile for: the card in use, as "sm_90a".

    Raises:
        MissingExtraError: CuPy or a driver is missing.
        DeviceError: the card is too old.
    """
    device = library("cuda").cuda.Device()
    found = str(device.compute_capability)
    if int(found) < OLDEST:
        raise DeviceError(
            f"Card {device.id} has compute capability {found[:-1]}.{found[-1]}, but tinyplm's kernels need "
            f"{OLDEST // 10}.{OLDEST % 10} (Ampere, 2020) or later. Choose another card with CUDA_VISIBLE_DEVICES, or "
            "use --device cpu."
        )
    return "sm_90a" if found == "90" else f"sm_{found}"


def cubin(file: str, arch: str) -> bytes:
    """Machine code of a file, from the disk if it was compiled before."""
    text, by = source(file), compilers.best()
    what = "\n".join((text, *compilers.options(arch), by.name))
    kept = _kept(
        f"{file.replace(' ', '-')}-{arch}-{hashlib.sha256(what.encode()).hexdigest()[:32]}.cubin"
    )
    if (found := _read(kept)) is not None:
        return found
    made = by.compile(text, arch).cubin
    _write(kept, made)
    return made


def _kept(name: str) -> Path | None:
    file = cache_file()
    return file and file.parent / "cuda" / name


def _read(kept: Path | None) -> bytes | None:
    """What was kept, if it is whole: a digest and then the code."""
    with contextlib.suppress(OSError):
        content = kept.read_bytes() if kept else b""
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            return content[32:]
    return None


def _write(kept: Path | None, code: bytes) -> None:
    """Keep it if that can be; readers see nothing or all of it."""
    if kept is None:
        return
    own = kept.with_name(f"{kept.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        own.write_bytes(hashlib.sha256(code).digest() + code)
        os.replace(own, kept)
    except OSError:
        with contextlib.suppress(OSError):
            own.unlink()


@functools.cache
def usable() -> bool:
    """Whether kernels can be compiled for the card in use; if it is too old, a warning says so, once.

    Raises:
        MissingExtraError: CuPy, a driver or a compiler is missing. Without a compiler CuPy computes nothing either.
    """
    try:
        architecture()
    except DeviceError as error:
        warnings.warn(
            f"{error} Until then CuPy computes everything in plain array code, which is slower.",
            TinyplmWarning,
            stacklevel=2,
        )
        return False
    compilers.best()
    return True


@functools.cache
def _module(file: str, device: int) -> Any:
    from cupy.cuda.function import Module

    module = Module()
    module.load(cubin(file, architecture()))
    return module


@functools.cache
def _function(file: str, kernel: str, device: int) -> Any:
    return _module(file, device).get_function(kernel)


_allowed: dict[tuple[str, str, int], int] = {}
"""Bytes of dynamic shared memory that kernels may have by now, by file, name and card."""


def _allow(file: str, kernel: str, device: int, shared: int) -> None:
    """Let a kernel have more dynamic shared memory than the 48 KB that all may have; never less than before."""
    if shared <= _allowed.get((file, kernel, device), DYNAMIC_SHARED):
        return
    from cupy_backends.cuda.api import driver

    most = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    driver.funcSetAttribute(_function(file, kernel, device).ptr, most, shared)
    _allowed[file, kernel, device] = shared


def launch(
    file: str, kernel: str, blocks: int, threads: int, *arguments: Any, shared: int = 0
) -> None:
    """Start a kernel on the current stream; nothing happens without blocks.

    Whole numbers are passed with 64 bits and fractions with 32, None as a null pointer, arrays by their address, which
    is that of their first value; other numbers of NumPy as they are, and a structure as a NumPy array of one.

    Args:
        file: where the kernel stands.
        kernel: its name.
        blocks: how many.
        threads: of each block.
        arguments: as the kernel declares them.
        shared: bytes of dynamic shared memory of each block.
    """
    if not blocks:
        return
    from cupy.cuda import runtime

    device = runtime.getDevice()
    function = _function(file, kernel, device)
    if shared > DYNAMIC_SHARED:
        _allow(file, kernel, device, shared)
    function((blocks,), (threads,), tuple(map(passed, arguments)), shared_mem=shared)


def seed_arguments(seed: Any) -> tuple[np.int64, Array | None]:
    """A seed as kernels take it: a number, or where one lies on the device, so that a graph can be given others."""
    return (np.int64(0), seed) if is_array(seed) else (np.int64(seed), None)


def passed(value: Any) -> Any:
    """As CuPy is to pass it."""
    if value is None:
        return np.uintp(0)
    if isinstance(value, int | np.signedinteger):
        return np.int64(value)
    if isinstance(value, np.ndarray) and value.dtype.names is not None:
        # CuPy would describe its fields, at length, at each launch.
        return value.view(f"V{value.itemsize}")
    return np.float32(value) if isinstance(value, float) else value


def known(*arrays: Array) -> bool:
    """Whether all are of one type that the kernels know."""
    kind = arrays[0].dtype
    return kind.name in TYPES and all(a.dtype == kind for a in arrays)


def takes(*arrays: Array) -> bool:
    """Whether all are of one type that the kernels know, in row-major order without gaps."""
    return known(*arrays) and all(a.flags.c_contiguous for a in arrays)


def whole(*arrays: Any) -> Any:
    """Each array in row-major order without gaps: itself if it is, else a copy; None stays None."""
    return (
        a if a is None or a.flags.c_contiguous else namespace(a).ascontiguousarray(a)
        for a in arrays
    )


def empty(like: Array, shape: tuple[int, ...], dtype: Any = None, *, zeros: bool = False) -> Array:
    """A new array of a shape where `like` lies, and of its type if no other is given.

    Raises:
        DeviceMemoryError: the device has no room for it.
    """
    xp, kind = namespace(like), np.dtype(like.dtype if dtype is None else dtype)
    try:
        return (xp.zeros if zeros else xp.empty)(shape, kind)
    except MemoryError as error:
        free, total = xp.cuda.runtime.memGetInfo()
        wanted = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        raise DeviceMemoryError(
            f"No room on the device for {_size(wanted)} (shape {shape}, {kind.name}): {_size(free)} of {_size(total)} "
            "are free. Use a smaller batch with more accumulation, shorter sequences or a smaller model; other "
            "programs on the card (nvidia-smi shows them) may hold the rest."
        ) from error


def memory() -> int:
    """Bytes of memory of the card in use, whatever of them is free."""
    from cupy.cuda import runtime

    return _memory(runtime.getDevice())


@functools.cache
def _memory(device: int) -> int:
    from cupy.cuda import runtime

    return int(runtime.memGetInfo()[1])


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count:,} bytes"


def address(a: Array) -> int:
    """Where the values of an array begin on the device."""
    return int(a.data.ptr)  # type: ignore[attr-defined]  # CuPy's


def are_aligned(group: int, *arrays: Array | None) -> bool:
    """Whether groups of so many values of each can be read at once."""
    return all(a is None or address(a) % (group * a.dtype.itemsize) == 0 for a in arrays)


def each_value(
    file: str, kernel: str, arrays: tuple[Array, ...], *numbers: Any, group: int = 0
) -> None:
    """Start a kernel with a thread for each group of values: by default as many as 16 bytes hold."""
    size = group or 16 // arrays[0].dtype.itemsize
    n = arrays[0].size
    groups = n // size if are_aligned(size, *arrays) else 0
    threads = groups + n - groups * size
    launch(file, kernel, -(-threads // THREADS), THREADS, *arrays, n, groups, *numbers)


class Rows(NamedTuple):
    """How the threads of a kernel share rows.

    Attributes:
        name: the ending of the kernel's name, as in prelude.cu.
        teams: rows that a block has at once.
    """

    name: str
    teams: int


def rows(width: int, *arrays: Array | None) -> Rows:
    """For rows of one width in all arrays, None left out: held in registers if they fit and lie as 16 bytes want it."""
    itemsize = next(a.dtype.itemsize for a in arrays if a is not None)
    group = 16 // itemsize
    if width % group or not are_aligned(group, *arrays):
        return Rows("narrow", THREADS // 32) if width <= 32 * HELD else Rows("any", 1)
    if width <= 32 * HELD:
        return Rows("warp", THREADS // 32)
    return Rows("block" if width <= THREADS * HELD else "wide", 1)
