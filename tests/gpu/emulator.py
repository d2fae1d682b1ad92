"""Runs device code on the CPU: the .cu files compiled as plain C++, and launches that go there with NumPy's arrays.

What goes through it is all of a "cuda" variant: which kernel it chooses, how many blocks, every argument with its type,
and the kernel itself, line by line.
"""

import ctypes
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

from tinyplm.kernels import cuda, tensor_map

HEADER = Path(__file__).with_name("emulated.h")
HEADERS = sorted(HEADER.parent.glob("*.h"))
COMPILER = shutil.which("g++")
KINDS = {
    "float": np.float32, "double": np.float64, "i64": np.int64, "u32": np.uint32,
    "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "bool": np.bool_, "u8": np.uint8,
}  # fmt: skip
MOST_SHARED = 232_448
"""Bytes of dynamic shared memory that a block of an H200 can have."""
CARD = cuda.Card(80, 4, 163 * 1024)
"""What choices are made for: few multiprocessors, as sizes are small too."""
STRIDED = ("attention", "cross_entropy_in_place")
"""How kernels begin that are told the strides of their arrays."""
KERNEL = re.compile(
    r'extern "C"\s+void\s+(?:__cluster_dims__\((\d+), 1, 1\)\s+)?(?!emulate_|sizes_of_)(\w+)\(\s*([^)]*)\)'
)
"""A kernel in the preprocessed text: blocks of a cluster, its name, its parameters."""
SIGNALLING = 0x7FA5A5A5
"""A NaN of float32 that arithmetic changes: adding 0 to it is seen."""
GUARD = 64
"""Values before and after each new array, which nobody may write to."""


def _read(file):
    return file.read_text(encoding="utf-8")


@functools.cache
def _version():
    said = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True)
    return said.stdout


