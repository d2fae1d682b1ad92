"""Who owns the cores: a few sleeping threads of our own, which share rows of one kernel at a time.

A BLAS that computes with several threads lets them spin, waiting for one another. That is quick on an idle machine; as
soon as anything else runs on a core, each product waits for the scheduler (8 ms where 1 ms was needed). So while our
threads share a product, BLAS computes with one thread in each. They sleep on a lock between kernels and wake in about
60 microseconds. Each stays on a core of its own, and the one on the caller's core is passed over: left to itself, the
scheduler was seen to keep both halves of a 16 ms product on one core. The parts depend on shapes and the number of
threads only: the same bits every time.
"""

import contextlib
import ctypes
import functools
import os
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


class _Worker:
    """A thread that sleeps until it is given a part; on a core of its own, where the system allows it."""

    def __init__(self, core: int | None) -> None:
        self.core = core
        self._start, self._finished = threading.Lock(), threading.Lock()
        self._start.acquire()
        self._finished.acquire()
        self._part: tuple[Work, int, int] | None = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="tinyplm-kernel", daemon=True).start()

    def begin(self, work: Work, start: int, stop: int) -> None:
        self._part = work, start, stop
        self._start.release()

    def finish(self) -> BaseException | None:
        self._finished.acquire()
        error, self._error = self._error, None
        return error

    def _run(self) -> None:
        if self.core is not None:
            with contextlib.suppress(OSError):  # the process may have lost this core meanwhile
                os.sched_setaffinity(0, {self.core})
        import numpy as np

        with np.errstate(all="ignore"):  # what is not finite is no surprise to a kernel
            self._work()

    def _work(self) -> None:
        while True:
            self._start.acquire()
            try:
                if self._part is not None:
                    work, start, stop = self._part
                    work(start, stop)
                    del work
            except BaseException as error:
                self._error = error
            self._part = None
            self._finished.release()


_pool: list[_Worker] = []
_in_use = threading.Lock()


def share(total: int, work: Work, *, least: int = 1) -> None:
    """Do the items 0 to total in parts at the same time, of at least `least` items each.

    When the threads are busy, as they are for work that is shared within work, all of it is done here.
    """
    parts = min(available(), total // least) if total > least else 1
    if parts < 2 or not _in_use.acquire(blocking=False):
        work(0, total)
        return
    try:
        workers = _workers(parts - 1)
        bounds = [total * number // parts for number in range(parts + 1)]
        with one_blas_thread():
            for worker, start, stop in zip(workers, bounds[1:-1], bounds[2:], strict=True):
                worker.begin(work, start, stop)
            ours: BaseException | None = None
            try:
                work(0, bounds[1])
            except Exception as error:
                ours = error
            errors = [ours, *(worker.finish() for worker in workers)]
        for failure in errors:
            if failure is not None:
                raise failure
    except KeyboardInterrupt:  # who is still at work is not known: the next work gets new threads
        _pool.clear()
        raise
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
