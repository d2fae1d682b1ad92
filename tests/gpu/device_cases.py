"""What the device's kernels are tried with, emulated or on a device: awkward sizes, all types, and how near is near."""

import ml_dtypes
import numpy as np
from accuracy import wide
from kernel_cases import KERNEL_CASES

from tinyplm.kernels.registry import KERNELS

APART = {"linear_cross_entropy", "attention_forward", "attention_pullback"}
"""Kernels that have tests of their own: they take more than arrays and numbers, or work in slices."""

VARIANTS = {
    name: variant
    for name, kernel in sorted(KERNELS.items())
    for variant in kernel.variants
    if variant.name == "cuda" and name not in APART
}
"""The kernels that have device code of this kind."""

DTYPES = {
    np.dtype(np.float32): 2.0**-24,
    np.dtype(np.float16): 2.0**-11,
    np.dtype(ml_dtypes.bfloat16): 2.0**-8,
}
"""What values may be stored as, and the most that rounding to it changes, relatively."""

SHAPES = [
    *((1, 1), (3, 7), (9, 33), (0, 4), (45, 5)),  # narrow rows
    *((5, 96), (2, 1024)),  # held by a warp
    *((3, 1032), (2, 1037)),  # held by a block, and one that no vector fits
    (2, 8200),  # held by nobody
]

SINGLE = {
    "layer_norm_pullback": (3, 4),
    "rms_norm_pullback": (3,),
    "cross_entropy_pullback": (0, 3),
    "cross_entropy_in_place": (1, 3),
    "cross_entropy_total": (0, 1),
    "scale_in_place": (1,),
    "adamw_update": (0, 2, 3),
}
"""Arguments that are float32 whatever the others are stored as: statistics, parameters, moments."""


def arguments(name, shape, dtype, seed=0):
    drawn = KERNEL_CASES[name].arguments(*shape, np.float32, seed)
    return tuple(
        a.astype(dtype)
        if isinstance(a, np.ndarray) and a.dtype == np.float32 and i not in SINGLE.get(name, ())
        else a
        for i, a in enumerate(drawn)
    )


def is_float(a):
    return isinstance(a, np.ndarray) and (a.dtype in DTYPES)


def assert_right(name, given, found, dtype):
    """Near the definition in float64 of the same values.

    Four roundings of the largest value are allowed, four more by float32 of values about 1, as whatever is stored is
    computed in float32, and in float32 twice the error of the definition.
    """
    case, define = KERNEL_CASES[name], KERNELS[name].definition
    with np.errstate(all="ignore"):
        exact = case.call(define, *(wide(a) if is_float(a) else a for a in given))
        plain = exact
        if dtype == np.float32:
            plain = case.call(define, *given)
    assert len(found) == len(exact)
    for e, p, f in zip(exact, plain, found, strict=True):
        assert f.shape == e.shape
        e, p, f = wide(e), wide(p), wide(f)
        np.testing.assert_array_equal(np.isfinite(f), np.isfinite(e))
        fine = np.isfinite(e)
        scale = np.abs(e[fine]).max(initial=0)
        error = np.abs(f[fine] - e[fine]).max(initial=0)
        slack = 2 * np.abs(p[fine] - e[fine]).max(initial=0)
        allowed = slack + 4 * DTYPES[np.dtype(dtype)] * scale + 2.0**-22
        assert error <= allowed, f"error {error:.2e}, allowed {allowed:.2e}"
