"""The loss over a vocabulary on a card, in slices, on the stand-in for CuPy with emulated kernels."""

import ml_dtypes
import numpy as np
import pytest
from accuracy import wide

from tinyplm import Tensor
from tinyplm.autograd import ops
from tinyplm.autograd.ops.loss import IGNORED
from tinyplm.kernels import linear_cross_entropy as file
from tinyplm.kernels.registry import KERNELS

pytestmark = pytest.mark.device

UNITS = {np.dtype(np.float32): 2.0**-24, np.dtype(ml_dtypes.bfloat16): 2.0**-9}
"""What values may be stored as, and what rounding to that changes at most, relatively."""

TYPES = pytest.mark.parametrize("dtype", UNITS, ids=str)
N, D, V = 300, 8, 37


def drawn(dtype):
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(s).astype(dtype) for s in ((N, D), (V, D), (V,)))
    labels = rng.integers(0, V, N)
    labels[::5] = IGNORED
    return x, weight, bias, labels


def found(xp, given, *, by=1.0, labels_there=False, **options):
    """The loss, and what it gives x, weight and bias, times a factor that the host knows and the card does not."""
    *floats, labels = given
    leaves = [a if a is None else Tensor(xp.asarray(a), requires_grad=True) for a in floats]
    labels = xp.asarray(labels) if labels_there else labels
    loss = ops.linear_cross_entropy(*leaves, labels, reduction="sum", scale=1 / N, **options)
    loss.backward(xp.asarray(np.float32(by)))
    return loss, [None if a is None else a.grad for a in leaves]


def assert_right(given, loss, gradients, dtype, *, by=1.0, **options):
    """Logits, of four standard deviations at most, are rounded once; so are gradients of them, and what x receives."""
    exact, expected = found(np, [wide(a) if a.dtype in UNITS else a for a in given], **options)
    unit = UNITS[dtype]
    assert loss.dtype == np.float32
    assert abs(loss.item() - exact.item()) <= 64 * unit
    for e, g, kind in zip(expected, gradients, (dtype, np.float32, np.float32), strict=True):
        assert g.dtype == kind
        e, g = by * e, wide(g.get())
        # Sums of N terms of either sign, each off by what its logits are, and rounded itself.
        assert np.linalg.norm(g - e) <= 24 * unit * np.linalg.norm(e)


@TYPES
@pytest.mark.parametrize("rows", [128, 256, 1024])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_slices_give_the_loss_and_the_gradients(card, monkeypatch, dtype, rows, smoothing):
    """Rows of logits are of 128 values; a slice has a thirty-second of the memory."""
    monkeypatch.setattr(file.cuda, "memory", lambda: 32 * rows * 128 * dtype.itemsize)
    given = drawn(dtype)
    loss, gradients = found(card.cupy, given, smoothing=smoothing)
    slices = -(-N // rows)
    assert card.launched.count(f"cross_entropy_in_place_{dtype.name}") == slices
    assert_right(given, loss, gradients, dtype, smoothing=smoothing)
    again, same = found(card.cupy, given, smoothing=smoothing)
    assert again.numpy().tobytes() == loss.numpy().tobytes()
    for a, b in zip(gradients, same, strict=True):
        assert a.get().tobytes() == b.get().tobytes()


@TYPES
def test_nothing_is_read_and_the_gradient_of_the_loss_is_a_factor(card, dtype):
    given = drawn(dtype)
    leaves = [card.cupy.asarray(a) for a in given]
    by = card.cupy.asarray(np.float32(0.3))
    tensors = [Tensor.wrap(a, requires_grad=True) for a in leaves[:3]]
    with card.without():
        loss = ops.linear_cross_entropy(*tensors, leaves[3], reduction="sum", scale=1 / N)
        loss.backward(by)
    assert_right(given, loss, [t.grad for t in tensors], dtype, by=np.float32(0.3).item())


def test_a_label_outside_is_refused_by_the_host_and_nan_on_a_card(card):
    *floats, labels = drawn(np.dtype(np.float32))
    labels[3] = V
    with pytest.raises(IndexError, match=f"{V} classes"):
        found(card.cupy, (*floats, labels))
    loss, _ = found(card.cupy, (*floats, labels), labels_there=True)
    assert np.isnan(loss.item())


def test_without_recording_there_are_losses_only(card):
    x, weight, bias, labels = (card.cupy.asarray(a) for a in drawn(np.dtype(np.float32)))
    share = (labels != IGNORED).astype(np.float32)
    compute = KERNELS["linear_cross_entropy"]
    total, made = compute(x, weight, bias, labels, share, 0.0, True)
    alone, nothing = compute(x, weight, bias, labels, share, 0.0, False)
    assert nothing is None
    assert made is not None
    assert alone.get() == total.get()


@TYPES
@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_ignored_rows_reach_nothing_whatever_they_are(card, monkeypatch, dtype, slices, wrong):
    """Gradients have the bits that they have where ignored rows are zeros."""
    if slices > 1:
        monkeypatch.setattr(file.cuda, "memory", lambda: 32 * 128 * 128 * dtype.itemsize)
    x, weight, bias, labels = drawn(dtype)
    found_of = []
    for value in (0, wrong):
        x = x.copy()
        x[labels == IGNORED] = value
        found_of.append(found(card.cupy, (x, weight, bias, labels)))
    (loss, gradients), (same, others) = found_of
    assert same.numpy().tobytes() == loss.numpy().tobytes()
    for a, b in zip(gradients, others, strict=True):
        assert np.isfinite(wide(a.get())).all()
        assert a.get().tobytes() == b.get().tobytes()


@TYPES
def test_a_bias_is_added_by_the_product_itself(card, monkeypatch, dtype):
    """Logits are written once: what is there before is neither set to the bias nor kept."""
    kept, launch = [], file.matmul_cuda.compute

    def compute(a, b, out=None, keep=0.0, **more):
        kept.append(
            (out.shape[-1] if out is not None else None, keep, more.get("bias") is not None)
        )
        return launch(a, b, out, keep, **more)

    monkeypatch.setattr(file.matmul_cuda, "compute", compute)
    given = drawn(dtype)
    loss, gradients = found(card.cupy, given)
    assert_right(given, loss, gradients, dtype)
    assert [row for row in kept if row[0] == V] == [(V, 0.0, True)]
