"""Compilers for device code: NVRTC of CuPy or of its own package, or an nvcc; which are here, and what they make."""

import ctypes
import functools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from ..backend import driver_version
from ..errors import DeviceError, MissingExtraError

STANDARD = "--std=c++17"


class Compiled(NamedTuple):
    """What a compiler made.

    Attributes:
        cubin: machine code for one architecture.
        log: what it said: registers, shared memory and spills of every kernel.
    """

    cubin: bytes
    log: str


@dataclass(frozen=True)
class Compiler:
    """A way to compile device code.

    Attributes:
        name: what it is, with its version.
        compile: makes machine code from a text for an architecture as "sm_90a"; raises DeviceError with the
            compiler's own words.
        major: the CUDA that it belongs to, as 13: older drivers refuse its machine code; 0 where it is not known.
    """

    name: str
    compile: Callable[[str, str], Compiled]
    major: int = 0


def found() -> Iterator[Compiler]:
    """Those that are here, best first: NVRTC as CuPy has it, NVRTC's own package, nvcc on the PATH."""
    for find in (cupy_nvrtc, packaged_nvrtc, nvcc):
        if (compiler := find()) is not None:
            yield compiler


@functools.cache
def best() -> Compiler:
    """The first of them.

    Raises:
        MissingExtraError: there is none, or the driver is too old for what it makes.
    """
    first = next(found(), None)
    if first is None:
        raise MissingExtraError(
            "No compiler for device code: neither NVRTC (of CuPy, or the package nvidia-cuda-nvrtc) nor nvcc on the "
            'PATH. CuPy\'s wheels bring it with: pip install "cupy-cuda13x[ctk]" or "cupy-cuda12x[ctk]".'
        )
    supported = driver_version()
    if supported is not None and first.major > supported[0]:
        raise MissingExtraError(
            f"{first.name} makes code for CUDA {first.major}, and the driver supports CUDA "
            f"{supported[0]}.{supported[1]}. Update the driver, or pip uninstall nvidia-cuda-nvrtc and "
            f'pip install "cupy-cuda{supported[0]}x[ctk]".'
        )
    return first


def options(arch: str) -> list[str]:
    """For NVRTC; ptxas is to say what each kernel uses.

    A lambda counts as code of the host there, even within a kernel, unless all code is the device's.
    """
    device = "--device-as-default-execution-space"
    return [STANDARD, f"--gpu-architecture={arch}", "--ptxas-options=-v", device]


def _refused(name: str, arch: str, log: str) -> DeviceError:
    return DeviceError(
        f"{name} did not compile tinyplm's kernels for {arch}. A card newer than the compiler needs a newer CuPy or "
        f"toolkit; anything else is a fault of tinyplm, to be reported with this text:\n{log.strip()}"
    )


def cupy_nvrtc() -> Compiler | None:
    """NVRTC as CuPy found it, which fits the driver."""
    try:
        nvrtc = import_module("cupy_backends.cuda.libs.nvrtc")
        major, minor = nvrtc.getVersion()
    except (ImportError, RuntimeError, OSError):
        return None
    name = f"NVRTC {major}.{minor} of CuPy"

    def compile_text(text: str, arch: str) -> Compiled:
        program = nvrtc.createProgram(text, "tinyplm.cu", (), ())
        try:
            try:
                nvrtc.compileProgram(program, options(arch))
            except nvrtc.NVRTCError as error:
                log = nvrtc.getProgramLog(program)
                raise _refused(name, arch, f"{error}\n{log}") from error
            # It leaves out the last byte, as if that were the end of a text.
            log = nvrtc.getProgramLog(program).rstrip("\0")
            return Compiled(nvrtc.getCUBIN(program) + b"\0", log)
        finally:
            nvrtc.destroyProgram(program)

    return Compiler(name, compile_text, major)


def packaged(pattern: str) -> list[Path]:
    """Files of NVIDIA's Python packages whose names match, the newest by the numbers in them last."""
    spec = find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    files = {file for folder in folders for file in folder.rglob(pattern)}
    return sorted(files, key=lambda file: ([int(n) for n in re.findall(r"\d+", file.name)], file))


def packaged_nvrtc() -> Compiler | None:
    """NVRTC of the package nvidia-cuda-nvrtc, which needs neither CuPy nor a driver."""
    windows = sys.platform == "win32"
    files = packaged("nvrtc64_*_0.dll" if windows else "libnvrtc.so.*")
    if not files:
        return None
    # NVRTC opens this one by its name alone, which finds it where it has been loaded.
    beside = "nvrtc-builtins64_*.dll" if windows else "libnvrtc-builtins.so.*"
    for builtins in sorted(files[-1].parent.glob(beside)):
        ctypes.CDLL(str(builtins))
    nvrtc = ctypes.CDLL(str(files[-1]))
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    name = f"NVRTC {major.value}.{minor.value}"

    def part(program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{what}")(program, content)
        return content.raw

    def compile_text(text: str, arch: str) -> Compiled:
        program = ctypes.c_void_p()
        given = [option.encode() for option in options(arch)]
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"tinyplm.cu", 0, None, None)
        try:
            passed = (ctypes.c_char_p * len(given))(*given)
            code = nvrtc.nvrtcCompileProgram(program, len(given), passed)
            log = part(program, "ProgramLog").rstrip(b"\0").decode()
            if code:
                raise _refused(name, arch, log)
            return Compiled(part(program, "CUBIN"), log)
        finally:
            nvrtc.nvrtcDestroyProgram(ctypes.byref(program))

    return Compiler(name, compile_text, major.value)


def nvcc() -> Compiler | None:
    """The toolkit's compiler, which needs one for C++ beside it."""
    path = shutil.which("nvcc")
    if path is None:
        return None
    said = subprocess.run(
        [path, "--version"], capture_output=True, text=True, encoding="utf-8", check=False
    )
    lines = said.stdout.strip().splitlines()
    if said.returncode or not lines:
        return None
    name = f"nvcc, {lines[-1]}"

    def compile_text(text: str, arch: str) -> Compiled:
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder, "tinyplm.cu"), Path(folder, "tinyplm.cubin")
            given.write_text(text, encoding="utf-8")
            result = subprocess.run(
                [path, STANDARD, f"-arch={arch}", "-cubin", "-Xptxas", "-v", "-o", made, given],
                capture_output=True, text=True, encoding="utf-8", errors="replace", check=False,
            )  # fmt: skip
            log = result.stdout + result.stderr
            if result.returncode:
                raise _refused(name, arch, log)
            return Compiled(made.read_bytes(), log)

    release = re.search(r"release (\d+)", said.stdout)
    return Compiler(name, compile_text, int(release[1]) if release else 0)
