"""What the gradient suite is held to on a device, which may be a stand-in: every op over drawn cases."""

import zlib

import numpy as np
from accuracy import wide

from tinyplm.autograd import OPS
from tinyplm.autograd.cases import CASES, NumpyDraw
from tinyplm.autograd.cases.case import is_float_array
from tinyplm.autograd.gradcheck import VALUE_TOLERANCE, placed, run
from tinyplm.backend import to_numpy
from tinyplm.types import Array

RATIO = 16.0
"""How much more a precision may err than results move when each input is rounded once, or one unit in the last place of
the largest number around; as on the CPU (tests/autograd/test_ops.py)."""
MOVED = 4
"""How many times inputs are moved by a rounding, to see how much results do."""


def assert_float64_agrees(name: str, cases: int) -> None:
    """Values are the oracle's, and gradients the derivative, both computed on the device."""
    (record,) = run([name], cases=cases, device="cuda")
    assert record.failure is None, record.failure
    assert record.cases == cases
    assert record.gradient_error < 1e-6
    assert record.value_error <= VALUE_TOLERANCE


def assert_as_near_as_rounding(name: str, dtype: np.dtype, cases: int) -> None:
    """Values and gradients in a precision err little more than rounding their inputs does."""
    draw = NumpyDraw(np.random.default_rng([1, zlib.crc32(name.encode())]))
    for _ in range(cases):
        sample = CASES[name].draw(draw).astype(dtype)
        found, g = _on_device(name, sample)
        truth = _exact(name, sample, g)
        rng, eps = np.random.default_rng(2), 2 * _half_unit(dtype)
        others = [_exact(name, sample, g, rng, eps) for _ in range(MOVED)]
        given = [x for x in [*sample.inputs, *found, *g] if is_float_array(x)]
        around = max(np.abs(wide(x)[np.isfinite(wide(x))]).max(initial=0) for x in given)
        for i, (x, t) in enumerate(zip(found, truth, strict=True)):
            if x is None or not t.size:
                continue
            finite = np.isfinite(t)
            np.testing.assert_array_equal(np.isfinite(wide(x)), finite, f"{name}{sample}")
            moves = max(np.abs(o[i][finite] - t[finite]).max(initial=0) for o in others)
            error = np.abs(wide(x)[finite] - t[finite]).max(initial=0)
            allowed = RATIO * (moves + eps * around)
            assert error <= allowed, f"{name}{sample}: error {error:.1e}, allowed {allowed:.1e}"


def _half_unit(dtype: np.dtype) -> float:
    """The most that rounding to it changes, relatively."""
    return {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[np.dtype(dtype).name]


def _on_device(name, sample) -> tuple[list[Array | None], list[Array]]:
    """Results, of the CPU's dtypes but losses in float32, and gradients, by NumPy; and the gradient that came in."""
    given = placed(sample.inputs, "cuda")
    keywords = {k: placed(v, "cuda") for k, v in sample.keywords().items()}
    result, pullback = OPS[name].on_arrays(*given, **keywords)
    rng, parts = np.random.default_rng(1), _parts(result)
    on_cpu = _parts(OPS[name].on_arrays(*sample.inputs, **sample.keywords())[0])
    for r, like in zip(parts, on_cpu, strict=True):
        assert r.shape == like.shape, f"{name}{sample}"
        wider = r.dtype == np.float32 and name.endswith("cross_entropy")
        assert wider or r.dtype == like.dtype, f"{name}{sample}: {r.dtype}, on the CPU {like.dtype}"
    g = [np.asarray(rng.uniform(0.5, 1.5, r.shape)).astype(r.dtype) for r in parts]
    moved = placed(tuple(g), "cuda")
    back = _parts(pullback(moved if isinstance(result, tuple) else moved[0]))
    out = [x() if callable(x) else x for x in back]
    return [None if x is None else np.asarray(to_numpy(x)) for x in (*parts, *out)], g


def _exact(name, sample, g, noise=None, eps=0.0) -> list[Array | None]:
    """The same in float64 on the CPU, perhaps from inputs that are rounded otherwise."""

    def moved(x):
        x = wide(x)
        return x if noise is None else x * (1 + eps * noise.uniform(-1, 1, x.shape))

    changed = sample.map(lambda x: moved(x) if is_float_array(x) else x)
    result, pullback = OPS[name].on_arrays(*changed.inputs, **changed.keywords())
    given = tuple(map(moved, g))
    with np.errstate(all="ignore"):
        back = _parts(pullback(given if isinstance(result, tuple) else given[0]))
        out = [x() if callable(x) else x for x in back]
    return [None if x is None else np.asarray(x) for x in (*_parts(result), *out)]


def _parts(x):
    return x if isinstance(x, tuple) else (x,)
