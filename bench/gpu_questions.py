"""What only a card can answer, asked of it in one call: each question a function, whose answer is yes, no or a figure.

Their kernels are in gpu_probes.cu. Each is asked in a process that may be lost: "no" comes with the reason.
"""

import functools
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinyplm.backend import library
from tinyplm.kernels import compilers, cuda
from tinyplm.kernels.tensor_map import TensorMap, encoded

from .gpu_timing import WARM, Card
from .gpu_worker import Record, State, said

PROBES = Path(__file__).with_name("gpu_probes.cu")
WIDTH = 64
"""Values in such a row."""
OFFSETS = (16, 128, 1024, 2048, 8192)
"""Bytes that the two offsets of a descriptor are tried with, where they matter."""
FLOPS_OF_WGMMA, FLOPS_OF_MMA = 2 * 64 * 256 * 16, 2 * 16 * 8 * 16

Answer = dict[str, Any]


def ask(state: State, name: str) -> Iterator[Record]:
    """The answer to one question; what went wrong is one too."""
    about = {"question": name, "asked": (QUESTIONS[name].__doc__ or "").strip()}
    try:
        yield about | QUESTIONS[name](state)
    except Exception as error:
        yield about | {"answer": "no", "failed": said(error)}


def device(state: State) -> Any:
    """CuPy, with a card; kept for the process."""
    if "xp" not in state.kept:
        state.kept["xp"] = library("cuda")
    return state.kept["xp"]


@functools.cache
def _probes() -> Any:
    from cupy.cuda.function import Module

    module = Module()
    module.load(compilers.best().compile(PROBES.read_text("utf-8"), cuda.architecture()).cubin)
    return module


def _start(
    name: str, blocks: int, threads: int, *arguments: Any, shared: int = 0, plain: bool = True
) -> None:
    function = _probes().get_function(name)
    if shared > cuda.DYNAMIC_SHARED:
        from cupy_backends.cuda.api import driver

        driver.funcSetAttribute(function.ptr, 8, shared)
    given = tuple(map(cuda.passed, arguments)) if plain else arguments
    function((blocks,), (threads,), given, shared_mem=shared)


def _processors(xp: Any) -> int:
    return int(xp.cuda.runtime.getDeviceProperties(0)["multiProcessorCount"])


def _seconds(state: State, run: Any, repeats: int = 9) -> float:
    """The median of a few runs of some milliseconds each, between events, once clocks have risen."""
    card = Card(device(state))
    began = card.now()
    while card.now() - began < WARM:
        run()
        card.synchronize()
    found = []
    for _ in range(repeats):
        first = card.mark()
        run()
        found.append(card.between(first, card.mark()))
    return statistics.median(found)


# What CuPy does


def machine_code(state: State) -> Answer:
    """Does CuPy load machine code from bytes, and do arguments arrive: 64 and 32 bits, single, double, null?"""
    xp = device(state)
    out = xp.zeros(1, xp.int64)
    numbers = np.int64(-(1 << 40)), np.float32(0.1), np.int32(-7), np.float64(0.1), np.uintp(0)
    _start("arguments", 1, 1, out, *numbers, plain=False)
    right = int(out[0])
    answer = "yes" if right == 5 else "no"
    return {"answer": answer, "right": right, "compiler": compilers.best().name}


def every_compiler(state: State) -> Answer:
    """Do all compilers that are here make machine code that runs: NVRTC of CuPy, NVRTC's package, nvcc?"""
    from cupy.cuda.function import Module

    xp, found = device(state), {}
    for compiler in compilers.found():
        try:
            module, x = Module(), xp.zeros(5, xp.float32)
            began = time.perf_counter()
            module.load(compiler.compile(PROBES.read_text("utf-8"), cuda.architecture()).cubin)
            took = time.perf_counter() - began
            arguments = x, np.int64(5)
            module.get_function("add_one")((1,), (32,), arguments)
            found[compiler.name] = f"{took:.2f} s" if float(x.sum()) == 5 else "wrong result"
        except Exception as error:
            found[compiler.name] = said(error)
    good = found and all(text.endswith(" s") for text in found.values())
    return {"answer": "yes" if good else "no", "seconds": found}


def halves(state: State) -> Answer:
    """Does CuPy hold bfloat16 arrays, add them, and multiply them with cuBLAS into bfloat16?"""
    import ml_dtypes

    xp = device(state)
    rng = np.random.default_rng()
    a, b = (rng.standard_normal((64, 64)).astype(ml_dtypes.bfloat16) for _ in range(2))
    there = xp.asarray(a), xp.asarray(b)
    added = xp.asnumpy(there[0] + there[1])
    product = xp.asnumpy(xp.matmul(*there))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    error = np.linalg.norm(product.astype(np.float64) - exact) / np.linalg.norm(exact)
    fine = added.dtype == a.dtype and np.array_equal(added, a + b) and error < 3e-3
    return {"answer": "yes" if fine else "no", "error": float(error), "made": str(product.dtype)}


