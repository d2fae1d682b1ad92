"""Kernels that work row by row: norms, softmax, cross-entropy."""

import numpy as np
import pytest
from accuracy import as_accurate_as, assert_near, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import KERNEL_CASES

from tinyplm.kernels import cross_entropy
from tinyplm.kernels.registry import KERNELS
from tinyplm.kernels.softmax import softmax_forward, softmax_pullback

NORMS = ("layer_norm_forward", "layer_norm_pullback", "rms_norm_forward", "rms_norm_pullback")
ROWS = (
    *NORMS,
    *("softmax_forward", "softmax_pullback", "score_softmax", "score_softmax_pullback"),
    *("cross_entropy_forward", "cross_entropy_pullback", "cross_entropy_in_place"),
)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
INF, NAN = np.inf, np.nan


def compiled(name):
    pytest.importorskip("numba")
    return next(v for v in KERNELS[name].variants if v.name == "numba")


@DTYPES
@pytest.mark.parametrize("name", ROWS)
@settings(max_examples=10)
@given(data=st.data())
def test_a_compiled_kernel_is_as_accurate_as_the_definition_at_any_size(name, dtype, data):
    """The largest errors of four tries are compared, as one try may be right by luck; rows of 1 or 2 always are."""
    R, C = data.draw(st.integers(0, 70)), data.draw(st.integers(3, 70))
    alone = name in NORMS and data.draw(st.booleans())  # nothing is added
    case, variant = KERNEL_CASES[name], compiled(name)
    wider = np.longdouble if dtype == "float64" else np.float64
    errors, defined, largest = 0.0, 0.0, 0.0
    for seed in range(4):
        drawn = case.arguments(R, C, dtype, seed=seed)
        drawn = (drawn[0], None, *drawn[2:]) if alone else drawn
        assert variant.when(*drawn)
        wide = (a.astype(wider) if _is_float(a) else a for a in drawn)
        exact, plain = (case.call(KERNELS[name].definition, *a) for a in (wide, drawn))
        found = case.call(variant.function, *drawn)
        assert [(f.shape, f.dtype) for f in found] == [(p.shape, p.dtype) for p in plain]
        largest = np.maximum(largest, [np.abs(e).max(initial=0) for e in exact])
        defined = np.maximum(defined, [_error(p, e) for p, e in zip(plain, exact, strict=True)])
        errors = np.maximum(errors, [_error(f, e) for f, e in zip(found, exact, strict=True)])
    assert (errors <= 2 * defined + 2 * np.finfo(dtype).eps * largest).all(), (errors, defined)


def _error(found, exact):
    return np.abs(found - exact).max(initial=0)


def _is_float(a):
    return isinstance(a, np.ndarray) and a.dtype.kind == "f"


@pytest.mark.parametrize("name", ROWS)
def test_arrays_with_gaps_or_of_two_precisions_are_left_to_the_definition(name):
    case, variant = KERNEL_CASES[name], compiled(name)
    x, *rest = case.arguments(6, 8, "float32")
    wide = np.repeat(x, 2, axis=-1)[..., ::2]
    assert variant.when(x, *rest)
    assert not variant.when(wide, *rest)
    if _is_float(rest[0]):
        assert not variant.when(x.astype("float64"), *rest)
    for a, b in zip(
        case.call(KERNELS[name], wide, *rest), case.call(KERNELS[name], x, *rest), strict=True
    ):
        assert_near(a, b, 1e-5)


