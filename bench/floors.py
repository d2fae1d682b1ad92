"""What the machine can do: how fast it copies, reads and multiplies. Measured by NumPy in a process of its own."""

import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .workers import Worker

Shape = tuple[int, int, int]
LARGE: tuple[Shape, ...] = ((1024, 1024, 1024), (2048, 2048, 2048), (2048, 1024, 4096))


@functools.cache
def copy_rate(size: int, threads: int) -> float:
    """Bytes read and written per second by a copy that reads and writes so many bytes altogether."""
    return _machine().ask(_rate, _copied, size // 2, threads) * 2


@functools.cache
def read_rate(size: int, threads: int) -> float:
    """Bytes per second of reading so many."""
    return _machine().ask(_rate, _read, size, threads)


def sgemm_rate(*shapes: Shape) -> float:
    """Operations per second of the best float32 product so far in this run.

    Of a few large ones, and of (n, k) by (k, m) for each shape.
    """
    global _best
    _best = max(_best, _machine().ask(_best_product, (*LARGE, *shapes)))
    return _best


_best = 0.0


def products(flops: float, *shapes: Shape) -> tuple[float, str]:
    """Seconds of so many operations at the best product's rate, and a line about it."""
    rate = sgemm_rate(*shapes)
    return flops / rate, f"{flops / 1e9:.4g} GFLOP at {rate / 1e9:.0f} GFLOP/s, the best product"


@functools.cache
def _machine() -> Worker:
    return Worker("numpy", "floor", dict)


def _copied(part: Any) -> Callable[[], object]:
    made = np.empty_like(part)
    return lambda: np.copyto(made, part)


def _read(part: Any) -> Callable[[], object]:
    return lambda: np.maximum.reduce(part)


def _rate(_: Any, work: Callable[[Any], Callable[[], object]], size: int, threads: int) -> float:
    """Bytes per second that threads get through together, each its part again and again; the best of five times."""
    parts = np.array_split(np.ones(max(size // 8, threads), np.int64), threads)
    repeats = max(1, int(2e8 / max(size, 1)))
    meet, clock = threading.Barrier(threads), time.perf_counter
    times: list[list[tuple[float, float]]] = [[] for _ in parts]

    def go(part: Any, found: list[tuple[float, float]]) -> None:
        once = work(part)
        for _ in range(5):
            once()
            meet.wait()
            began = clock()
            for _ in range(repeats):
                once()
            found.append((began, clock()))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(go, parts, times))
    spans = (
        max(end for _, end in run) - min(began for began, _ in run)
        for run in zip(*times, strict=True)
    )
    return size * repeats / min(spans)


def _best_product(_: Any, shapes: tuple[Shape, ...]) -> float:
    rng, best = np.random.default_rng(0), 0.0
    for n, k, m in shapes:
        a, b = rng.random((n, k), np.float32), rng.random((k, m), np.float32)
        out = np.empty((n, m), np.float32)
        end, calls = time.perf_counter() + 0.2, 0
        while calls < 3 or time.perf_counter() < end:
            began = time.perf_counter()
            np.matmul(a, b, out=out)
            best = max(best, 2 * n * k * m / (time.perf_counter() - began))
            calls += 1
    return best
