"""Work that is shared between threads is all done, once, and errors and settings come back."""

import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tinyplm.kernels import threads
from tinyplm.kernels.matmul import LEAST, product

PARTS = pytest.mark.parametrize("cores", [1, 2, 3, 5])


@pytest.fixture
def available(monkeypatch):
    """Let work be shared between this many threads."""

    def use(cores):
        monkeypatch.setattr(threads, "available", lambda: cores)

    return use


@PARTS
@pytest.mark.parametrize("total", [0, 1, 2, 7, 100])
def test_every_item_is_done_once(available, cores, total):
    available(cores)
    done = np.zeros(total, int)

    def work(start, stop):
        done[start:stop] += 1

    threads.share(total, work)
    assert (done == 1).all()


def test_parts_have_at_least_as_many_items_as_asked(available):
    available(4)
    sizes = []
    threads.share(100, lambda start, stop: sizes.append(stop - start), least=40)
    assert sorted(sizes) == [50, 50]


def test_parts_run_at_the_same_time(available):
    available(2)
    both = threading.Barrier(2, timeout=20)
    threads.share(2, lambda start, stop: both.wait())  # would time out one after the other


def test_a_part_that_no_thread_begins_is_done_by_the_caller(available, monkeypatch):
    available(2)
    asleep = SimpleNamespace(parts=SimpleNamespace(put=lambda part: None))
    monkeypatch.setattr(threads, "_workers", lambda count: [asleep] * count)
    test_every_item_is_done_once(available, 2, 10)


def test_the_parts_are_the_same_while_the_threads_are_busy(available):
    available(3)
    free, busy = [], []
    threads.share(10, lambda start, stop: free.append((start, stop)))
    with threads._in_use:
        threads.share(10, lambda start, stop: busy.append((start, stop)))
    assert sorted(free) == busy


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_a_part_is_raised_and_the_threads_work_on(available, failing):
    available(2)

    def work(start, stop):
        if start == failing:
            raise ValueError(f"part {start}")

    with pytest.raises(ValueError, match=f"part {failing}"):
        threads.share(2, work)
    test_every_item_is_done_once(available, 2, 10)


def test_after_an_interrupt_nothing_of_the_old_work_is_taken_for_new(available):
    available(2)
    late = np.zeros(2, int)

    def interrupted(start, stop):
        if start == 0:
            raise KeyboardInterrupt
        time.sleep(0.2)
        late[start:stop] += 1

    with pytest.raises(KeyboardInterrupt):
        threads.share(2, interrupted)
    done = np.zeros(2, int)

    def work(start, stop):
        time.sleep(0.3 * start)
        done[start:stop] += 1

    threads.share(2, work)
    assert (done == 1).all()


def test_work_within_work_is_done_where_it_is(available):
    available(2)
    done = np.zeros((4, 5), int)

    def inner(row):
        def work(start, stop):
            done[row, start:stop] += 1

        return work

    def outer(start, stop):
        for row in range(start, stop):
            threads.share(5, inner(row))

    threads.share(4, outer)
    assert (done == 1).all()


def test_several_callers_at_once_all_get_their_work_done(available):
    available(2)
    done = np.zeros((8, 1000), int)

    def caller(row):
        def work(start, stop):
            time.sleep(0.001)
            done[row, start:stop] += 1

        for _ in range(5):
            threads.share(1000, work)

    callers = [threading.Thread(target=caller, args=(row,)) for row in range(8)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert (done == 5).all()


@PARTS
@pytest.mark.parametrize("shape", [(300, 200, 400), (70, 900, 411), (3, 5, 7), (4000, 64, 33)])
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
    blas = threads._openblas()
    if blas is None:
        pytest.skip("NumPy's BLAS is not an OpenBLAS that can be asked")
    before = blas.threads()
    try:
        blas.set_threads(2)
        n = round(LEAST ** (1 / 3)) * 2
        product(np.ones((n, n)), np.ones((n, n)))
        assert blas.threads() == 2
    finally:
        blas.set_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_threads_of_its_own():
    script = """
import os, warnings
import numpy as np
from tinyplm.kernels import threads
threads.available = lambda: 2
def run():
    done = np.zeros(10, int)
    def work(i, j): done[i:j] += 1
    threads.share(10, work)
    assert (done == 1).all()
run()
warnings.simplefilter("ignore")
child = os.fork()
run()
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(("asked", "given"), [("3", 3), ("", None), ("x", None), ("0", None)])
def test_the_number_of_threads_can_be_asked_for(asked, given):
    script = "from tinyplm.kernels.threads import available; print(available())"
    environment = os.environ | {"TINYPLM_THREADS": asked}
    printed = subprocess.run(
        [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
    ).stdout
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert int(printed) == (given or cores)
