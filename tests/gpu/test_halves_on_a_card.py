"""What ops on half precision do with arrays of a card: who rounds, and what stays float32. On the stand-in for CuPy."""

import ml_dtypes
import numpy as np
import pytest

from tinyplm import Tensor, detect_anomaly
from tinyplm.autograd import ops
from tinyplm.errors import DtypeError, NonFiniteError, ShapeError
from tinyplm.nn.checks import checked_ids, checked_mask

pytestmark = pytest.mark.device
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def draw(card, rng):
    def drawn(*shape, dtype=BFLOAT16):
        values = rng.standard_normal(shape).astype(dtype)
        return Tensor(card.cupy.asarray(values), requires_grad=True)

    return drawn


def test_halves_pass_and_sums_over_rows_are_float32(card, draw):
    x, weight, bias, gain, shift = (draw(*s) for s in ((3, 5, 8), (8, 16), (16,), (16,), (16,)))
    with card.without("reads"):
        y = ops.layer_norm(ops.linear_gelu(x, weight, bias), gain, shift)
        table = ops.take_rows(weight, card.cupy.asarray([0, 3, 3]))
        total = ops.sum(y) + ops.sum(table)
        total.backward()
    assert {y.dtype, table.dtype, x.grad.dtype} == {BFLOAT16}
    for leaf in (weight, bias, gain, shift):
        assert leaf.grad.dtype == np.float32
    kernels = [name for name in card.launched if "sum_rows" not in name and "sort" not in name]
    assert {"float32" in name for name in kernels} == {False}


def test_a_number_is_not_rounded_before_it_is_multiplied_with(draw):
    x = draw(1000)
    y = x * 0.1
    exact = x.numpy().astype(np.float32) * np.float32(0.1)
    assert y.dtype == BFLOAT16
    np.testing.assert_array_equal(y.numpy(), exact.astype(BFLOAT16))


def test_two_precisions_are_widened_and_two_halves_refused(draw):
    x, gain = draw(3, 8), draw(8, dtype=np.float32)
    y = ops.rms_norm(x, gain)
    assert y.dtype == np.float32
    y.sum().backward()
    assert (x.grad.dtype, gain.grad.dtype) == (BFLOAT16, np.float32)
    with pytest.raises(DtypeError, match="mixed"):
        ops.rms_norm(x, draw(8, dtype=np.float16))


def test_what_comes_in_float32_is_rounded_where_it_is_computed_with(card, draw):
    """The gradient of a gather is float32, that of a norm's result is wanted in halves; a reshape lets it pass."""
    x, gain, shift = draw(4, 8), draw(8), draw(8)
    y = ops.reshape(ops.layer_norm(x, gain, shift), shape=(2, 2, 8))
    flat = ops.reshape(y, shape=(4, 8))
    first = ops.take_rows(flat, card.cupy.asarray([0, 2]))
    (first * first).sum().backward()
    assert x.grad.dtype == BFLOAT16
    assert "norm_pullback_bfloat16_warp" in card.launched
    wide = [Tensor(t.numpy(), dtype=np.float64, requires_grad=True) for t in (x, gain, shift)]
    first = ops.layer_norm(*wide)[[0, 2]]
    (first * first).sum().backward()
    e = wide[0].grad
    assert np.linalg.norm(x.grad.get() - e) <= 8 * 2.0**-9 * np.linalg.norm(e)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((2, 3, 4, 8), (2, 3, 8, 5)), ((2, 1, 4, 8), (3, 8, 5)), ((3, 4, 8), (8, 5)), ((4, 8), (2, 3, 8, 5)),
        ((1, 1, 4, 8), (8, 5)), ((8,), (2, 8, 5)), ((8,), (8, 5)), ((2, 3, 4, 8), (8,)), ((8,), (8,)),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float16)], ids=str)
