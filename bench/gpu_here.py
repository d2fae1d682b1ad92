"""What is there: the card and its clocks as found, versions, compiling, and what the card can do at best."""

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from tinyplm.kernels import compilers, cuda

from .gpu_questions import device
from .gpu_timing import Card, Way, race
from .gpu_worker import Record, State

VERSIONS = ("numpy", "ml_dtypes", "cupy", "numba", "numba-cuda", "torch", "triton", "jax", "jaxlib")
CLOCKS = (
    "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,power.draw,power.limit,"
    "persistence_mode,compute_mode"
)


def here(state: State) -> Iterator[Record]:
    """The card, its settings as found, and versions; the first record of a run."""
    xp = device(state)
    found = xp.cuda.runtime.getDeviceProperties(0)
    free, total = xp.cuda.runtime.memGetInfo()
    name = found["name"]
    yield {
        "card": name.decode() if isinstance(name, bytes) else str(name),
        "architecture": cuda.architecture(),
        "processors": found["multiProcessorCount"],
        "cache_bytes": found.get("l2CacheSize"),
        "shared_bytes": found.get("sharedMemPerBlockOptin"),
        "free_bytes": free,
        "total_bytes": total,
        "driver_cuda": xp.cuda.runtime.driverGetVersion(),
        "runtime_cuda": xp.cuda.runtime.runtimeGetVersion(),
        "compilers": [compiler.name for compiler in compilers.found()],
        "clocks": clocks(),
        "versions": versions() | _libraries(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "commit": _commit(),
        "seed": state.settings.get("seed"),
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def clocks() -> str:
    """Clocks, heat and power as nvidia-smi tells them; it is only asked, never told."""
    if shutil.which("nvidia-smi") is None:
        return "nvidia-smi is not here"
    try:
        said = subprocess.run(
            ["nvidia-smi", f"--query-gpu=driver_version,{CLOCKS}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as problem:
        return f"nvidia-smi: {problem}"
    values = said.stdout.strip().splitlines()[:1]
    names = ("driver", *CLOCKS.split(","))
    return ", ".join(
        f"{name} {value.strip()}"
        for line in values
        for name, value in zip(names, line.split(","), strict=False)
    )


def versions() -> dict[str, str | None]:
    """Of the libraries that are here; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for name in VERSIONS:
        found[name] = None
        for distribution in ("cupy-cuda13x", "cupy-cuda12x", name) if name == "cupy" else (name,):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(distribution)
                break
    return found


def _libraries() -> dict[str, str]:
    """Versions that only the libraries themselves tell."""
    found = {}
    with contextlib.suppress(Exception):
        import torch

        if torch.version.cuda is not None:
            found["cuda of torch"] = str(torch.version.cuda)
            found["cudnn of torch"] = str(torch.backends.cudnn.version())
    with contextlib.suppress(Exception):
        from cupy_backends.cuda.libs import cublas

        found["cublas of cupy"] = str(cublas.getVersion(cublas.create()))
    return found


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    with contextlib.suppress(OSError):  # no git
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        return said.stdout.strip()
    return ""


def compiled(state: State, file: str, arch: str) -> Iterator[Record]:
    """Compile a file as a first launch would, for the cache too, and read what the compiler says of it."""
    by, logs = compilers.best(), []

    def noted(text: str, arch: str) -> compilers.Compiled:
        made = by.compile(text, arch)
        logs.append(made.log)
        return made

    own, compilers.best = compilers.best, lambda: compilers.Compiler(by.name, noted)
    began = time.perf_counter()
    try:
        size = len(cuda.cubin(file, arch))
    finally:
        compilers.best = own
    about = {"file": file, "seconds": time.perf_counter() - began, "bytes": size, "by": by.name}
    yield about | ({"cached": True} if not logs else said_by_compiler("\n".join(logs)))


def said_by_compiler(log: str) -> Record:
    """Kernels, their registers and spills, and warnings."""
    used = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", log)))
    notes = sorted(set(re.findall(r"\(C7\d+\)[^\n]*", log)))
    return {
        "kernels": len(used),
        "registers": max(used, default=0),
        "spills": spilled,
        "notes": notes,
    }


def ceiling(state: State, name: str) -> Iterator[Record]:
    """What the card does at best, measured as everything else is."""
    xp = device(state)
    card = Card(xp)
    make, amount = _CEILINGS[name]
    way = make(xp)
    if way is None:
        return
    card.wait(1.0)
    for _, times in race(card, [way], rounds=2, most=20, heavy=name.startswith("product")):
        found = times.described()
        after = {"clocks": clocks()} if name.startswith("product") else {}
        yield {"ceiling": name, "rate": amount / found["median"]} | found | after
    xp.get_default_memory_pool().free_all_blocks()


COPIED = 1 << 32
"""Bytes that the copy reads, and writes."""
WIDE, SINGLE = 8192, 4096


def _copy(xp: Any) -> Way:
    a = xp.arange(COPIED // 4, dtype=xp.uint32)
    b = xp.empty_like(a)
    return Way("cupy", "copy", lambda _: xp.copyto(b, a))


def _fill(xp: Any) -> Way:
    a = xp.empty(COPIED // 4, xp.uint32)
    return Way("cupy", "fill", lambda i: a.fill(i))


def _operands(xp: Any, size: int, dtype: str) -> list[Any]:
    from .gpu_cases import dtype_of

    rng = np.random.default_rng()
    return [
        xp.asarray(rng.standard_normal((size, size), np.float32).astype(dtype_of(dtype)))
        for _ in range(2)
    ]


def _product(xp: Any) -> Way:
    a, b = _operands(xp, WIDE, "bfloat16")
    return Way("cupy", "matmul", lambda _: xp.matmul(a, b))


def _product_of_torch(xp: Any) -> Way | None:
    from .gpu_peers import has_torch, tensor

    if not has_torch():
        return None
    import torch

    a, b = map(tensor, _operands(xp, WIDE, "bfloat16"))
    return Way("torch", "matmul", lambda _: torch.matmul(a, b))


def _single(xp: Any) -> Way:
    a, b = _operands(xp, SINGLE, "float32")
    return Way("cupy", "matmul", lambda _: xp.matmul(a, b))


_CEILINGS = {
    "copy": (_copy, 2.0 * COPIED),
    "fill": (_fill, 1.0 * COPIED),
    "product bfloat16": (_product, 2.0 * WIDE**3),
    "product bfloat16 of torch": (_product_of_torch, 2.0 * WIDE**3),
    "product float32": (_single, 2.0 * SINGLE**3),
}
