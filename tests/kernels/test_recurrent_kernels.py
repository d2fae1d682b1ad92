"""Gates of recurrent cells: padding, saturation, and what is not finite."""

import math

import numpy as np
import pytest
from accuracy import assert_near, assert_same_bits
from kernel_cases import KERNEL_CASES

from tinyplm.kernels import recurrent
from tinyplm.kernels.compiled import parallel
from tinyplm.kernels.registry import KERNELS

GATES = ("rnn_gates", "lstm_gates", "gru_gates")
NAMES = tuple(name + end for name in GATES for end in ("", "_pullback"))
HOW = pytest.mark.parametrize("how", ["numba", "reference"])
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


def drawn(name, dtype="float64", rows=6, real=None):
    """Arguments, with another mask if one is given; None for no mask."""
    arguments = list(KERNEL_CASES[name].arguments(rows, 9, dtype))
    at = next(i for i, a in enumerate(arguments) if a.dtype == bool)
    arguments[at] = real
    return arguments


def call(name, arguments, how="numba"):
    if how == "numba":
        pytest.importorskip("numba")
    with KERNELS[name].using(how):
        return KERNEL_CASES[name].call(KERNELS[name], *(arguments))


@HOW
@DTYPES
@pytest.mark.parametrize("name", NAMES)
def test_no_mask_is_a_mask_of_real_rows(name, dtype, how):
    with_mask = call(name, drawn(name, dtype, real=np.ones(6, bool)), how)
    without = call(name, drawn(name, dtype), how)
    for a, b in zip(with_mask, without, strict=True):
        assert_same_bits(a, b)


@HOW
@DTYPES
@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_see_one_another(name, dtype, how):
    real = np.array([1, 0, 1, 1, 0, 1], bool)
    together = call(name, drawn(name, dtype, real=real), how)
    for row in range(6):
        arguments = [
            a if a is None or a.shape == (9,) else a[row : row + 1]
            for a in drawn(name, dtype, real=real)
        ]
        for a, b in zip(call(name, arguments, how), together, strict=True):
            assert_near(a, b[row : row + 1], 1e-6 if dtype == "float32" else 1e-14)


@HOW
def test_padding_passes_the_state_and_the_gradient_and_leaves_no_gradient_in_gates(how):
    real = np.zeros(6, bool)
    a, h, c, _, h_next, c_next = drawn("lstm_gates")
    a[:] = np.nan
    _, h_new, c_new = call("lstm_gates", [a, h, c, real, h_next, c_next], how)
    assert_same_bits(h_new, h)
    assert_same_bits(c_new, c)
    gh, gc, *rest = drawn("lstm_gates_pullback")
    rest[-2], rest[-1] = real, rest[-1] + 7.0
    gh_new, gc_new, ga = call("lstm_gates_pullback", [gh, gc, *rest], how)
    assert_same_bits(gh_new, gh)
    assert_same_bits(gc_new, gc)
    assert not ga.any()


@DTYPES
@pytest.mark.parametrize("name", GATES)
def test_what_is_not_finite_comes_out_as_the_definition_has_it(name, dtype):
    arguments = drawn(name, dtype)
    arguments[0][0, :], arguments[0][1, ::2], arguments[0][2, ::3] = np.nan, np.inf, -np.inf
    arguments[0][3] = 1e4
    arguments[0][4] = -1e4
    with np.errstate(all="ignore"):
        right, found = call(name, arguments, "reference"), call(name, arguments, "numba")
    for a, b in zip(found, right, strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        assert_near(a[~np.isnan(b)], b[~np.isnan(b)], 1e-5 if dtype == "float32" else 1e-13)


def _sigmoid_part(team, part, start, stop, x, y, z):
    for i in range(start, stop):
        y[i] = recurrent.sigmoid(x[i])
    for i in range(start, stop):
        z[i] = recurrent.tanh(x[i])


@DTYPES
def test_compiled_sigmoid_and_tanh_are_right_to_two_units_of_one(dtype):
    pytest.importorskip("numba")
    run = parallel(_sigmoid_part, *recurrent.HELPERS)
    x = np.concatenate([np.linspace(-30, 30, 30_001), [-800, 800, 0.0, np.inf, -np.inf]])
    x = x.astype(dtype)
    y, z = np.empty_like(x), np.empty_like(x)
    run(x.size, x, y, z)
    allowed = 2 * np.finfo(dtype).eps
    s = np.array([1 / (1 + math.exp(-v)) if v > -700 else 0.0 for v in x.tolist()])
    t = np.array([math.tanh(v) for v in x.tolist()])
    assert np.abs(y - s).max() <= allowed
    assert np.abs(z - t).max() <= allowed
    assert not z[x == 0].any()