def no_room(state: State) -> Answer:
    """Is a lack of memory on the card the error that says so, and does work go on after it?"""
    from tinyplm.errors import DeviceMemoryError

    xp = device(state)
    free, total = xp.cuda.runtime.memGetInfo()
    like = xp.zeros(1, xp.float32)
    try:
        cuda.empty(like, (total,), np.float32)
    except DeviceMemoryError as error:
        return {"answer": "yes" if float(like.sum()) == 0 else "no", "text": said(error)}
    return {"answer": "no", "free": free, "total": total}


def large_shared_memory(state: State) -> Answer:
    """May a block have 227 KB of dynamic shared memory through CuPy's launch?"""
    xp = device(state)
    out, most = xp.zeros(1, xp.int64), 227 * 1024
    _start("last_byte", 1, 64, out, most, shared=most)
    return {"answer": "yes" if int(out[0]) == 77 else "no", "bytes": most}


def clusters(state: State) -> Answer:
    """Does an ordinary launch start a kernel whose text says that two blocks are a cluster?"""
    xp = device(state)
    place, count = xp.full(8, -1, xp.int64), xp.full(8, -1, xp.int64)
    _start("clusters", 8, 32, place, count)
    found = xp.asnumpy(place).tolist(), xp.asnumpy(count).tolist()
    return {"answer": "yes" if found == ([0, 1] * 4, [2] * 8) else "no", "found": found}


def graph(state: State) -> Answer:
    """Does a captured stream replay own kernels and CuPy's on memory of a private pool, with new inputs each time?"""
    xp = device(state)
    x = xp.zeros(1000, xp.float32)
    pool, stream = xp.cuda.MemoryPool(), xp.cuda.Stream(non_blocking=True)
    xp.cuda.Device().synchronize()

    def work() -> Any:
        _start("add_one", 4, 256, x, 1000)
        return xp.multiply(x, xp.float32(2)) + x

    with xp.cuda.using_allocator(pool.malloc), stream:
        work()
        stream.synchronize()
        stream.begin_capture()
        made = work()
        captured = stream.end_capture()
    sums = []
    for start in (0, 10, 20):
        x.fill(start)
        captured.launch(xp.cuda.get_current_stream())
        others = xp.full(100_000, np.nan, xp.float32)  # of the shared pool, while the graph lives
        sums.append((float(x[0]), float(made[0]), float(made[-1])))
        del others
    expected = [(s + 1.0, 3 * (s + 1.0), 3 * (s + 1.0)) for s in (0, 10, 20)]
    times = _seconds(state, lambda: captured.launch(xp.cuda.get_current_stream()), 20)
    return {
        "answer": "yes" if sums == expected else "no",
        "found": sums,
        "replay_seconds": times,
        "pool_bytes": pool.total_bytes(),
    }


def graph_of_products(state: State) -> Answer:
    """Can cuBLAS through cupy.matmul be captured? (The documentation says it cannot.)"""
    xp = device(state)
    a = xp.ones((256, 256), xp.float32)
    stream, pool = xp.cuda.Stream(non_blocking=True), xp.cuda.MemoryPool()
    with xp.cuda.using_allocator(pool.malloc), stream:
        xp.matmul(a, a)
        stream.synchronize()
        stream.begin_capture()
        try:
            xp.matmul(a, a)
            return {"answer": "yes"}
        except Exception as error:
            return {"answer": "no", "text": said(error)}
        finally:
            stream.end_capture()


def launch_cost(state: State) -> Answer:
    """Seconds of the host for one launch: bare, by tinyplm's launch, by CuPy's RawKernel, by CuPy's own addition."""
    xp = device(state)
    x, y = xp.zeros(32, xp.float32), xp.zeros(32, xp.float32)
    bare = _probes().get_function("nothing")
    raw = xp.RawKernel('extern "C" __global__ void nothing(float *) {}', "nothing")
    given = ((1,), (32,), (x,))
    ways = {
        "bare": lambda: bare(*given),
        "tinyplm": lambda: cuda.launch("gelu", "gelu_forward_float32", 1, 256, x, y, 32, 8),
        "RawKernel": lambda: raw(*given),
        "addition": lambda: xp.add(x, x, out=y),
        "allocation": lambda: xp.empty(32, xp.float32),
    }
    found = {}
    for name, run in ways.items():
        try:
            run()
            xp.cuda.Device().synchronize()
            began = time.perf_counter()
            for _ in range(500):
                run()
            found[name] = (time.perf_counter() - began) / 500
            xp.cuda.Device().synchronize()
        except Exception as error:
            found[name] = said(error)
    return {"answer": _micro(found["bare"]), "seconds": found}


