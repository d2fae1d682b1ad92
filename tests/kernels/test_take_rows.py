"""Rows by number and rows added up by number, against loops over the ids."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyplm.kernels.take_rows import add_rows, copy_rows

DTYPES = ["float32", "float64"]
INTEGERS = st.sampled_from([np.int32, np.int64, np.uint8])


@given(
    st.sampled_from(DTYPES),
    INTEGERS,
    st.integers(1, 9),
    st.integers(0, 40),
    st.lists(st.integers(0, 40), max_size=2),
    st.booleans(),
)
def test_rows_are_copied_and_added_in_the_order_of_the_ids(dtype, integer, rows, n, shape, strided):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((rows, *shape)).astype(dtype)
    ids = rng.integers(0, rows, 2 * n)[::2].astype(integer)
    g = rng.standard_normal((n, *shape)).astype(dtype)
    if strided:
        table, g = (np.repeat(a, 2, axis=0)[::2] for a in (table, g))
    total = np.zeros_like(table)
    for place, row in enumerate(ids.tolist()):
        assert np.array_equal(copy_rows(table, ids)[place], table[row])
        total[row] += g[place]
    assert copy_rows(table, ids).shape == (n, *shape)
    found = add_rows(g, ids, rows)
    assert found.dtype == dtype
    assert found.shape == table.shape
    np.testing.assert_allclose(found, total, rtol=0, atol=n * 8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows_are_added_with_the_same_bits_every_time(dtype):
    rng = np.random.default_rng(0)
    g, ids = rng.standard_normal((700, 130)).astype(dtype), rng.zipf(1.3, 700) % 500
    first, again = add_rows(g, ids, 500), add_rows(g, ids, 500)
    assert first.tobytes() == again.tobytes()
    exact = np.zeros((500, 130), np.longdouble)
    np.add.at(exact, ids, g)
    np.testing.assert_allclose(first, exact, rtol=0, atol=700 * np.finfo(dtype).eps)
    assert not first[np.setdiff1d(np.arange(500), ids)].any()


def test_what_is_not_finite_stays_in_its_row():
    g = np.ones((3, 20), np.float32)
    g[1, 4] = np.nan
    found = add_rows(g, np.array([1, 0, 1]), 3)
    assert np.isnan(found).sum() == 1
    assert np.isnan(found[0, 4])
