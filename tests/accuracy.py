"""Comparing arrays, with messages that say where they differ."""

import numpy as np


def wide(x):
    """The values as float64, from whatever precision."""
    return np.asarray(x).astype(np.float64)


def assert_same_bits(a, b, what=""):
    """Equal in shape, dtype and every bit, except that one NaN is as good as another."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape, f"{what}: shapes {a.shape} and {b.shape}"
    assert a.dtype == b.dtype, f"{what}: dtypes {a.dtype} and {b.dtype}"
    np.testing.assert_array_equal(wide(a), wide(b), err_msg=what)


def assert_near(a, b, relative, what=""):
    """Within a tolerance relative to the largest value; NaN and infinities must agree."""
    a, b = wide(a), wide(b)
    assert a.shape == b.shape, f"{what}: shapes {a.shape} and {b.shape}"
    scale = max(1.0, np.abs(b[np.isfinite(b)]).max(initial=0))
    np.testing.assert_allclose(a, b, rtol=relative, atol=relative * scale, err_msg=what)


def as_accurate_as(reference, variant, *arrays, slack=2.0, floor=2.4e-7):
    """The variant errs at most slack times as much as the reference does at the same precision.

    floor: of the largest value; two units in the last place, as the reference may be right by luck.
    """
    exact = outputs(reference(*(a.astype(np.float64) if _single(a) else a for a in arrays)))
    plain, fast = outputs(reference(*arrays)), outputs(variant(*arrays))
    for e, p, f in zip(exact, plain, fast, strict=True):
        assert f.shape == p.shape
        assert f.dtype == p.dtype
        allowed = slack * np.abs(p - e).max(initial=0) + floor * np.abs(e).max(initial=0)
        error = np.abs(f - e).max(initial=0)
        assert error <= allowed, f"error {error:.2e}, allowed {allowed:.2e}"


def outputs(result):
    """The arrays of a result, however many and however nested."""
    if isinstance(result, tuple):
        return [array for part in result for array in outputs(part)]
    return [] if result is None else [np.asarray(result)]


def _single(a):
    return isinstance(a, np.ndarray) and a.dtype == np.float32
