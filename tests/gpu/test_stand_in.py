"""The stand-in for CuPy keeps CuPy's rules: what mixes, what is refused, what waits, what a graph may hold."""

import cupy_names
import ml_dtypes
import numpy as np
import pytest

from tinyplm.kernels.registry import KERNELS

pytestmark = pytest.mark.device


@pytest.fixture
def xp(plain_card):
    return plain_card.cupy


def test_the_names_are_those_of_the_cupy_that_is_installed():
    cupy = pytest.importorskip("cupy")
    kept = cupy_names.kept()
    if cupy.__version__ != kept["version"]:
        pytest.skip(f"the file is of CuPy {kept['version']}, here is {cupy.__version__}")
    assert cupy_names.read() == kept


def test_arithmetic_is_numpys_and_stays_on_the_device(xp, rng):
    a, b = rng.standard_normal((2, 3, 4)).astype(np.float32)
    x, y = xp.asarray(a), xp.asarray(b)
    for found, expected in (
        (x + 2 * y - 1, a + 2 * b - 1),
        (np.exp(x) @ y.T, np.exp(a) @ b.T),
        (xp.where(x > 0, y, 0.0), np.where(a > 0, b, np.float32(0))),
        (np.concatenate([x, y], axis=1), np.concatenate([a, b], axis=1)),
        (np.float32(2) * x[0, 1], np.float32(2) * a[0, 1]),
        (x.sum(axis=0, keepdims=True), a.sum(axis=0, keepdims=True)),
        (x[xp.asarray([2, 0]), 1:], a[[2, 0], 1:]),
    ):
        assert type(found) is xp.ndarray
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found.get(), expected)
    x[1:] -= y[1:]
    np.testing.assert_array_equal(x.get(), np.concatenate([a[:1], a[1:] - b[1:]]))


def test_single_values_are_arrays_and_views(xp):
    x = xp.zeros((2, 3), np.float32)
    x[1, 2][...] = 5
    assert x[1, 2].shape == ()
    assert x.get()[1, 2] == 5
    assert x[1, 2].base is x


def test_what_cupy_refuses_is_refused(xp):
    x, host = xp.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    for wrong, error in (
        (lambda: np.asarray(x), TypeError),
        (lambda: x + host, TypeError),
        (lambda: host * x, TypeError),
        (lambda: x + np.array(1.0), TypeError),
        (lambda: xp.matmul(x, host.T), TypeError),
        (lambda: xp.concatenate([x, host]), TypeError),
        (lambda: x.max(axis=0, initial=0), TypeError),
        (lambda: xp.sum(x, where=x > 0), TypeError),
        (lambda: xp.lib.array_utils, AttributeError),
        (lambda: xp.zeros(3, object), ValueError),
        (lambda: xp.subtract.at(x, xp.asarray([1]), 1), TypeError),
        (lambda: x.__setitem__(0, host[0]), (ValueError, TypeError)),
        (lambda: range(xp.asarray(3)), TypeError),
        (lambda: {x}, TypeError),
    ):
        with pytest.raises(error):
            wrong()


def test_bfloat16_is_computed_in_float32_and_rounded_once(xp, rng):
    a = rng.standard_normal((300, 40)).astype(ml_dtypes.bfloat16)
    x = xp.asarray(a)
    wide = a.astype(np.float32)
    for found, expected in ((x.sum(axis=0), wide.sum(axis=0)), (x.T @ x, wide.T @ wide)):
        np.testing.assert_array_equal(found.get(), expected.astype(ml_dtypes.bfloat16))
    assert xp.where(x > 0, x, x).dtype == np.float32  # no loop for bfloat16 there
    with pytest.raises(TypeError, match="'E'"):
        x[None] @ x.T  # what has more axes is compiled, for the letter of a dtype
    assert (x * 2 + x).dtype == a.dtype
    assert (x * 2.0).dtype == np.float32  # as with NumPy: a fraction is no bfloat16


def test_the_host_waits_where_cupy_waits(plain_card):
    xp, x = plain_card.cupy, plain_card.cupy.arange(4)
    waiting = [
        lambda: x.get(), lambda: x[1].item(), lambda: bool(x[0]), lambda: float(x[0]), lambda: x[x > 1],
        lambda: xp.nonzero(x), lambda: xp.asnumpy(x), lambda: plain_card.cupy.cuda.Device().synchronize(),
        lambda: x.__setitem__(x > 1, 0), lambda: xp.unique(x),
    ]  # fmt: skip
    for wait in waiting:
        before = len(plain_card.reads)
        wait()
        assert len(plain_card.reads) > before
    with plain_card.without("reads", "uploads"):
        y = xp.where(x > 1, x, 0).sum() + xp.asarray(3)
        y[...] = 3
        x[xp.arange(2)] = 7
        xp.stack([x] * 8)
    for join in (xp.stack, xp.concatenate):
        with pytest.raises(AssertionError, match="test_stand_in"), plain_card.without():
            join([x] * 9)  # with a table of addresses
    with pytest.raises(AssertionError, match="test_stand_in"), plain_card.without():
        xp.asarray([1, 2])


def test_a_graph_computes_when_it_is_launched_and_on_the_same_memory(plain_card):
    xp = plain_card.cupy
    x, total = xp.ones(3, np.float32), xp.zeros((), np.float32)
    stream, pool = xp.cuda.Stream(non_blocking=True), xp.cuda.MemoryPool()
    with stream, xp.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        y = x * 2
        y[1:] += 1
        total += y.sum()
        z = xp.where(y > 2, y, 0).reshape(3, 1)[xp.arange(2)]
        graph = stream.end_capture()
    assert total.get() == 0
    assert np.isnan(y.get()).all()
    for value in (1, 5):
        x[...] = value
        graph.launch(stream)
        assert y.get().tolist() == [2 * value, 2 * value + 1, 2 * value + 1]
    assert total.get() == 8 + 32
    assert z.get().tolist() == [[10], [11]]


