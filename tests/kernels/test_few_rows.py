"""A linear map of a few rows in every layout and type of weights, and attention of a few positions to a cache."""

import numpy as np
import pytest
from accuracy import assert_near, wide
from hypothesis import given
from hypothesis import strategies as st

from tinyplm.kernels.few_rows import FEW, attend_few, few_rows, widened_array
from tinyplm.kernels.precision import to_bfloat16
from tinyplm.kernels.quantize import dequantize_rows, quantize_rows

SIZES = st.one_of(st.integers(1, 40), st.sampled_from([64, 96, 257]))


def columns(rng, kind, D, F):
    """Weights (D, F) of this kind, that lie in memory by columns."""
    made = rng.standard_normal((F, D))
    if kind == "int8":
        return rng.integers(-127, 128, (F, D)).astype(np.int8).T
    if kind == "bfloat16":
        return to_bfloat16(made.astype(np.float32)).T
    return made.astype(kind).T


def surroundings(rng, N, D, F, dtype):
    """Gain, shift, scale, bias and residual."""
    shapes = (D, D, F, F, (N, F))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def arguments(seed, N, D, F, kind, full, by_rows=False):
    rng = np.random.default_rng(seed)
    dtype = np.float64 if kind == "float64" else np.float32
    x, weight = rng.standard_normal((N, D)).astype(dtype), columns(rng, kind, D, F)
    if by_rows:
        weight = np.ascontiguousarray(weight)
    gain, shift, scale, bias, residual = surroundings(rng, N, D, F, dtype)
    if not full:
        return x, None, None, 0.0, weight, None, None, False, None
    return x, gain, shift, 1e-5, weight, scale, bias, True, residual


def exactly(x, gain, shift, eps, weight, scale, bias, gelu, residual):
    """The definition in float64, with weights that are what they stand for."""
    weight = widened_array(weight, np.float32) if weight.dtype.kind in "iu" else weight
    rest = [None if a is None else wide(a) for a in (scale, bias)]
    norm = [None if a is None else wide(a) for a in (gain, shift)]
    last = None if residual is None else wide(residual)
    return few_rows.definition(wide(x), *norm, eps, wide(weight), *rest, gelu, last)


@given(
    seed=st.integers(0, 99),
    N=st.integers(1, FEW),
    D=SIZES,
    F=SIZES,
    layout=st.sampled_from(
        [(k, False) for k in ("float32", "float64", "bfloat16", "int8")]
        + [("float32", True), ("float64", True)]
    ),
    full=st.booleans(),
)
def test_any_layout_errs_at_most_twice_as_much_as_the_definition(seed, N, D, F, layout, full):
    given_ = arguments(seed, N, D, F, layout[0], full, layout[1])
    exact, plain, found = exactly(*given_), few_rows.definition(*given_), few_rows(*given_)
    unit = np.finfo(plain.dtype).eps
    assert found.dtype == plain.dtype
    allowed = 2 * np.abs(plain - exact).max() + 2 * unit * np.abs(exact).max()
    if layout[0] == "float64":  # no better answer is at hand
        allowed = 64 * unit * np.abs(exact).max()
    assert np.abs(found - exact).max() <= allowed
    assert few_rows(*given_).tobytes() == found.tobytes()


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
@pytest.mark.parametrize("rows", [FEW + 1, 33, 130])
def test_many_rows_of_packed_weights_are_as_accurate(kind, rows):
    given_ = arguments(0, rows, 70, 301, kind, True)
    exact, plain, found = exactly(*given_), few_rows.definition(*given_), few_rows(*given_)
    allowed = 2 * np.abs(plain - exact).max() + 2.4e-7 * np.abs(exact).max()
    assert np.abs(found - exact).max() <= allowed


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_sizes_without_values(shape, kind):
    given_ = arguments(0, *shape, kind, False)
    np.testing.assert_allclose(few_rows(*given_), few_rows.definition(*given_), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("by_rows", [True, False])
def test_what_is_not_finite_stays_where_the_definition_has_it(bad, by_rows):
    given_ = list(arguments(1, 2, 30, 40, "float32", False, by_rows))
    given_[0][1, 7] = bad
    with np.errstate(invalid="ignore"):
        expected = few_rows.definition(*given_)
    found = few_rows(*given_)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))


def test_arrays_with_gaps_are_left_to_the_definition():
    x, *rest = arguments(0, 2, 8, 5, "float32", True)
    gaps = np.repeat(x, 2, axis=1)[:, ::2]
    assert not any(v.when(gaps, *rest) for v in few_rows.variants)
    assert_near(few_rows(gaps, *rest), few_rows(x, *rest), 1e-5)


@given(
    seed=st.integers(0, 99),
    B=st.integers(1, 3),
    T=st.integers(1, 3),
    H=st.integers(1, 3),
    K=st.integers(1, 20),
    start=st.integers(0, 40),
    padded=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_attention_to_a_cache_is_the_definition_and_fills_it(
    seed, B, T, H, K, start, padded, dtype
):
    rng = np.random.default_rng(seed)
    qkv = rng.standard_normal((B * T, 3 * H * K)).astype(dtype)
    keys, values = rng.standard_normal((2, B, H, start + T + 2, K)).astype(dtype)
    real = rng.uniform(size=(B, start + T)) < 0.5 if padded else None
    made = []
    for function in (attend_few, attend_few.definition):
        k, v, y = keys.copy(), values.copy(), np.full((B * T, H * K), np.nan, dtype)
        function(qkv, k, v, start, real, 0.4, y)
        made.append((k, v, y))
    for found, expected in zip(*made, strict=True):
        assert_near(found, expected, 64 * np.finfo(dtype).eps)
    if real is not None:
        lost = [b * T + t for b in range(B) for t in range(T) if not real[b, : start + t + 1].any()]
        assert not made[0][2][lost].any()


@given(
    seed=st.integers(0, 99),
    F=st.integers(1, 20),
    D=SIZES,
    size=st.sampled_from([1e-44, 1e-20, 1.0, 1e30]),
)
def test_an_int8_weight_is_off_by_at_most_half_a_step(seed, F, D, size):
    weight = (np.random.default_rng(seed).standard_normal((F, D)) * size).astype(np.float32)
    weight[0] = 0
    values, scale = quantize_rows(weight)
    assert values.dtype == np.int8
    assert values.min() >= -127
    error = np.abs(wide(values) * wide(scale)[:, None] - wide(weight))
    # The quotient is rounded before it is rounded to a whole number: 127 half units in the last place.
    assert (error <= wide(scale)[:, None] * (0.5 + 127 * 2.0**-23)).all()
    np.testing.assert_array_equal(dequantize_rows(values, scale), values * scale[:, None])


def test_a_bfloat16_weight_is_off_by_at_most_one_part_in_256():
    weight = np.random.default_rng(0).standard_normal((30, 40)).astype(np.float32)
    back = dequantize_rows(to_bfloat16(weight), None)
    assert (np.abs(wide(back) - weight) <= 2.0**-8 * np.abs(weight)).all()
