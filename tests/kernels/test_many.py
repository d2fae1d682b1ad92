"""Many arrays in one loop: wherever parts and arrays begin and end, it is as for each array alone."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyplm.kernels import threads
from tinyplm.kernels.adam import Updates, adamw_update, are_same
from tinyplm.kernels.many import row_of, sum_of_squares, table_of

DTYPES = st.sampled_from(["float32", "float64"])
SIZES = st.lists(st.integers(0, 50), min_size=1, max_size=8)
LARGE = [3, 0, 100_003, 1, 0, 40_000, 65_536, 0]
SHRINK, DECAY = 0.5, 0.9
NUMBERS = (0.9, 0.99, 0.1, 0.01, 1e-2, 1 / 0.3, 1e-8)
"""As adamw_update wants them, behind the decay."""


def drawn(sizes, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(n).astype(dtype) for n in sizes]


@given(SIZES, st.data())
def test_every_item_is_found_in_its_array(sizes, data):
    table = table_of(sizes, 1)
    owners = [row for row, n in enumerate(sizes) for _ in range(n)]
    assert table[-1, 0] == len(owners)
    for item, owner in enumerate(owners):
        assert row_of(table, item) == owner


@given(SIZES, DTYPES)
def test_squares_are_added_up_in_float64(sizes, dtype):
    arrays = drawn(sizes, dtype)
    exact = math.fsum(v * v for a in arrays for v in a.tolist())
    for squares in (sum_of_squares, sum_of_squares.definition):
        assert squares(*arrays) == pytest.approx(exact, rel=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cores", [1, 2, 3])
def test_squares_of_large_arrays_do_not_depend_on_who_adds_them(monkeypatch, dtype, cores):
    monkeypatch.setattr(threads, "available", lambda: cores)
    arrays = drawn(LARGE, dtype)
    exact = math.fsum(v * v for a in arrays for v in a.tolist())
    found = {sum_of_squares(*arrays) for _ in range(5)}
    assert len(found) == 1
    assert found.pop() == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 3, 100_005])
def test_what_is_not_finite_shows_in_the_sum(bad, place):
    arrays = drawn(LARGE, "float32")
    flat = np.concatenate(arrays)
    flat[place] = bad
    assert not math.isfinite(sum_of_squares(*np.split(flat, np.cumsum(LARGE)[:-1])))


def test_squares_beyond_float32_and_arrays_of_other_kinds_are_added_too():
    big = np.full(10, 1e30, np.float32)
    assert sum_of_squares(big) == pytest.approx(1e61, rel=1e-6)
    strided = np.arange(12.0, dtype=np.float32).reshape(3, 4)[:, ::2]
    assert sum_of_squares(strided, np.ones(3), np.ones(2, np.float16)) == 220 + 5


def updated(way, sizes, dtype, strided=False):
    p, g, m = (drawn(sizes, dtype, seed) for seed in (1, 2, 3))
    v = [np.abs(a) for a in drawn(sizes, dtype, 4)]
    if strided:
        g = [np.repeat(a, 2)[::2] for a in g]
    way(p, g, m, v, [i % 2 == 1 for i in range(len(sizes))])
    return [*p, *m, *v]


def together(p, g, m, v, decays):
    Updates(p, m, v, decays, [None] * len(p))(g, (DECAY, *NUMBERS), SHRINK)


def alone(p, g, m, v, decays):
    for *row, own in zip(p, g, m, v, decays, strict=True):
        adamw_update.definition(*row, SHRINK, DECAY if own else 1.0, *NUMBERS)


@given(SIZES, DTYPES, st.booleans())
def test_many_updates_at_once_are_those_of_each_alone(sizes, dtype, strided):
    found, right = updated(together, sizes, dtype, strided), updated(alone, sizes, dtype)
    for a, b in zip(found, right, strict=True):
        np.testing.assert_allclose(
            a, b, rtol=16 * np.finfo(dtype).eps, atol=1e-7 if dtype == "float32" else 1e-15
        )


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_updates_of_large_arrays_have_the_same_bits_every_time(monkeypatch, cores):
    once = updated(together, LARGE, "float32")
    monkeypatch.setattr(threads, "available", lambda: cores)
    again, right = updated(together, LARGE, "float32"), updated(alone, LARGE, "float32")
    for a, b, c in zip(once, again, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-7)
    assert [a.tobytes() for a in again] == [
        a.tobytes() for a in updated(together, LARGE, "float32")
    ]


def test_updates_are_of_their_parameters_only():
    p = drawn([2, 3], "float32")
    updates = Updates(p, p, p, [True] * 2, [None] * 2)
    assert are_same(list(p), updates.p)
    assert not are_same([p[0]], updates.p)
    assert not are_same([p[0], p[1].copy()], updates.p)
    assert not are_same([p[1], p[0]], updates.p)
