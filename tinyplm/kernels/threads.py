"""Who owns the cores: a few sleeping threads of our own, which share rows of one kernel at a time.

A BLAS that computes with several threads lets them spin, waiting for one another. That is quick on an idle machine; as
soon as anything else runs on a core, each product waits for the scheduler (8 ms where 1 ms was needed). So while our
threads share a product, BLAS computes with one thread in each. They sleep between kernels and wake in about 60
microseconds; a part that nobody has begun when the caller is ready is done by the caller, so nobody waits for a thread
that the system does not run. Each thread stays on a core of its own, and the one on the caller's core is passed over:
left to itself, the scheduler was seen to keep both halves of a 16 ms product on one core. What the parts are depends
on shapes and the number of threads only: the same bits every time, whoever does them.
"""

import contextlib
import ctypes
import functools
import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

LEAST = 1 << 17
"""Values of a compiled loop that are worth a thread's while: about 80 microseconds of one core."""

Work = Callable[[int, int], None]
"""Computes the items from start to stop; parts touch different memory."""


@functools.cache
def available() -> int:
    """Threads that kernels are shared between: the cores this process may use, or TINYPLM_THREADS."""
    asked = os.environ.get("TINYPLM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return len(_cores()) or os.cpu_count() or 1


def _cores() -> list[int]:
    """Numbers of the cores this process may use, where the system tells."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


class _Part:
    """Some of the items, done by whoever claims them first."""

    __slots__ = ("_claim", "_done", "error", "start", "stop", "work")

    def __init__(self, work: Work, start: int, stop: int) -> None:
        self.work, self.start, self.stop = work, start, stop
        self.error: BaseException | None = None
        self._claim, self._done = threading.Lock(), threading.Lock()
        self._done.acquire()

    def do(self) -> bool:
        """Do the items, unless somebody else has claimed them; whether we did."""
        if not self._claim.acquire(blocking=False):
            return False
        try:
            self.work(self.start, self.stop)
        except Exception as error:
            self.error = error
        self._done.release()
        return True

    def finish(self) -> None:
        """Do the items, or wait for whoever does."""
        if not self.do():
            self._done.acquire()


class _Worker:
    """A thread that sleeps until there is a part to do; on a core of its own, where the system allows it."""

    def __init__(self, core: int | None) -> None:
        self.core = core
        self.parts: queue.SimpleQueue[_Part] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="tinyplm-kernel", daemon=True).start()

    def _run(self) -> None:
        if self.core is not None:
            with contextlib.suppress(OSError):  # the process may have lost this core meanwhile
                os.sched_setaffinity(0, {self.core})
        import numpy as np

        with np.errstate(all="ignore"):  # what is not finite is no surprise to a kernel
            while True:
                self.parts.get().do()


_pool: list[_Worker] = []
_in_use = threading.Lock()


def share(total: int, work: Work, *, least: int = 1) -> None:
    """Do the items 0 to total in parts, of at least `least` items each, at the same time where that is possible.

    The parts are the same whoever does them: when a thread is not awake yet as the caller is done with its own part,
    the caller does that one too, and all of them when the threads are at work for somebody else.
    """
    parts = min(available(), total // least) if total > least else 1
    if parts < 2:
        work(0, total)
        return
    bounds = [total * number // parts for number in range(parts + 1)]
    if not _in_use.acquire(blocking=False):
        for start, stop in itertools.pairwise(bounds):
            work(start, stop)
        return
    try:
        others = [_Part(work, start, stop) for start, stop in itertools.pairwise(bounds[1:])]
        with one_blas_thread():
            for worker, part in zip(_workers(parts - 1), others, strict=True):
                worker.parts.put(part)
            try:
                work(0, bounds[1])
            finally:
                for part in others:
                    part.finish()
        for part in others:
            if part.error is not None:
                raise part.error
    finally:
        _in_use.release()


def _workers(count: int) -> list[_Worker]:
    """This many threads, none of them on the core that we are on."""
    if len(_pool) <= count:
        cores = _cores()
        for number in range(len(_pool), count + 1):
            _pool.append(_Worker(cores[number] if 1 < len(cores) > number else None))
    here = _core_asker()()
    return [worker for worker in _pool if worker.core is None or worker.core != here][:count]


@functools.cache
def _core_asker() -> Callable[[], int]:
    """The C library's sched_getcpu, or a stand-in that knows no core."""
    try:
        return cast(Callable[[], int], ctypes.PyDLL(None).sched_getcpu)
    except (OSError, TypeError, AttributeError):
        return lambda: -1


def _after_fork() -> None:
    """A child starts with no threads, and with nobody at work."""
    global _in_use
    _in_use = threading.Lock()
    _pool.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let NumPy's BLAS compute with one thread within a block, where it is an OpenBLAS that can be asked."""
    blas = _openblas()
    before = blas.threads() if blas else 1
    if blas is None or before == 1:
        yield
        return
    blas.set_threads(1)
    try:
        yield
    finally:
        blas.set_threads(before)


def is_blas_ours() -> bool:
    """Whether BLAS can be told how many threads to use, so that products can be shared between ours."""
    return _openblas() is not None


class _OpenBlas(NamedTuple):
    set_threads: Callable[[int], Any]
    threads: Callable[[], int]


@functools.cache
def _openblas() -> _OpenBlas | None:
    """How to set and ask the number of threads of the OpenBLAS in this process; None where there is none."""
    for path in _libraries():
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for prefix in ("scipy_openblas", "openblas"):
            for suffix in ("64_", ""):
                setter = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
                getter = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
                if setter is not None and getter is not None:
                    setter.argtypes, setter.restype = [ctypes.c_int], None
                    getter.argtypes, getter.restype = [], ctypes.c_int
                    return _OpenBlas(setter, getter)
    return None


def _libraries() -> Iterator[str]:
    """Files of OpenBLAS that came with NumPy, or that the process has loaded."""
    from pathlib import Path

    import numpy as np

    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        if folder.is_dir():
            yield from (str(path) for path in sorted(folder.glob("*openblas*")))
    maps = Path("/proc/self/maps")
    if maps.is_file():
        lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
        yield from sorted({line.split()[-1] for line in lines if "openblas" in line})