def test_products_of_any_axes_are_by_kernels(card, draw, left, right, dtype):
    """Eight terms at least, in float32, rounded once; gradients are sums of what was rounded once."""
    a, b = draw(*left, dtype=dtype), draw(*right, dtype=dtype)
    with card.without():
        y = ops.matmul(a, b)
        ops.sum(y).backward()
    assert any("matmul" in name or "product" in name for name in card.launched)
    wide = [Tensor(t.numpy(), dtype=np.float64, requires_grad=True) for t in (a, b)]
    exact = ops.matmul(*wide)
    ops.sum(exact).backward()
    assert y.dtype == dtype
    for found, e in zip(
        (y.numpy(), a.grad.get(), b.grad.get()), (exact, *(t.grad for t in wide)), strict=True
    ):
        e = np.asarray(e.numpy() if isinstance(e, Tensor) else e)
        assert found.shape == e.shape
        assert np.linalg.norm(found.astype(np.float64) - e) <= 4 * 2.0**-9 * np.linalg.norm(e)


@pytest.mark.parametrize(("width", "both"), [(8, True), (300, False)])
def test_attention_that_no_kernel_takes_is_widened(card, draw, width, both):
    """Heads that are too wide, and probabilities that are asked for; gradients of a sum have no layout."""
    q, k, v = (draw(2, 5, width) for _ in range(3))
    y = ops.attention(q, k, v, causal=True, return_probabilities=both)
    ops.sum(y[0] if both else y).backward()
    wide = [Tensor(t.numpy(), dtype=np.float64, requires_grad=True) for t in (q, k, v)]
    exact = ops.attention(*wide, causal=True)
    ops.sum(exact).backward()
    assert not any("bfloat16" in name for name in card.launched if "attention" in name)
    found = [y[0] if both else y, *(t.grad for t in (q, k, v))]
    for f, e in zip(found, [exact, *(t.grad for t in wide)], strict=True):
        assert f.dtype == BFLOAT16
        error = np.abs((f.numpy() if isinstance(f, Tensor) else f.get()) - np.asarray(e)).max()
        assert error <= 2.0**-8 * np.abs(np.asarray(e)).max()


def test_data_of_a_card_is_not_watched_but_for_announced_writes(card, draw):
    x, mask = draw(4, 4), card.cupy.ones((4, 4), bool)
    with card.without():
        x.data *= 1
        y = ops.attention(x, x, x, mask=mask)
    with card.without("reads"):
        y.sum().backward()


def test_ids_and_masks_of_a_card_are_believed_but_for_shape_and_kind(card):
    xp = card.cupy
    ids, mask = xp.asarray([[5, 99]]), xp.asarray([[1, 7]])
    with card.without():
        assert checked_ids(ids, 10, "input_ids", "vocab_size") is ids
        assert checked_mask(mask, (1, 2)).dtype == bool
        for wrong, error in ((ids[0], ShapeError), (ids.astype(np.float32), DtypeError)):
            with pytest.raises(error, match="input_ids"):
                checked_ids(wrong, 10, "input_ids", "vocab_size")
        with pytest.raises(ShapeError, match="attention_mask"):
            checked_mask(mask, (2, 2))


def test_anomalies_are_named_on_a_card_too(card):
    x = Tensor(card.cupy.asarray(np.float32([1.0, 0.0])), requires_grad=True)
    with detect_anomaly(), pytest.raises(NonFiniteError, match=r"log \(forward\).*\[1\]"):
        ops.log(x)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("count", [8, 9, 20])
def test_many_arrays_are_joined_without_sending_anything(card, draw, axis, count):
    leaves = [draw(2, 1 + i % 3 if axis == 1 else 2, 2) for i in range(count)]
    alike = [draw(2, 3) for _ in range(count)]
    given = [t.numpy() for t in leaves], [t.numpy() for t in alike]
    with card.without():
        joined, stacked = ops.concatenate(leaves, axis=axis), ops.stack(alike, axis=axis)
        parts = ops.split(joined, parts=[t.shape[axis] for t in leaves], axis=axis)
        (ops.sum(parts[1]) + ops.sum(stacked[0])).backward()
    np.testing.assert_array_equal(joined.numpy(), np.concatenate(given[0], axis=axis))
    np.testing.assert_array_equal(stacked.numpy(), np.stack(given[1], axis=axis))
    assert joined.dtype == stacked.dtype == BFLOAT16
    assert [float(t.grad.get().astype(np.float32).sum()) for t in leaves[:3]] == [
        0,
        leaves[1].size,
        0,
    ]


def test_many_arrays_that_do_not_fit_are_refused(draw):
    with pytest.raises(ShapeError):
        ops.concatenate([draw(2, 3), *(draw(2, 1) for _ in range(9))], axis=0)