def test_a_capture_refuses_what_cupy_refuses(plain_card):
    xp = plain_card.cupy
    x = xp.ones((2, 2), np.float32)
    stream, pool = xp.cuda.Stream(non_blocking=True), xp.cuda.MemoryPool()
    with pytest.raises(RuntimeError, match="default"):
        xp.cuda.Stream.null.begin_capture()
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="default pool"):
            x + 1
        with xp.cuda.using_allocator(pool.malloc):
            for wrong in (
                lambda: x @ x, lambda: x.get(), lambda: bool(x[0, 0]), lambda: xp.asarray([1.0]), lambda: x[x > 0],
                lambda: xp.einsum("ij,jk", x, x), lambda: xp.sort(x), lambda: stream.synchronize(),
            ):  # fmt: skip
                with pytest.raises((RuntimeError, NotImplementedError)):
                    wrong()
        stream.end_capture()


def test_a_graph_that_outlives_its_memory_is_noticed(plain_card):
    xp = plain_card.cupy
    x = xp.ones(3)
    stream = xp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        x += 1
        graph = stream.end_capture()
    graph.launch()
    del x
    with pytest.raises(AssertionError, match="freed"):
        graph.launch()


def test_copies_of_pinned_memory_are_in_flight_until_somebody_waits(plain_card):
    import cupyx

    xp = plain_card.cupy
    given, found = cupyx.zeros_pinned(3, np.float32), cupyx.empty_pinned(3, np.float32)
    given[...] = 4
    with plain_card.without():
        x = xp.empty(3, np.float32)
        x.set(given)
        (x + 1).get(out=found, blocking=False)
        event = xp.cuda.get_current_stream().record()
        assert np.isnan(found).all()
    event.synchronize()
    assert found.tolist() == [5, 5, 5]
    given[...] = 6
    x.set(given)
    given[...] = 7
    with pytest.raises(AssertionError, match="in flight"):
        xp.cuda.get_current_stream().synchronize()
    plain_card.faults.clear()


def test_what_is_written_outside_of_an_array_is_noticed(plain_card):
    x = plain_card.cupy.zeros(3, np.float32)
    x._memory.room[x.data.ptr - x._memory.room.ctypes.data + 12] = 0
    del x
    with pytest.raises(AssertionError, match="around"):
        plain_card.check()
    plain_card.faults.clear()
    plain_card.pool.freed.clear()


def test_freed_memory_is_nan(plain_card):
    x = plain_card.cupy.ones(3, np.float32)
    behind = x._raw
    del x
    assert np.isnan(behind).all()


def test_freed_memory_that_is_written_to_is_noticed(plain_card):
    x = plain_card.cupy.ones(3, np.float32)
    behind = x._raw
    del x
    behind[1] = 0
    with pytest.raises(AssertionError, match="freed memory"):
        plain_card.check()
    plain_card.pool.freed.clear()


def test_pools_count_and_limit(xp):
    pool = xp.cuda.MemoryPool()
    pool.set_limit(size=1000)
    with xp.cuda.using_allocator(pool.malloc):
        x = xp.zeros(100, np.float64)
        assert pool.used_bytes() == 800
        with pytest.raises(MemoryError):
            xp.zeros(100, np.float64)
    del x
    assert pool.used_bytes() == 0


def test_kernels_of_tinyplm_run_on_its_arrays_and_in_its_graphs(card, rng):
    xp = card.cupy
    a = rng.standard_normal((3, 8)).astype(np.float32)
    x = xp.asarray(a)
    gelu = KERNELS["gelu_forward"]
    expected = gelu.definition(a)
    np.testing.assert_allclose(gelu(x).get(), expected, rtol=1e-6, atol=1e-7)
    assert card.launched == ["gelu_forward_float32"]
    stream, pool = xp.cuda.Stream(non_blocking=True), xp.cuda.MemoryPool()
    with stream, xp.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        y = gelu(x)
        graph = stream.end_capture()
    assert np.isnan(y.get()).all()
    x *= 2
    graph.launch(stream)
    np.testing.assert_allclose(y.get(), gelu.definition(2 * a), rtol=1e-6, atol=1e-7)


def test_a_kernel_has_the_shared_memory_that_it_was_allowed(plain_card):
    from tinyplm.kernels import cuda

    for _ in range(2):
        cuda.launch("gelu", "some_kernel", 1, 32, shared=60_000)
    assert plain_card.allowed == {("gelu", "some_kernel"): 60_000}
    with pytest.raises(AssertionError, match="49152 allowed"):
        cuda._function("gelu", "another", 0)((1,), (32,), (), shared_mem=60_000)
    with pytest.raises(AssertionError):
        cuda.launch("gelu", "some_kernel", 1, 32, shared=200_000)  # more than this card has


def test_another_card_is_told_by_what_it_says_of_itself(plain_card):
    from tinyplm.kernels import cuda

    assert cuda.card() == (80, 4, 163 * 1024)
    plain_card.capability, plain_card.processors, plain_card.shared = 90, 132, 227 * 1024
    cuda._card.cache_clear()
    assert cuda.card() == (90, 132, 227 * 1024)
    assert cuda.architecture() == "sm_90a"


def test_what_the_pool_keeps_unused_is_free_for_this_process(plain_card):
    from tinyplm.backend import free_memory

    plain_card.free = (10**9, 80 * 10**9)
    before = free_memory()
    x = plain_card.cupy.zeros(10**6, np.uint8)
    held = free_memory()
    del x
    assert free_memory() == held + 10**6 >= before
