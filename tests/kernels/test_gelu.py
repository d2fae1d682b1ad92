"""Compiled GELU and its slope against the error function of the C library, in both precisions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyplm.kernels import gelu

DTYPES = ["float32", "float64"]
KERNELS = [gelu.gelu_forward, gelu.gelu_tanh_forward]
PULLBACKS = [gelu.gelu_pullback, gelu.gelu_tanh_pullback]
names = {"ids": lambda kernel: kernel.name}


def everywhere(dtype):
    return np.concatenate(
        [np.linspace(-15, 15, 20_001), np.linspace(-45, 45, 999), np.geomspace(1e-30, 1, 500)]
    ).astype(dtype)


def density(v):
    return math.exp(-v * v / 2) / math.sqrt(2 * math.pi)


def below(v):
    return math.erfc(-v / math.sqrt(2)) / 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_and_its_slope_err_by_units_of_what_is_passed(dtype):
    """The distribution function errs by at most 4 half units of 1, and rounding of the product adds one."""
    x = everywhere(dtype)
    unit = np.finfo(dtype).eps
    right = np.array([v * below(v) for v in x.tolist()])
    slope = np.array([below(v) + v * density(v) for v in x.tolist()])
    forward = np.abs(gelu.gelu_forward(x) - right)
    assert (forward <= 2 * unit * np.abs(x) + np.finfo(dtype).tiny).all()
    back = np.abs(gelu.gelu_pullback(np.ones_like(x), x) - slope)
    assert (back <= 3 * unit).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_limits_of_the_forward_are_those_of_the_definition(kernel, dtype):
    big = np.finfo(dtype).max / 4
    x = np.array([np.inf, -np.inf, np.nan, big, -big, 100, -100, 0.0, 1e-40], dtype)
    with np.errstate(all="ignore"):
        found, defined = kernel(x), kernel.definition(x)
    np.testing.assert_allclose(found, defined, rtol=1e-6, atol=1e-35)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", PULLBACKS, **names)
def test_limits_of_the_slope_are_those_of_the_definition(kernel, dtype):
    x = np.array([np.nan, 1e18, -1e18, 100, -100, 0.0, 1e-40], dtype)
    with np.errstate(all="ignore"):
        found = kernel(np.full_like(x, 2), x)
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], [2, 0, 2, 0, 1, 1], rtol=0, atol=np.finfo(dtype).eps)


@given(
    st.sampled_from(list(zip(KERNELS, PULLBACKS, strict=True))),
    st.lists(st.integers(0, 40), max_size=3),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_any_shape_and_arrangement_gives_what_the_definition_gives(kernels, shape, dtype, turned):
    rng = np.random.default_rng(0)
    x, g = (rng.normal(0, 3, shape).astype(dtype) for _ in range(2))
    if turned:
        x, g = x.T, g.T
    for kernel, arrays in zip(kernels, ((x,), (g, x)), strict=True):
        found = kernel(*arrays)
        assert found.dtype == dtype
        np.testing.assert_allclose(
            found, kernel.definition(*arrays), rtol=0, atol=64 * np.finfo(dtype).eps
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS + PULLBACKS, **names)
def test_a_value_gives_the_same_bits_wherever_it_lies(kernel, dtype):
    x = np.random.default_rng(0).normal(0, 3, 50_007).astype(dtype)
    arrays = (x,) if kernel in KERNELS else (np.ones_like(x), x)
    whole, again = kernel(*arrays), kernel(*arrays)
    assert whole.tobytes() == again.tobytes()
    tail = kernel(*(a[-1001:].copy() for a in arrays))
    np.testing.assert_allclose(tail, whole[-1001:], rtol=4 * np.finfo(dtype).eps)
