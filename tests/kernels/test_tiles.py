"""Kernels that work in pieces give the same when the pieces are small."""

import numpy as np
import pytest
from accuracy import assert_near

from tinyplm.autograd import OPS
from tinyplm.autograd.cases import CASES, NumpyDraw
from tinyplm.autograd.gradcheck import check_gradient, check_value
from tinyplm.kernels import attention, linear_cross_entropy

DRAWS = 30


def drawn(name, seed):
    draw = NumpyDraw(np.random.default_rng(seed))
    return [CASES[name].draw(draw) for _ in range(DRAWS)]


@pytest.mark.parametrize("tile", [1, 3, 7])
def test_attention_in_small_tiles_has_the_same_value_and_gradient(monkeypatch, tile):
    monkeypatch.setattr(attention, "TILE", tile)
    for sample in drawn("attention", tile):
        check_value("attention", sample)
        check_gradient("attention", sample)


def test_attention_keeps_no_probabilities_where_there_are_several_tiles(monkeypatch):
    from tinyplm.autograd.guard import kept

    q, k, v = (np.ones((2, 8, 4)) for _ in range(3))
    few = sum(a.nbytes for a in kept(OPS["attention"].on_arrays(q, k, v)[1]))
    monkeypatch.setattr(attention, "TILE", 16)
    many = sum(a.nbytes for a in kept(OPS["attention"].on_arrays(q, k, v)[1]))
    assert few - many == 2 * 8 * 8 * 8


@pytest.mark.parametrize("slice_", [1, 4, 9])
def test_linear_cross_entropy_in_small_slices_has_the_same_value_and_gradient(monkeypatch, slice_):
    monkeypatch.setattr(linear_cross_entropy, "SLICE", slice_)
    for sample in drawn("linear_cross_entropy", slice_):
        check_value("linear_cross_entropy", sample)
        check_gradient("linear_cross_entropy", sample)


def test_linear_cross_entropy_is_the_two_ops_in_one():
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((4, 5, 3)), rng.standard_normal((7, 3)), rng.standard_normal(7)
    labels = rng.integers(0, 7, (4, 5))
    labels[0, :3] = -100
    one, back = OPS["linear_cross_entropy"].on_arrays(x, w, b, labels)
    logits, through = OPS["linear"].on_arrays(x, w.T, b)
    two, first = OPS["cross_entropy"].on_arrays(logits, labels)
    assert_near(one, two, 1e-14)
    gx, gw, gb = (g() for g in through(first(np.float64(1))[0]))
    for a, e in zip(back(np.float64(1)), (gx, gw.T, gb), strict=False):
        assert_near(a, e, 1e-13)