def _micro(seconds: Any) -> str:
    return f"{seconds * 1e6:.1f} us" if isinstance(seconds, float) else str(seconds)


# What the machine does


def swizzled(rows: Any) -> Any:
    """Rows of 64 values as they lie in shared memory: 16-byte chunk c of row r at chunk c xor (r mod 8)."""
    height = len(rows)
    chunks = rows.reshape(height, 8, 8)
    r, c = np.ogrid[:height, :8]
    out = np.empty_like(chunks)
    out[r, c ^ (r % 8)] = chunks
    return out.reshape(height, WIDTH)


def map_by_value(state: State) -> Answer:
    """Does a tensor map arrive by value, and is its box swizzled as assumed, with zeros beyond the matrix?"""
    xp = device(state)
    values = np.arange(100 * 96, dtype=np.uint16).reshape(100, 96)
    there, found = xp.asarray(values), {}
    rows, columns = values.shape
    box = (WIDTH, WIDTH)
    given = encoded(
        TensorMap(cuda.address(there), "bfloat16", (columns, rows), (values.strides[0],), box)
    )
    for name, (column, row) in {"inside": (0, 8), "beyond": (64, 72)}.items():
        out, done = xp.full((WIDTH, WIDTH), 9, xp.uint16), xp.zeros(1, xp.int64)
        _start("box", 1, 128, given, out, done, np.int32(column), np.int32(row), plain=False)
        expected = np.zeros((WIDTH, WIDTH), np.uint16)
        part = values[row : row + WIDTH, column : column + WIDTH]
        expected[: part.shape[0], : part.shape[1]] = part
        came = int(done[0]) == 1
        same = came and np.array_equal(xp.asnumpy(out), swizzled(expected))
        plain = came and np.array_equal(np.sort(xp.asnumpy(out), None), np.sort(expected, None))
        found[name] = "as assumed" if same else "swizzled otherwise" if plain else "wrong"
    yes = set(found.values()) == {"as assumed"}
    return {"answer": "yes" if yes else "no", "found": found}


def operand(values: Any, turned: bool) -> Any:
    """A matrix, summed over its last axis of 64, as it lies in shared memory, swizzled.

    Not turned: its rows of 64. Turned: panels of 64 of its rows, in each of which one index of the sum is a row.
    """
    if not turned:
        return swizzled(values)
    panels = values.reshape(-1, WIDTH, WIDTH).swapaxes(1, 2)
    return np.concatenate([swizzled(np.ascontiguousarray(panel)) for panel in panels])


def settings(turned: bool) -> list[tuple[int, int, int]]:
    """Offsets, leading and stride, and the bytes of a step that are tried for an operand."""
    if not turned:
        return [(16, 1024, 32)]
    return [(leading, stride, 2048) for leading in OFFSETS for stride in OFFSETS]


def offsets(state: State) -> Answer:
    """By which offset of a descriptor does wgmma go to the next panel of a turned operand, and by which within one?"""
    import ml_dtypes

    xp, rng, found = device(state), np.random.default_rng(), {}
    a, b = rng.integers(-8, 9, (64, 64)), rng.integers(-8, 9, (128, 64))
    exact = (a @ b.T).astype(np.float32)
    for a_turned, b_turned in itertools.product((False, True), repeat=2):
        images = [
            xp.asarray(operand(m.astype(ml_dtypes.bfloat16), turned).view(np.uint16))
            for m, turned in ((a, a_turned), (b, b_turned))
        ]
        right = []
        # The left one has a single panel: with both offsets the same it is right whichever is used.
        left = [(1024, 1024, 2048)] if a_turned and b_turned else settings(a_turned)
        for of_a, of_b in itertools.product(left, settings(b_turned)):
            out = xp.full((64, 128), np.nan, xp.float32)
            name = f"offsets_{a_turned:d}{b_turned:d}"
            _start(name, 1, 128, *images, out, *of_a, *of_b)
            if np.array_equal(xp.asnumpy(out), exact):
                right.append((*of_a[:2], *of_b[:2]))
        found[f"{'turned' if a_turned else 'plain'} x {'turned' if b_turned else 'plain'}"] = right
    expected = 8192, 1024  # leading: to the next panel; stride: to the next 8 rows of one
    yes = all(found.values()) and all(
        any(one[2:] == expected for one in found[f"{left} x turned"])
        for left in ("plain", "turned")
    )
    answer = "leading to the next panel, stride within one" if yes else "no"
    return {"answer": answer, "exact_with": found}


def wgmma_rate(state: State) -> Answer:
    """Products per second of wgmma alone, from shared memory, on random values."""
    return _products(state, "wgmma_rate", 1, 2, 2_000, 49152 + 1024, FLOPS_OF_WGMMA)