@DTYPES
@pytest.mark.parametrize("name", NORMS)
def test_many_rows_give_the_same_bits_again(name, dtype):
    case = KERNEL_CASES[name]
    arguments = case.arguments(1001, 130, dtype)
    first, again = (case.call(KERNELS[name], *arguments) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert_same_bits(a, b)


WILD = np.array(
    [
        [INF, 1, 2, -INF, 0],
        [NAN, 1, 2, 3, 0],
        [-INF] * 5,
        [NAN] * 5,
        [-INF, NAN, -INF, -INF, -INF],
        [60, -60, 0, 1, 2],
        [-INF, 1, -INF, 2, -300],
        [1, 2, 3, 4, 5],
    ]
)
WILD = np.concatenate([WILD, np.tile(WILD, 8)], axis=1)  # beyond one vector


@DTYPES
@pytest.mark.parametrize("name", ROWS)
def test_what_is_not_finite_comes_out_as_the_definition_has_it(name, dtype):
    """A row of NaN counts as one: where in the row it shows may differ."""
    R, C = WILD.shape
    case = KERNEL_CASES[name]
    arguments = list(case.arguments(R, C, dtype))
    at = 1 if name == "cross_entropy_pullback" else 0
    arguments[at] = np.broadcast_to(WILD.astype(dtype), arguments[at].shape).copy()
    if name == "score_softmax":
        arguments[2] = C  # nobody is hidden
    with np.errstate(all="ignore"):
        right = case.call(KERNELS[name].definition, *arguments)
        found = case.call(compiled(name).function, *arguments)
    results = list(zip(found, right, strict=True))
    if name == "cross_entropy_forward":
        del results[1]  # without any finite logit the sum's logarithm is nothing; the loss says so
    for a, b in results:
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        np.testing.assert_array_equal(np.isinf(a), np.isinf(b))
        usual = np.isfinite(b)
        assert_near(a[usual], b[usual], 1e-5)


@DTYPES
@pytest.mark.parametrize("shape", [(4, 3, 20), (5, 0), (0, 5), (7,), (2, 1)])
def test_softmax_is_the_definition_along_any_axis(rng, shape, dtype):
    x, g = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    for axis in range(-len(shape), len(shape)):
        y = softmax_forward(x, axis)
        assert_near(y, softmax_forward.definition(x, axis), 1e-6)
        assert_near(softmax_pullback(g, y, axis), softmax_pullback.definition(g, y, axis), 1e-6)


@DTYPES
@pytest.mark.parametrize("V", [1, 2047, 2048, 2049, 5000])
def test_rows_of_several_blocks_whose_largest_values_come_late_or_early(rng, V, dtype):
    kernel = cross_entropy.cross_entropy_in_place
    x = 3 * rng.standard_normal((4, V)).astype(dtype)
    x[0] += np.linspace(0, 200, V, dtype=dtype)
    x[1] -= np.linspace(0, 200, V, dtype=dtype)
    x[2, : V // 2] = -np.inf
    labels, share = np.array([V - 1, 0, V - 1, V // 2]), np.array([1, 0.5, 2, -1], dtype)
    case = KERNEL_CASES["cross_entropy_in_place"]
    as_accurate_as(
        lambda *a: case.call(kernel.definition, *a),
        lambda *a: case.call(kernel, *a),
        *(x, np.zeros(4, dtype), labels, share, 0.0, True),
    )


@pytest.mark.parametrize("how", ["numba", "reference"])
def test_tokens_that_do_not_count_may_be_anything(rng, how):
    """Not even where x is infinite or NaN does a share of 0 leave a trace."""
    x, w, b = rng.standard_normal((6, 3)), rng.standard_normal((5, 3)), rng.standard_normal(5)
    labels, share = rng.integers(0, 5, 6), np.array([1, 0, 0.5, 0, 0, 2.0])
    wild = x.copy()
    wild[1], wild[3, 0], wild[4, 1] = NAN, INF, -INF
    with KERNELS["cross_entropy_in_place"].using(how):
        total, right = KERNELS["linear_cross_entropy"](x, w, b, labels, share, 0.1, True)
        again, found = KERNELS["linear_cross_entropy"](wild, w, b, labels, share, 0.1, True)
        alone, nothing = KERNELS["linear_cross_entropy"](wild, w, b, labels, share, 0.1, False)
    assert total == again == alone
    assert nothing is None
    for a, e in zip(found, right, strict=True):
        assert_same_bits(a, e)
    assert not found[0][[1, 3, 4]].any()