class Emulator:
    """Stands for the device: `install` puts it in the place of tinyplm.kernels.cuda's launches."""

    def __init__(self, folder):
        self.folder, self._rooms = Path(folder), []
        self.library = functools.cache(self._library)

    def install(self, monkeypatch):
        monkeypatch.setattr(cuda, "launch", self.launch)
        monkeypatch.setattr(cuda, "empty", self.empty)
        monkeypatch.setattr(cuda, "address", lambda a: a.ctypes.data)
        monkeypatch.setattr(cuda, "usable", lambda: True)
        monkeypatch.setattr(cuda, "card", lambda: CARD)
        monkeypatch.setattr(tensor_map, "encoded", map_bytes)

    def _library(self, file):
        """The functions of a file, and what each takes; compiled if the folder has none of the same text."""
        text = f'#include "{HEADER}"\n{cuda.source(file)}\n'
        digest = hashlib.sha256("\0".join([text, *map(_read, HEADERS), _version()]).encode())
        kept = self.folder / f"{file.replace(' ', '-')}-{digest.hexdigest()[:24]}"
        made, known = kept.with_suffix(".so"), kept.with_suffix(".json")
        if not known.exists():
            self._compile(text, made, known)
        return ctypes.CDLL(str(made)), json.loads(_read(known))

    def _compile(self, text, made, known):
        with tempfile.TemporaryDirectory(dir=self.folder) as own:
            given, library, said = (Path(own, name) for name in ("text.cpp", "made.so", "known"))
            given.write_text(text, encoding="utf-8")
            plain = self._run("-E", "-P", given)
            signatures = {name: (p, int(n or 1)) for n, name, p in KERNEL.findall(plain)}
            launches = "".join(f"LAUNCH({name})\n" for name in signatures)
            given.write_text(text + launches, encoding="utf-8")
            nothing = "-D__cluster_dims__(x, y, z)="
            self._run("-O1", nothing, "-shared", "-fPIC", "-o", library, given)
            said.write_text(json.dumps(signatures), encoding="utf-8")
            os.replace(library, made)  # a run beside this one sees all of it or nothing
            os.replace(said, known)

    def _run(self, *options):
        result = subprocess.run(
            [COMPILER, "-std=c++17", "-ffp-contract=off", "-w", *options],
            capture_output=True, text=True, encoding="utf-8",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[:5000]
        return result.stdout

    def launch(self, file, kernel, blocks, threads, *arguments, shared=0):
        if not blocks:
            return
        library, signatures = self.library(file)
        parameters, cluster = signatures[kernel]
        types = [re.sub(r"\s*\w+$", "", p.strip()) for p in parameters.split(",")]
        values = [cuda.passed(a) for a in arguments]
        assert len(values) == len(types), f"{kernel}: {len(values)} arguments for {types}"
        held = [_held(kernel, *pair) for pair in zip(types, values, strict=True)]
        sizes = (ctypes.c_long * len(held))()
        getattr(library, f"sizes_of_{kernel}")(sizes)
        for kind, h, size in zip(types, held, sizes, strict=True):
            assert h.nbytes == size, f"{kernel}: {h.nbytes} bytes for a {kind} of {size}"
        places = (ctypes.c_void_p * len(held))(*(h.ctypes.data for h in held))
        assert shared <= MOST_SHARED
        emulate = getattr(library, f"emulate_{kernel}")
        emulate.restype = ctypes.c_char_p
        assert blocks % cluster == 0
        fault = emulate(ctypes.c_long(blocks), threads, cluster, ctypes.c_long(shared), places)
        assert fault is None, f"{kernel}: {fault.decode()}"

    def empty(self, like, shape, dtype=None, *, zeros=False):
        """As cuda.empty, but what nobody wrote is NaN, and so is what lies around it."""
        kind = np.dtype(like.dtype if dtype is None else dtype)
        size = int(np.prod(shape))
        room = np.full((size + 2 * GUARD) * kind.itemsize, 0xFF, np.uint8).view(kind)
        inner = room[GUARD : GUARD + size]
        if kind == np.float32:
            room[:GUARD].view(np.uint32)[...] = room[-GUARD:].view(np.uint32)[...] = SIGNALLING
        self._rooms.append(room)
        if zeros:
            inner[...] = 0
        return inner.reshape(shape)

    def check(self):
        """Nothing was written around any array."""
        for room in self._rooms:
            around = np.concatenate([room[:GUARD], room[-GUARD:]])
            clean = around.view(np.uint8) == 0xFF
            if room.dtype == np.float32:
                clean = around.view(np.uint32) == SIGNALLING
            assert clean.all(), "written outside of an array"
        self._rooms.clear()


MAP = np.dtype(
    [("address", "u8"), ("strides", "u8", 4), ("sizes", "u4", 5), ("box", "u4", 5)]
    + [(name, "u4") for name in ("axes", "itemsize", "swapped", "mark")]
)
"""A tensor map, as emulated_hopper.h reads it."""


def map_bytes(given):
    """The 128 bytes of a map, in the place of the driver's."""
    tensor_map.check(given)
    room = np.zeros(256, np.uint8)
    blob = room[-room.ctypes.data % 128 :][:128]
    found = blob[: MAP.itemsize].view(MAP)[0]
    found["address"], found["itemsize"], found["axes"] = (
        given.address,
        given.itemsize,
        len(given.box),
    )
    for name in ("strides", "sizes", "box"):
        values = getattr(given, name)
        found[name][: len(values)] = values
    found["swapped"], found["mark"] = tensor_map.LINE, 0x7E9504
    return blob.view("V128")


def _held(kernel, kind, value):
    """One argument as memory that holds it, if it is of the kind that the kernel declares."""
    declared = kind.replace("const", "").replace("*", "").strip()
    if "*" in kind and isinstance(value, np.ndarray):
        assert value.flags.c_contiguous or kernel.startswith(STRIDED), (
            f"{kernel}: strides {value.strides}"
        )
        if not kernel.startswith("copy_rows"):
            assert value.dtype == KINDS[declared], f"{kernel}: {value.dtype} for {kind}"
        return np.array([value.ctypes.data], np.uintp)
    if isinstance(value, np.ndarray) and value.dtype.kind == "V" and value.shape == (1,):
        assert "*" not in kind, f"{kernel}: a struct for {kind}"
        return value  # by value, as CuPy passes arrays of NumPy that have one value
    wanted = np.uintp if "*" in kind else KINDS[declared]
    assert type(value) is wanted, f"{kernel}: {type(value)} for {kind}"
    return np.array([value])
