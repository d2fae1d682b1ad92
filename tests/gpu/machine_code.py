"""What a compiler made of a file of device code: what each kernel takes, and its instructions."""

import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tinyplm.kernels import compilers

ENTRY = re.compile(
    r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
    re.S,
)
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+\{?\s*(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.M)
MAX_THREADS = 0x05
"""The attribute of a kernel that says how many threads its blocks may have."""


class Kernel(NamedTuple):
    """A kernel for one architecture.

    Attributes:
        registers: of a thread.
        stack: bytes of a thread's own memory, spilled ones included.
        spills: bytes written to and read from there for want of registers.
        shared: bytes of static shared memory.
        most_threads: that a block may have; None without __launch_bounds__.
        text: the instructions, a line for each, with labels; empty without nvdisasm.
    """

    name: str
    registers: int
    stack: int
    spills: int
    shared: int
    most_threads: int | None
    text: str

    def instructions(self) -> list[str]:
        """With all that a dot adds to their names, in order."""
        return INSTRUCTION.findall(self.text)

    def has(self, wanted: str) -> bool:
        """Whether there is such an instruction: LDG.128 is the name before the first dot and some of what follows."""
        name, *rest = wanted.split(".")
        return any(
            found.split(".")[0] == name and set(rest) <= set(found.split(".")[1:])
            for found in set(self.instructions())
        )


class File(NamedTuple):
    """A file compiled for one architecture.

    Attributes:
        cubin: machine code.
        log: what the compiler said.
        seconds: that it took; 0 where it was kept from an earlier run.
        kernels: by name.
    """

    cubin: bytes
    log: str
    seconds: float
    kernels: dict[str, Kernel]


def disassembler() -> str | None:
    """The program nvdisasm: of the package nvidia-cuda-nvdisasm, or on the PATH."""
    found = compilers.packaged("nvdisasm.exe" if sys.platform == "win32" else "nvdisasm")
    return str(found[-1]) if found else shutil.which("nvdisasm")


def compile_file(file: str, text: str, arch: str, kept_in: Path, by: compilers.Compiler) -> File:
    """Compile the text of a file, or take what a folder keeps of the same text and compiler."""
    digest = hashlib.sha256("\n".join((by.name, arch, *compilers.options(arch), text)).encode())
    code, said = (
        kept_in / f"{file}-{arch}-{digest.hexdigest()[:24]}.{e}" for e in ("cubin", "log")
    )
    seconds = 0.0
    if not (code.exists() and said.exists()):
        began = time.perf_counter()
        made = by.compile(text, arch)
        seconds = time.perf_counter() - began
        for path, content in ((code, made.cubin), (said, json.dumps(made.log).encode())):
            own = path.with_name(f"{path.name}.{os.getpid()}")
            own.write_bytes(content)
            os.replace(own, path)  # a run beside this one sees all of it or nothing
    cubin, log = code.read_bytes(), json.loads(said.read_text(encoding="utf-8"))
    return File(cubin, log, seconds, kernels(cubin, log, code))


def kernels(cubin: bytes, log: str, path: Path) -> dict[str, Kernel]:
    """What the log, the machine code and its instructions say of each kernel; path is a file of the code."""
    texts, threads = instructions(path), most_threads(cubin)
    found = {}
    for name, _, stack, stores, loads, registers, rest in ENTRY.findall(log):
        shared = sum(int(size) for size in re.findall(r"(\d+) bytes smem", rest))
        spills = int(stores) + int(loads)
        found[name] = Kernel(
            name, int(registers), int(stack), spills, shared, threads.get(name), texts.get(name, "")
        )
    return found


def instructions(path: Path) -> dict[str, str]:
    """The text of each kernel in a file of machine code; nothing without nvdisasm."""
    tool = disassembler()
    if tool is None:
        return {}
    said = subprocess.run([tool, "-c", path], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^\.text\.(\w+):$", said, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def most_threads(cubin: bytes) -> dict[str, int]:
    """What __launch_bounds__ says of each kernel, in a section of attributes of its own."""
    (sections,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, of_names = struct.unpack_from("<3H", cubin, 0x3A)
    headers = [struct.unpack_from("<2I4Q", cubin, sections + i * size) for i in range(count)]
    names, found = headers[of_names][4], {}
    for name_at, _, _, _, at, length in headers:
        name = cubin[names + name_at : cubin.index(b"\0", names + name_at)].decode()
        if not name.startswith(".nv.info."):
            continue
        place = at
        while place < at + length:
            form, what, value = struct.unpack_from("<2BH", cubin, place)
            if what == MAX_THREADS:
                x, y, z = struct.unpack_from("<3I", cubin, place + 4)
                found[name.removeprefix(".nv.info.")] = x * y * z
            place += 4 + (value if form == 4 else 0)
    return found
