"""Work that is shared between threads is all done, once, and settings come back."""

import contextlib
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tinyplm.kernels import mkl, threads
from tinyplm.kernels.compiled import parallel
from tinyplm.kernels.matmul import LEAST_PRODUCT, product

with contextlib.suppress(ImportError):
    from tinyplm.kernels.team import load, rest, store

PARTS = pytest.mark.parametrize("cores", [1, 2, 3, 5])


@pytest.fixture
def available(monkeypatch):
    """Let work be shared between this many threads, of a team of their own."""

    def use(cores):
        monkeypatch.setattr(threads, "available", lambda: cores)
        monkeypatch.setattr(threads, "_team", None)

    return use


def _count(team, part, start, stop, done, part_of):
    for i in range(start, stop):
        done[i] += 1
        part_of[i] = part


def _meet(team, part, start, stop, begun, met, looks):
    """Say that this part has begun, and look for the other one: found only by parts that run at the same time."""
    store(begun, part, 1)
    for _ in range(looks):
        rest()
        if load(begun, 1 - part):
            met[part] = 1
            break


@pytest.fixture(scope="module")
def count():
    pytest.importorskip("numba")
    return parallel(_count)


@pytest.fixture(scope="module")
def meet():
    pytest.importorskip("numba")
    return parallel(_meet)


def counted(run, total, **sharing):
    done, part_of = np.zeros(total, np.int64), np.zeros(total, np.int64)
    run(total, done, part_of, **sharing)
    assert (done == 1).all()
    return part_of


@PARTS
@pytest.mark.parametrize("total", [0, 1, 2, 7, 100])
def test_every_item_is_done_once(available, count, cores, total):
    available(cores)
    for _ in range(50):
        counted(count, total)


def test_parts_have_at_least_as_many_items_as_asked(available, count):
    available(4)
    assert np.bincount(counted(count, 100, least=40)).tolist() == [50, 50]


def test_there_are_no_more_parts_than_asked(available, count):
    available(2)
    assert np.bincount(counted(count, 100, most=3)).tolist() == [33, 33, 34]
    assert counted(count, 100).max() + 1 == threads.parts(100, 1)


def test_the_parts_are_the_same_while_the_threads_are_busy(available, count):
    available(3)
    free = counted(count, 100)
    words = threads.team()
    words[threads.BUSY] = 1
    busy = counted(count, 100)
    assert (free == busy).all()
    words[threads.BUSY] = 0


def test_sleeping_threads_wake_for_new_work(available, count):
    available(3)
    for _ in range(3):
        counted(count, 100)
        deadline = time.monotonic() + 20
        while threads.team(wake=False)[threads.ASLEEP] < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert threads.team(wake=False)[threads.ASLEEP] == 2


def test_work_is_done_without_threads_that_never_run(available, count, monkeypatch):
    available(2)
    monkeypatch.setattr(threads.Team, "call", lambda self: None)
    counted(count, 100)


def test_parts_run_at_the_same_time(available, meet):
    if threads.available() < 2:
        pytest.skip("one core only")
    available(2)
    for _ in range(
        100
    ):  # a thread may still be starting, or have gone to sleep before the job was there
        begun, met = np.zeros(2, np.int64), np.zeros(2, np.int64)
        meet(2, begun, met, 20_000_000, least=1, most=2)
        if met.all():
            break
    assert met.all()


def test_several_callers_at_once_all_get_their_work_done(available, count):
    available(2)
    done, part_of = np.zeros((8, 1000), np.int64), np.zeros((8, 1000), np.int64)

    def caller(row):
        for _ in range(50):
            count(1000, done[row], part_of[row])

    callers = [threading.Thread(target=caller, args=(row,)) for row in range(8)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert (done == 50).all()


@PARTS
@pytest.mark.parametrize(
    "shape", [(300, 200, 400), (70, 900, 411), (70, 301, 1024), (3, 5, 7), (4000, 64, 33)]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_shared_product_is_the_product(available, cores, shape, dtype):
    available(cores)
    rng = np.random.default_rng(0)
    N, K, M = shape
    a, b = rng.standard_normal((N, K)).astype(dtype), rng.standard_normal((M, K)).astype(dtype).T
    found = product(a, b)
    exact = a.astype(np.longdouble) @ b.astype(np.longdouble)
    assert found.dtype == dtype
    assert np.abs(found - exact).max() <= 4 * K * np.finfo(dtype).eps
    assert np.array_equal(found, product(a, b))


def test_blas_has_as_many_threads_after_a_shared_product_as_before(available):
    available(2)
    blas = None if mkl.load() else threads.openblas()
    if blas is None:
        pytest.skip("products are not by an OpenBLAS here")
    ask, tell = blas[threads.COUNT_THREADS], blas[threads.SET_THREADS]
    before = ask()
    try:
        tell(2)
        n = round(LEAST_PRODUCT ** (1 / 3)) * 4
        product(np.ones((n, n)), np.ones((n, n)))
        assert ask() == 2
    finally:
        tell(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_threads_of_its_own():
    script = """
import os, warnings
import numpy as np
from tinyplm.kernels import threads
from tinyplm.kernels.matmul import product
threads.available = lambda: 2
a = np.random.default_rng(0).standard_normal((300, 300))
right = product(a, a)
warnings.simplefilter("ignore")
child = os.fork()
assert (product(a, a) == right).all()
assert sum("tinyplm" in thread.name for thread in __import__("threading").enumerate()) <= 1
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "asked", "given"),
    [
        ("TINYPLM_THREADS", "3", 3),
        ("OMP_NUM_THREADS", "3", 3),
        ("TINYPLM_THREADS", "", None),
        ("TINYPLM_THREADS", "x", None),
        ("OMP_NUM_THREADS", "0", None),
    ],
)
def test_the_number_of_threads_can_be_asked_for(name, asked, given):
    script = "from tinyplm.kernels.threads import available; print(available())"
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_THREADS")}
    printed = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {name: asked},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert 1 <= int(printed) <= cores if given is None else int(printed) == given
