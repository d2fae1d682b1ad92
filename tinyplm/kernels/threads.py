"""Who owns the cores: a team of threads that watches for work a moment longer than it takes to arrive.

A BLAS that computes with several threads lets them spin for milliseconds, waiting for one another. That is quick on an
idle machine; as soon as anything else runs on a core, each product waits for the scheduler. So BLAS computes with one
thread in each of ours. These do parts of one job at a time (team.py), look for the next one for about a tenth of a
millisecond, and then sleep. A part that nobody has claimed when the caller is ready is done by the caller, so nobody
waits for a thread that the system does not run. Each thread stays on a core other than the caller's. What the parts are
depends on shapes and the number of threads only: the same bits every time, whoever does them.
"""

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..backend import keep_freed_memory
from ..types import Array
from . import mkl

LEAST = 1 << 14
"""Values of a compiled loop that are worth a thread's while: about 5 microseconds of one core."""

PATIENCE = 3000
"""Looks of an idle thread before it sleeps; a look takes about 50 nanoseconds."""

NEXT, DONE, CALL, ARGUMENTS, TOTAL, BUSY, ASLEEP = 0, 8, 16, 17, 18, 24, 32
SGEMM, DGEMM, SET_THREADS, COUNT_THREADS, HALF_GEMM = 40, 41, 42, 43, 44
"""Words of the team's array; those that different threads write lie on lines of their own."""


@functools.cache
def available() -> int:
    """Threads that kernels are shared between.

    TINYPLM_THREADS decides, else OMP_NUM_THREADS, which libraries of numbers agree on, else the cores that this
    process may use.
    """
    for name in ("TINYPLM_THREADS", "OMP_NUM_THREADS"):
        asked = os.environ.get(name, "")
        if asked.isdecimal() and int(asked) > 0:
            return min(int(asked), 1 << 10)
    count = len(_cores()) or os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # the share of a container
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        count = min(count, max(1, -(-int(quota) // int(period))))
    return count


def _cores() -> list[int]:
    """Numbers of the cores this process may use, where the system tells."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def parts(total: int, least: int, *, most: int = 0) -> int:
    """How many parts to make of so many items: of at least `least` each, and at most `most`, or a few a thread."""
    if available() == 1:
        return 1
    return max(1, min(total // max(1, least), most or 4 * available()))


class Team:
    """The threads, and the array of words through which they and their callers agree (see team.py)."""

    def __init__(self) -> None:
        line = 8  # words
        raw = np.zeros(8 * line, np.int64)
        start = -(raw.ctypes.data // 8) % line
        self.words = raw[start : start + 7 * line]
        # MKL is a twentieth faster than OpenBLAS, and by half for the small products of attention.
        found = mkl.load()
        if found is not None:
            self.words[SGEMM], self.words[DGEMM] = found.sgemm, found.dgemm
            self.words[HALF_GEMM] = found.address
        else:
            for word, function in (openblas() or {}).items():
                self.words[word] = ctypes.cast(function, ctypes.c_void_p).value or 0
        self._lock = threading.Lock()
        self._workers = [_Worker(self) for _ in range(available() - 1)]
        self._asleep = list(self._workers)
        self.words[ASLEEP] = len(self._asleep)
        self._cores = _cores()
        self._here = _core_asker()
        self._taken: set[int] = {self._here()}

    def call(self) -> None:
        """See to it that all threads look for work, on cores other than the caller's."""
        here = self._here()
        if here in self._taken and len(self._cores) > 1:
            self._spread(here)
        if self.words[ASLEEP]:
            with self._lock:
                asleep, self._asleep = self._asleep, []
                self.words[ASLEEP] = 0
            for worker in asleep:
                worker.bell.release()

    def _spread(self, here: int) -> None:
        """Give each thread a core of its own, away from the one where the caller is."""
        others = [core for core in self._cores if core != here]
        self._taken = set(others[: len(self._workers)])
        for worker, core in zip(self._workers, others, strict=False):
            with contextlib.suppress(OSError):  # the process may have lost this core meanwhile
                os.sched_setaffinity(worker.thread.native_id or 0, {core})

    def may_sleep(self, worker: "_Worker") -> bool:
        """Whether a thread may sleep, which it will: not when a job came while it was about to."""
        with self._lock:
            word = int(self.words[NEXT])
            if word & 0xFFFF < word >> 16 & 0xFFFF:
                return False
            self._asleep.append(worker)
            self.words[ASLEEP] = len(self._asleep)
            return True


class _Worker:
    """A thread that sleeps until it is woken, and then serves until there is nothing to do."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.bell = threading.Lock()
        self.bell.acquire()
        self.thread = threading.Thread(target=self._run, name="tinyplm-kernel", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        from .team import serve

        while True:
            self.bell.acquire()
            serve(self.team.words, PATIENCE)
            while not self.team.may_sleep(self):
                serve(self.team.words, PATIENCE)


_team: Team | None = None
_making = threading.Lock()


def team(*, wake: bool = True) -> Array:
    """The words of this process's team, which compiled code wants; its threads are awake, or soon will be."""
    if _team is None:
        _make()
    words = _team.words  # type: ignore[union-attr]
    if wake:
        _team.call()  # type: ignore[union-attr]
    return words


def _make() -> None:
    global _team
    with _making:
        if _team is None:
            keep_freed_memory()
            _team = Team()


@functools.cache
def _core_asker() -> Callable[[], int]:
    """The C library's sched_getcpu, or a stand-in that knows no core."""
    try:
        return cast(Callable[[], int], ctypes.PyDLL(None).sched_getcpu)
    except (OSError, TypeError, AttributeError):
        return lambda: -1


def _after_fork() -> None:
    """A child starts with no threads, and makes its own team."""
    global _team, _making
    _team, _making = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def products_by() -> str:
    """Whose products compiled code calls: "MKL", "OpenBLAS", or "" where there are none that it could."""
    return "MKL" if mkl.load() is not None else "OpenBLAS" if openblas() is not None else ""


def has_products() -> bool:
    """Whether there are products that compiled code can call."""
    return products_by() != ""


@functools.cache
def openblas() -> dict[int, Any] | None:
    """Functions of this process's OpenBLAS by their word of a team; None without one that has 64-bit integers."""
    for path in _libraries():
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for prefix in ("scipy_", ""):
            found = {
                SGEMM: getattr(library, f"{prefix}cblas_sgemm64_", None),
                DGEMM: getattr(library, f"{prefix}cblas_dgemm64_", None),
                SET_THREADS: getattr(library, f"{prefix}openblas_set_num_threads64_", None),
                COUNT_THREADS: getattr(library, f"{prefix}openblas_get_num_threads64_", None),
            }
            if all(found.values()):
                return found
    return None


def _libraries() -> Iterator[str]:
    """Files of OpenBLAS that came with NumPy, or that the process has loaded."""
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        if folder.is_dir():
            yield from (str(path) for path in sorted(folder.glob("*openblas*")))
    maps = Path("/proc/self/maps")
    if maps.is_file():
        lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
        yield from sorted({line.split()[-1] for line in lines if "openblas" in line})