def mma_rate(state: State) -> Answer:
    """Products per second of mma.sync alone, from registers, on random values: the most that portable kernels reach."""
    return _products(state, "mma_rate", 2, 8, 20_000, 0, FLOPS_OF_MMA)


def _products(
    state: State, name: str, blocks: int, teams: int, rounds: int, shared: int, flops: int
) -> Answer:
    """So many blocks for each processor, with so many teams, whose rounds have 16 products."""
    import ml_dtypes

    xp = device(state)
    count = blocks * _processors(xp)
    rng = np.random.default_rng()
    values = xp.asarray(rng.standard_normal(1 << 16).astype(ml_dtypes.bfloat16).view(np.uint16))
    out = xp.zeros(count * 256, xp.float32)

    def run() -> None:
        _start(name, count, 256, values, out, rounds, shared=shared)

    seconds = _seconds(state, run)
    rate = flops * 16 * rounds * teams * count / seconds
    return {"answer": f"{rate / 1e12:.0f} TFLOP/s", "flops_per_second": rate, "seconds": seconds}


def power_rate(state: State) -> Answer:
    """Powers of two per clock of a processor, and per second of the card; 16 a clock are assumed."""
    xp = device(state)
    blocks, rounds = 2 * _processors(xp), 8000
    out, clocks = xp.zeros(blocks * 1024, xp.float32), xp.zeros(blocks, xp.int64)

    def run() -> None:
        _start("power_rate", blocks, 1024, out, clocks, rounds)

    seconds = _seconds(state, run)
    by_clock = 2 * 1024 * 8 * rounds / float(np.median(xp.asnumpy(clocks)))
    rate = blocks * 1024 * 8 * rounds / seconds
    return {"answer": f"{by_clock:.1f} a clock", "a_clock": by_clock, "a_second": rate}


def adding_rate(state: State) -> Answer:
    """Bytes of float32 added to memory per second, by the copy engine and by threads, in the cache and beyond it."""
    xp, found, wrong = device(state), {}, []
    blocks = 4 * _processors(xp)
    for name, megabytes in itertools.product(("add_by_copies", "add_by_threads"), (16, 512)):
        tiles = megabytes * 64  # of 16 KB
        to = xp.zeros(tiles * 4096, xp.float32)
        rounds = max(1, (1 << 30) // (16384 * blocks))

        def run(name: str = name, to: Any = to, tiles: int = tiles, rounds: int = rounds) -> None:
            _start(name, blocks, 256, to, tiles, rounds)

        run()
        if float(to.sum(dtype=xp.float64)) != 4096.0 * blocks * rounds:
            wrong.append(name)
        found[f"{name}, {megabytes} MB"] = 16384 * blocks * rounds / _seconds(state, run)
    answer = ", ".join(f"{rate / 1e12:.2f}" for rate in found.values()) + " TB/s"
    return {"answer": "wrong sums" if wrong else answer, "bytes_per_second": found, "off": wrong}


def numba(state: State) -> Answer:
    """Does a kernel of Numba take CuPy's arrays, and what does a launch cost?"""
    from tinyplm.kernels.gelu import gelu_forward

    xp = device(state)
    x = xp.asarray(np.random.default_rng().standard_normal((64, 64), np.float32))
    with gelu_forward.using("numba-cuda"):
        began = time.perf_counter()
        y = gelu_forward(x)
        xp.cuda.Device().synchronize()
        first = time.perf_counter() - began
        error = abs(xp.asnumpy(y) - gelu_forward.definition(xp.asnumpy(x))).max()
        began = time.perf_counter()
        for _ in range(100):
            gelu_forward(x)
        cost = (time.perf_counter() - began) / 100
    variant = next(v for v in gelu_forward.variants if v.name == "numba-cuda")
    fine = error < 1e-5 and variant.function is not None
    return {
        "answer": f"yes, {_micro(cost)} a launch" if fine else "no",
        "error": float(error),
        "compiled_in": first,
    }


QUESTIONS = {
    "cupy loads our machine code": machine_code,
    "each compiler": every_compiler,
    "bfloat16 arrays": halves,
    "227 KB of shared memory": large_shared_memory,
    "graph with a private pool": graph,
    "tensor map by value": map_by_value,
    "offsets of turned operands": offsets,
    "clusters by a plain launch": clusters,
    "rate of wgmma": wgmma_rate,
    "rate of mma.sync": mma_rate,
    "rate of exponentials": power_rate,
    "rate of adding to memory": adding_rate,
    "cost of a launch": launch_cost,
    "no room on the card": no_room,
    "numba takes cupy's arrays": numba,
    "graph of cublas": graph_of_products,
}
"""In this order; later ones may lose the process."""
