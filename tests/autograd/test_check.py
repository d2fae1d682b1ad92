"""The gradient check itself: what it must find, what it must not, and how small an error it sees."""

import numpy as np
import pytest

from tinyplm import Tensor, check_grad, ops
from tinyplm.autograd import GradientError, KinkError, op
from tinyplm.autograd.ops.broadcasting import like, unbroadcast
from tinyplm.errors import DtypeError


def grid(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def cube(slope):
    """An op that cubes, with a pullback that is given."""

    @op
    def cubed(x):
        return x**3, lambda g: slope(g, x)

    return cubed


@pytest.fixture(autouse=True)
def _no_ops_left_behind():
    from tinyplm.autograd import OPS

    before = set(OPS)
    yield
    for name in set(OPS) - before:
        del OPS[name]


# What it must find.


@pytest.mark.parametrize(
    "slope",
    [
        lambda g, x: 2 * g * 3 * x**2,
        lambda g, x: -g * 3 * x**2,
        lambda g, x: g * x**2,
        lambda g, x: g * 3 * x,
        lambda g, x: 0 * g,
        lambda g, x: g * 3 * x**2 + 1e-5,
        lambda g, x: g * 3 * x**2 * (1 + 1e-5),
        lambda g, x: 3 * x**2,
        lambda g, x: g * np.nan,
        lambda g, x: (g * 3 * x**2)[::-1],
    ],
    ids=[
        *("factor", "sign", "third", "power", "zero", "offset", "scale", "no_g", "nan", "reversed"),
    ],
)
def test_wrong_slopes_are_found(slope):
    with pytest.raises(GradientError, match="relative error"):
        check_grad(cube(slope), grid(4))


def test_the_right_slope_passes():
    found = check_grad(cube(lambda g, x: g * 3 * x**2), grid(4))
    assert found.error < 1e-9
    assert found.derivatives == 4


def test_the_message_says_where_and_how_much():
    def slope(g, x):
        gx = g * 3 * x**2
        gx[1, 2] *= 1.5
        return gx

    with pytest.raises(
        GradientError, match=r"at \[1, 2\] of input 0, of shape \(2, 3\): .*e-01, allowed 1e-06"
    ):
        check_grad(cube(slope), np.ones((2, 3)))


def test_a_transposed_gradient_is_found():
    @op
    def product(a, b):
        return a @ b, lambda g: ((g.T @ b), a.T @ g)

    with pytest.raises(GradientError):
        check_grad(product, grid(3, 3), grid(3, 3, seed=1))


def test_a_missing_sum_over_a_broadcast_is_found():
    """The gradient of the first place alone, in the right shape."""

    @op
    def plus(a, b):
        like_b = like(b)
        return a + b, lambda g: (g, g[:1].reshape(like_b[0]))

    with pytest.raises(GradientError):
        check_grad(plus, grid(3, 2), grid(2))


def test_a_mean_in_place_of_a_sum_is_found():
    @op
    def plus(a, b):
        like_b = like(b)
        return a + b, lambda g: (g, unbroadcast(g, like_b) / len(a))

    with pytest.raises(GradientError):
        check_grad(plus, grid(3, 2), grid(2))


@pytest.mark.parametrize("made", [lambda g: g[None], lambda g: g.sum(), lambda g: g[:1]])
def test_a_gradient_of_another_shape_is_found(made):
    with pytest.raises(GradientError, match=r"gradient of a float64 \(3,\) came as float64"):
        check_grad(cube(lambda g, x: made(g * 3 * x**2)), grid(3))


def test_an_input_without_its_gradient_is_found():
    @op
    def times(a, b):
        return a * b, lambda g: (g * b, None)

    with pytest.raises(GradientError, match="of input 1"):
        check_grad(times, grid(3), grid(3, seed=1))


def test_a_forgotten_second_result_is_found():
    @op
    def two(x):
        return (x * 2, x * 3), lambda gs: gs[0] * 2

    with pytest.raises(GradientError):
        check_grad(two, grid(3))


def test_a_second_use_that_is_forgotten_is_found():
    """As when a gradient replaces another in place of being added."""
    x = grid(3)
    with pytest.raises(GradientError):
        check_grad(lambda t: t * t.detach(), x)


@pytest.mark.parametrize(("size", "off"), [(100, 1e-4), (10_000, 1e-3), (250_000, 1e-2)])
def test_one_wrong_value_in_a_large_array_is_found(size, off):
    """Along random directions, one value among n off by a part r shows if r is well above 1e-6 sqrt(n)."""

    def slope(g, x):
        gx = g * 3 * x**2
        gx.reshape(-1)[size // 3] *= 1 + off
        return gx

    with pytest.raises(GradientError, match="random direction"):
        check_grad(cube(slope), np.ones(size))


def test_large_arrays_with_right_gradients_pass():
    found = check_grad(ops.tanh, grid(100_000))
    assert found.error < 1e-6
    assert found.derivatives == 4


def test_a_wrong_value_is_found_among_few_however_small_the_others():
    def slope(g, x):
        gx = g * 3 * x**2
        gx[0] *= 1 + 1e-4
        return gx

    with pytest.raises(GradientError, match=r"at \[0\]"):
        check_grad(cube(slope), np.array([0.1, 10.0, 10.0]))


def test_a_wrong_parameter_is_found_and_a_right_one_passes():
    w = Tensor(grid(3, 2), requires_grad=True)
    x = grid(4, 3)
    assert check_grad(lambda t: ops.linear(t, w), x, wrt=[w]).derivatives == 18

    @op
    def wrong(x, weight):
        return x @ weight, lambda g: (g @ weight.T, 2 * x.T @ g)

    with pytest.raises(GradientError, match=r"of input 1, of shape \(3, 2\)"):
        check_grad(lambda t: wrong(t, w), x, wrt=[w])


# Kinks.


def two_sided(x):
    return ops.where(x.array < 0, x * 2.0, x * -1.0)


@pytest.mark.parametrize(
    ("function", "at"),
    [
        (ops.abs, [0.0]),
        (ops.abs, [1.0, 0.0, -2.0]),
        (ops.abs, [1e-6]),
        (ops.relu, [0.0]),
        (ops.relu, [-1e-5]),
        (lambda x: x.max(), [1.0, 1.0]),
        (lambda x: x.max(), [1.0, 1.0 + 1e-6, 0.0]),
        (lambda x: ops.maximum(x, 1.0), [1.0]),
        (lambda x: x.clip(low=0.5), [0.5]),
        (lambda x: ops.abs(x).sum() + (x * x).sum() * 100.0, [0.0, 1.0]),
        (two_sided, [0.0]),
        (lambda x: x.sqrt(), [0.0]),
        (lambda x: x.log(), [0.0]),
        (lambda x: 1.0 / x, [0.0]),
    ],
)
def test_kinks_and_poles_are_refused(function, at):
    with pytest.raises(KinkError):
        check_grad(function, np.array(at))


def test_a_kink_is_judged_by_values_alone():
    """A pullback cannot talk its way out: a wrong gradient at a smooth point is no kink."""
    with pytest.raises(GradientError):
        check_grad(cube(lambda g, x: np.sign(x - 1) * g), np.array([1.0]))


@pytest.mark.parametrize(
    ("function", "at"),
    [
        (lambda x: (x * 30.0).exp(), [0.5, -0.5]),
        (lambda x: (x * 100.0).tanh(), [0.001, 0.02]),
        (lambda x: (x * 1000.0).sigmoid(), [0.001, -0.002]),
        (lambda x: x.log(), [1e-3, 1e-2]),
        (lambda x: 1.0 / x, [1e-2, -5e-3]),
        (lambda x: x.sqrt(), [2e-3]),
        (lambda x: x**9, [3.0, -2.0]),
        (lambda x: x * x, [0.0, 1e-9]),
        (lambda x: x**4, [0.0]),
        (lambda x: x * 1e6, [0.0, 1.0]),
        (lambda x: x * 1e-6, [0.0, 1.0]),
        (lambda x: x * x, [1e5, -1e4]),
        (lambda x: ops.abs(x), [1e-2, -1e-2]),
        (lambda x: (x + 1e8) * 1.0, [1.0]),
        (lambda x: ops.softmax(x * 50.0), [0.0, 0.01, -0.01]),
    ],
)
def test_steep_and_flat_but_smooth_functions_pass(function, at):
    check_grad(function, np.array(at))


# What it takes.


def test_several_inputs_and_outputs():
    def both(a, b):
        return a @ b, (a * 2.0).sum(), ops.exp(b)

    assert check_grad(both, grid(2, 3), grid(3, 4, seed=1)).derivatives == 18


def test_integers_and_booleans_pass_unchecked():
    ids, mask = np.array([0, 2]), np.array([True, False])
    found = check_grad(
        lambda table, ids, mask: ops.masked_fill(
            ops.take_rows(table, ids), mask[:, None], value=0.0
        ),
        *(grid(3, 2), ids, mask),
    )
    assert found.derivatives == 6


def test_numbers_and_float32_become_float64():
    assert check_grad(lambda a, b: a * b, 2.0, grid(3).astype(np.float32)).derivatives == 4


def test_no_values_are_no_derivatives():
    found = check_grad(ops.exp, np.zeros((0, 3)))
    assert (found.error, found.derivatives) == (0.0, 0)


def test_an_input_that_is_not_used_has_the_gradient_zero():
    assert check_grad(lambda a, b: a * 2.0, grid(2), grid(2)).error < 1e-9


def test_inputs_and_parameters_are_left_as_they_were():
    x, w = grid(3), Tensor(grid(3), requires_grad=True)
    w.grad = np.array([1.0, 2.0, 3.0])
    x_before, w_before = x.copy(), w.numpy()
    check_grad(lambda t: t * w, x, wrt=[w])
    assert (x == x_before).all()
    assert (w.array == w_before).all()
    assert w.grad.tolist() == [1.0, 2.0, 3.0]


def test_parameters_are_restored_after_a_failure():
    w = Tensor(np.array([0.0, 1.0]), requires_grad=True)
    with pytest.raises(KinkError):
        check_grad(lambda: ops.abs(w), wrt=[w])
    assert w.array.tolist() == [0.0, 1.0]


def test_parameters_must_be_float64():
    with pytest.raises(DtypeError, match="float32 with requires_grad=True"):
        check_grad(lambda: 1.0, wrt=[Tensor([1.0], dtype="float32", requires_grad=True)])


def test_a_function_that_draws_anew_is_told_apart_from_a_wrong_gradient():
    rng = np.random.default_rng(0)
    with pytest.raises(GradientError, match="make its generator inside"):
        check_grad(lambda x: ops.dropout(x, rate=0.5, rng=rng), np.ones(20))


def test_a_function_that_is_not_finite_is_refused():
    with pytest.raises(KinkError, match="nan"):
        check_grad(ops.log, np.array([-1.0]))


def test_the_tolerance_is_what_is_compared_with():
    off_by_1e_4 = cube(lambda g, x: g * 3 * x**2 * (1 + 1e-4))
    assert 0.9e-4 < check_grad(off_by_1e_4, grid(3), tolerance=1e-3).error < 1.1e-4
    with pytest.raises(GradientError):
        check_grad(off_by_1e_4, grid(3), tolerance=1e-5)


def test_cancellation_does_not_hide_an_error():
    """The weighted values add up to almost nothing, but each is large."""
    x = np.array([1.0, -1.0, 1.0, -1.0])
    check_grad(lambda t: t * 1e3, x)
    with pytest.raises(GradientError):
        check_grad(cube(lambda g, x: g * 3 * x**2 * (1 + 3e-6)), x)
