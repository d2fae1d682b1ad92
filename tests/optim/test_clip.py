"""Clipping by the norm of all gradients together."""

import math

import numpy as np
import pytest

from tinyplm import Tensor
from tinyplm.optim import SGD, gradient_norm, shrink


def with_gradients(*gradients):
    tensors = []
    for g in gradients:
        t = Tensor(np.zeros(np.shape(g)), requires_grad=True)
        t.grad = None if g is None else np.array(g)
        tensors.append(t)
    return tensors


def test_the_norm_is_that_of_all_gradients_as_one_vector(rng):
    parts = [rng.standard_normal((3, 4)), rng.standard_normal(5), rng.standard_normal((2, 2, 2))]
    flat = [float(x) for part in parts for x in part.ravel()]
    expected = math.sqrt(sum(x * x for x in flat))
    assert gradient_norm(with_gradients(*parts)) == pytest.approx(expected, rel=1e-14)
    assert gradient_norm(with_gradients([3.0], [4.0])) == 5.0


def test_parameters_without_a_gradient_add_nothing():
    assert gradient_norm(with_gradients(None, [2.0], None)) == 2.0
    assert gradient_norm([]) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_has_a_norm_that_is_not(bad):
    assert not math.isfinite(gradient_norm(with_gradients([1.0], [bad])))


def test_the_factor_brings_a_long_gradient_to_the_limit_and_leaves_a_short_one():
    assert shrink(4.0, 1.0) == 1.0 / (4.0 + 1e-6)
    assert shrink(0.5, 1.0) == 1.0
    assert shrink(0.0, 1.0) == 1.0
    assert shrink(1e9, None) == 1.0


def test_a_clipped_update_has_the_length_of_the_limit_and_the_direction_of_the_gradient(rng):
    parts = [rng.standard_normal((3, 4)), rng.standard_normal((2, 5))]
    tensors = with_gradients(*parts)
    optimizer = SGD({str(i): t for i, t in enumerate(tensors)})
    norm = gradient_norm(tensors)
    optimizer.step(1.0, shrink=shrink(norm, 0.5))
    assert math.sqrt(sum(float((t.array**2).sum()) for t in tensors)) == pytest.approx(
        0.5, rel=1e-6
    )
    for t, g in zip(tensors, parts, strict=True):
        np.testing.assert_allclose(t.array, -0.5 * g / norm, rtol=1e-6)
