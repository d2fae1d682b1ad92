"""Parameters in half precision learn as float32 ones do: what is updated is float32, and they are its rounding."""

import ml_dtypes
import numpy as np
import pytest

from tinyplm import Tensor
from tinyplm.optim import SGD, Adafactor, AdamW, masters

SHAPES = {"matrix": (30, 40), "gain": (40,), "cube": (2, 3, 4), "scalar": ()}
RULES = pytest.mark.parametrize(
    "make",
    [AdamW, SGD, lambda p: SGD(p, momentum=0.9, weight_decay=0.1), Adafactor],
    ids=["AdamW", "SGD", "momentum", "Adafactor"],
)
HALVES = pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"]
)


def drawn(dtype):
    rng = np.random.default_rng(0)
    return {
        name: Tensor(np.asarray(rng.standard_normal(shape)).astype(dtype), requires_grad=True)
        for name, shape in SHAPES.items()
    }


def widened(parameters):
    return {
        n: Tensor(p.array.astype(np.float32), requires_grad=True) for n, p in parameters.items()
    }


def gradients(steps, dtype):
    rng = np.random.default_rng(1)
    return [
        {n: np.asarray(rng.standard_normal(shape)).astype(dtype) for n, shape in SHAPES.items()}
        for _ in range(steps)
    ]


def run(optimizer, given, dtype):
    for step in given:
        for name, p in optimizer.parameters.items():
            p.grad = np.asarray(step[name].astype(dtype))
        optimizer.step(1e-3, shrink=0.5)


def assert_same_bits(a, b):
    assert a.dtype == b.dtype
    assert a.tobytes() == b.tobytes()


@HALVES
@RULES
def test_masters_follow_float32_bit_by_bit_and_parameters_are_their_rounding(make, dtype):
    halves = drawn(dtype)
    singles = widened(halves)
    narrow, wide = make(halves), make(singles)
    given = gradients(5, dtype)
    run(narrow, given[:4], dtype)
    run(narrow, given[4:], np.float32)  # a gradient may be float32 too
    run(wide, given, np.float32)
    for name, p in singles.items():
        assert_same_bits(narrow.values()[name], p.array)
        assert_same_bits(halves[name].array, p.array.astype(dtype))
    moments = {n: a for n, a in narrow.arrays().items() if not n.startswith("master.")}
    assert moments.keys() == wide.arrays().keys()
    for name, array in moments.items():
        assert_same_bits(array, wide.arrays()[name])


@HALVES
@RULES
def test_going_on_from_what_was_saved_gives_the_same_bits(make, dtype):
    halves, given = drawn(dtype), gradients(6, dtype)
    whole = make(halves)
    run(whole, given[:3], dtype)
    saved = {n: a.copy() for n, a in whole.arrays().items()}, whole.state()
    run(whole, given[3:], dtype)
    others = {n: Tensor(np.zeros_like(p.array), requires_grad=True) for n, p in halves.items()}
    again = make(others)
    again.restore(*saved)
    for name, master in masters(saved[0]).items():
        assert_same_bits(others[name].array, master.astype(dtype))
    run(again, given[3:], dtype)
    for name, p in halves.items():
        assert_same_bits(others[name].array, p.array)
    assert again.arrays().keys() == whole.arrays().keys() >= {f"master.{n}" for n in SHAPES}
    for name, array in whole.arrays().items():
        assert_same_bits(again.arrays()[name], array)


def test_steps_too_small_for_a_half_add_up():
    p = Tensor(np.ones(2, ml_dtypes.bfloat16), requires_grad=True)
    optimizer = SGD({"p": p})
    for _ in range(64):
        p.grad = np.ones(2, ml_dtypes.bfloat16)
        optimizer.step(2.0**-12)
    assert p.array.astype(np.float32).tolist() == [1 - 2.0**-6] * 2


def test_a_parameter_that_is_given_other_values_goes_on_from_them():
    p = Tensor(np.ones(2, np.float16), requires_grad=True)
    optimizer = SGD({"p": p})
    for value in (1.0, 3.0):
        p.replace(np.full(2, value, np.float16))
        p.grad = np.ones(2, np.float16)
        optimizer.step(0.25)
        assert p.array.tolist() == [value - 0.25] * 2


def test_full_precision_has_no_masters():
    parameters = widened(drawn(np.float16))
    optimizer = AdamW(parameters)
    run(optimizer, gradients(1, np.float32), np.float32)
    assert masters(optimizer.arrays()) == {}
    for name, p in parameters.items():
        assert np.shares_memory(optimizer.values()[name], p.array)
