"""What the readable kernels for GPUs must do: the same checks for a device and for Numba's simulator.

As a program it runs those for the simulator, and prints a JSON object: for each check, an empty text or what is wrong.
"""

import functools
import itertools
import json
import sys
import threading
import traceback
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from accuracy import as_accurate_as, outputs

import tinyplm.kernels.numba_cuda  # noqa: F401
from tinyplm.kernels.attention import Rules, attention_forward, attention_pullback
from tinyplm.kernels.gelu import gelu_forward, gelu_pullback, gelu_tanh_forward, gelu_tanh_pullback
from tinyplm.kernels.layer_norm import (
    layer_norm_forward,
    layer_norm_pullback,
    rms_norm_forward,
    rms_norm_pullback,
)
from tinyplm.kernels.matmul import linear_forward, product
from tinyplm.kernels.softmax import softmax_forward, softmax_pullback

TINY_PRODUCT = {"side": 16, "depth": 4, "each": 8}
TINY_ROWS = {"threads": 4}
TINY_SUMS = {"threads": 4, "rows": 3}
TINY_HEADS = {"width": 2, "R": 2}


class Device:
    """Calls variants on CuPy's arrays, with the sizes of blocks that they choose."""

    tiny = False

    def to(self, value):
        """The same on the device."""
        import cupy

        return _moved(value, np.ndarray, cupy.asarray)

    def back(self, value):
        """The same as NumPy's arrays."""
        import cupy

        return _moved(value, cupy.ndarray, cupy.asnumpy)

    def call(self, kernel, *arguments, name="numba-cuda", sizes=None):
        """What a variant makes of the device's arrays; sizes of blocks are for the simulator."""
        return self.variant(kernel, name, arguments)(*arguments)

    def run(self, kernel, *arguments, name="numba-cuda", sizes=None):
        """What it makes of NumPy's arrays, as such."""
        return self.back(self.call(kernel, *self.to(arguments), name=name, sizes=sizes))

    def variant(self, kernel, name, arguments):
        (variant,) = (v for v in kernel.variants if v.name == name)
        assert variant.when(*arguments)
        return variant.function


class Simulator(Device):
    """Calls variants on NumPy's arrays."""

    tiny = True

    def to(self, value):
        return value

    def back(self, value):
        return value

    def call(self, kernel, *arguments, name="numba-cuda", sizes=None):
        return self.variant(kernel, name, arguments)(*arguments, **(sizes or {}))


def _moved(value, kind, move):
    """The same with all arrays of a kind moved, keeping which of their axes is innermost."""
    if isinstance(value, kind):
        order = sorted(range(value.ndim), key=lambda axis: -value.strides[axis])
        return move(value.transpose(order)).transpose(np.argsort(order).tolist())
    if isinstance(value, tuple):
        parts = [_moved(part, kind, move) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def held(define, variant, *arguments):
    """The variant has the definition's infinities and NaN, and elsewhere errs at most twice as much."""
    with np.errstate(all="ignore"):
        plain, found = outputs(define(*arguments)), outputs(variant(*arguments))
        for p, f in zip(plain, found, strict=True):
            np.testing.assert_array_equal(_odd(f), _odd(p))
        as_accurate_as(
            lambda *a: tuple(_even(x) for x in outputs(define(*a))),
            lambda *a: tuple(_even(x) for x in found),
            *arguments,
        )


def _odd(x):
    return np.where(np.isfinite(x), x.dtype.type(0), x)


def _even(x):
    return np.where(np.isfinite(x), x, x.dtype.type(0))


def _single(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


# Products.

STEPS = {
    "numba-cuda-naive": {"tile": 4},
    "numba-cuda-shared": {"tile": 4},
    "numba-cuda": TINY_PRODUCT,
}


def check_product(on, name, shape):
    """Each layout of both, onto NaN that must disappear; and added to what was there."""
    rng = np.random.default_rng(0)
    N, K, M = shape
    a, b = _single(rng, N, K), _single(rng, K, M)
    run = functools.partial(on.run, product, name=name, sizes=STEPS[name])
    for left, right in itertools.product((np.ascontiguousarray, np.asfortranarray), repeat=2):
        held(product.definition, run, left(a), right(b))
    out = np.full((N, M), np.nan, np.float32)
    held(
        lambda x, y, out: product.definition(x, y, out.copy(), 0.0),
        lambda x, y, out: run(x, y, out.copy(), 0.0),
        a, b, out,
    )  # fmt: skip
    held(
        lambda x, y, out: product.definition(x, y, out.copy(), 0.5),
        lambda x, y, out: run(x, y, out.copy(), 0.5),
        a, b, _single(rng, N, M),
    )  # fmt: skip


def check_integers(on, name, shape):
    """Sums of small integers are exact in float32."""
    rng = np.random.default_rng(1)
    N, K, M = shape
    a, b = rng.integers(-8, 9, (N, K)), rng.integers(-8, 9, (K, M))
    found = on.run(
        product, a.astype(np.float32), b.astype(np.float32), name=name, sizes=STEPS[name]
    )
    np.testing.assert_array_equal(found, a @ b)


def check_linear(on, shape):
    rng = np.random.default_rng(2)
    N, K, M = shape
    for bias in (None, _single(rng, M)):
        run = functools.partial(on.run, linear_forward, sizes=TINY_PRODUCT)
        held(linear_forward.definition, run, _single(rng, N, K), _single(rng, K, M), bias)


def check_whole_tile(on):
    """The tiles as they are shipped, in the simulator too."""
    rng = np.random.default_rng(3)
    held(
        product.definition,
        lambda a, b: on.run(product, a, b),
        _single(rng, 120, 5),
        np.asfortranarray(_single(rng, 5, 7)),
    )


# Rows.


def check_softmax(on, shape):
    rng = np.random.default_rng(4)
    run = functools.partial(on.run, softmax_forward, sizes=TINY_ROWS)
    x = 3 * _single(rng, *shape)
    x[..., ::3] *= 100
    for one in (x, np.asfortranarray(x)):
        held(softmax_forward.definition, run, one, -1)
    p = softmax_forward.definition(x, -1)
    run = functools.partial(on.run, softmax_pullback, sizes=TINY_ROWS)
    held(softmax_pullback.definition, run, _single(rng, *shape), p, -1)


def check_softmax_of_odd_values(on):
    inf, nan = np.inf, np.nan
    x = np.array(
        [
            [1, 2, -inf, 3, 0, 1],
            [-inf] * 6,
            [1, nan, 2, 3, 4, 5],
            [nan, -inf, -inf, -inf, -inf, -inf],
            [1, inf, 2, 3, 4, 5],
            [-3e38, 3e38, 0, 1, 2, 3],
            [-3e38] * 6,
        ],
        np.float32,
    )
    held(
        softmax_forward.definition,
        functools.partial(on.run, softmax_forward, sizes=TINY_ROWS),
        x,
        1,
    )


def check_norms(on, shape):
    rng = np.random.default_rng(5)
    x, branch, g, g_sum = (_single(rng, *shape) for _ in range(4))
    gain, bias = _single(rng, 2, shape[1])
    for other in (None, branch):
        held(
            layer_norm_forward.definition,
            functools.partial(on.run, layer_norm_forward, sizes=TINY_ROWS),
            x, other, gain, bias, 1e-5,
        )  # fmt: skip
        held(
            rms_norm_forward.definition,
            functools.partial(on.run, rms_norm_forward, sizes=TINY_ROWS),
            x, other, gain, 1e-6,
        )  # fmt: skip
    _, _, mean, scale = layer_norm_forward.definition(x, None, gain, bias, 1e-5)
    for other in (None, g_sum):
        held(
            layer_norm_pullback.definition,
            functools.partial(on.run, layer_norm_pullback, sizes=TINY_SUMS),
            g, other, x, mean, scale, gain,
        )  # fmt: skip
        held(
            rms_norm_pullback.definition,
            functools.partial(on.run, rms_norm_pullback, sizes=TINY_SUMS),
            g, other, x, scale, gain,
        )  # fmt: skip


def check_norms_of_odd_values(on):
    """Rows of one value, of zeros, and with NaN, beside which the others stay what they are; a mean far from 0."""
    x = np.array([[2, 2, 2, 2, 2], [0, 0, 0, 0, 0], [1, 2, np.nan, 3, 4], [1, 2, 3, 4, 5]])
    far = 30 + _single(
        np.random.default_rng(10), 50, 5
    )  # many rows, as their errors are a matter of luck
    gain = np.ones(5, np.float32)
    for kernel, rest in ((layer_norm_forward, (gain, gain)), (rms_norm_forward, (gain,))):
        for rows in (x.astype(np.float32), far):
            run = functools.partial(on.run, kernel, sizes=TINY_ROWS)
            held(kernel.definition, run, rows, None, *rest, 1e-5)


# GELU.


def check_gelu(on, size):
    rng = np.random.default_rng(6)
    x = 3 * _single(rng, size)
    hard = [0.0, -0.0, 1e-30, 30, -30, 1e30, -1e30, np.inf, -np.inf, np.nan]
    x[: len(hard)] = hard[:size]
    for kernel in (gelu_forward, gelu_tanh_forward):
        held(kernel.definition, functools.partial(on.run, kernel), x)
    for kernel in (gelu_pullback, gelu_tanh_pullback):
        held(kernel.definition, functools.partial(on.run, kernel), _single(rng, size), x)


# Attention.


def heads(rng, B, H, T, S, K, J):
    """Queries, keys and values as they lie in one array behind a linear layer, and a gradient."""
    q, k, v = (
        _single(rng, B, n, 2, H, w)[:, :, 1].swapaxes(1, 2) for n, w in ((T, K), (S, K), (S, J))
    )
    return q, k, v, _single(rng, B, H, T, J)


def log_sums(q, k, rules):
    """What the pullback wants of each row: the logarithm of its sum of exponentials, infinity where it sees nothing."""
    T, S = q.shape[2], k.shape[2]
    seen = np.tri(T, S, S - T if rules.causal else S, dtype=bool)
    seen = seen if rules.mask is None else seen & rules.mask
    scores = q @ k.swapaxes(-1, -2) * q.dtype.type(rules.scale)
    total = np.where(seen, np.exp(scores), q.dtype.type(0)).sum(axis=-1)
    return np.where(total == 0, q.dtype.type(np.inf), np.log(total)).reshape(-1)


def check_attention(on, rules, shape, change=None):
    """Results and gradients; what the forward pass keeps is what the pullback uses."""
    q, k, v, g = heads(np.random.default_rng(7), *shape)
    if change:
        change(q, k, v)
    own_rules = Rules(*on.to(tuple(rules)))

    def variant(*arrays):
        q, k, v, g = on.to(arrays)
        into = on.to(tuple(np.full_like(a, np.nan) for a in arrays[:3]))
        found = on.call(attention_forward, q, k, v, None, own_rules, False, sizes=TINY_HEADS)
        rest = None, own_rules, found, into
        on.call(attention_pullback, g, None, q, k, v, *rest, sizes=TINY_HEADS)
        return on.back((found.y, found.log_sum, *into))

    def define(q, k, v, g):
        into = tuple(np.empty_like(a) for a in (q, k, v))
        found = attention_forward.definition(q, k, v, None, rules, False)
        attention_pullback.definition(g, None, q, k, v, None, rules, found, into)
        return found.y, log_sums(q, k, rules), *into

    held(define, variant, q, k, v, g)


def check_masks(on, shape):
    """Padding, of all of a text too; and any mask, alone and with causality."""
    rng = np.random.default_rng(8)
    B, H, T, S = shape[:4]
    padding = (
        np.arange(S) < np.arange(B)[:, None, None, None]
    )  # the first text is nothing but padding
    some = rng.uniform(size=(B, H, T, S)) < 0.5
    for mask, causal in ((padding, False), (padding, True), (some, False), (some, True)):
        check_attention(on, Rules(causal, mask, 0.5), shape)


def check_attention_to_odd_values(on, shape):
    """Scores far apart, or minus infinity, forward; and NaN in a query, of which other queries know nothing."""
    q, k, v, _ = heads(np.random.default_rng(9), *shape)
    never = k.copy()
    q[..., 0], never[..., 0] = 1, 1
    never[:, :, 1, 0] = -np.inf

    def lost(q, k, v):
        q[0, 0, -1, 0] = np.nan

    for causal in (False, True):
        rules = Rules(causal, None, 0.5)
        for arrays in ((60 * q, k, v), (q, never, v)):
            held(
                lambda *a, r=rules: attention_forward.definition(*a, None, r, False).y,
                lambda *a, r=rules: on.run(attention_forward, *a, None, r, False, sizes=TINY_HEADS).y,
                *arrays,
            )  # fmt: skip
        check_attention(on, rules, shape, lost)


def checks(on):
    """Every check by name."""
    found = {}

    def add(check, *arguments):
        found[f"{check.__name__[6:]} {' '.join(map(str, arguments))}".strip()] = functools.partial(
            check, on, *arguments
        )

    tiny = on.tiny
    for name, sizes in STEPS.items():
        side, depth = sizes.get("side", 4) if tiny else 128, sizes.get("depth", 4) if tiny else 8
        shapes = [(1, 1, 1), *((side + i, depth + i, side - i) for i in (-1, 0, 1))]
        shapes += [] if tiny else [(17, 16, 15), (300, 517, 77)]
        for shape in shapes:
            add(check_product, name, shape)
        add(check_integers, name, (5, 9, 6) if tiny else (257, 4096, 130))
    for shape in (7, 9, 6), (17, 5, 16):
        add(check_linear, shape)
    add(check_whole_tile)
    rows = [(1, 1), (2, 3), (3, 4), (4, 5), (7, 9)]
    rows += [] if tiny else [(5, 127), (64, 128), (65, 129), (300, 1000), (2, 5003)]
    for shape in rows:
        add(check_softmax, shape)
        add(check_norms, shape)
    add(check_softmax, (2, 1, 3, 6))
    add(check_softmax_of_odd_values)
    add(check_norms_of_odd_values)
    for size in (1, 255, 256, 257) if tiny else (1, 255, 256, 257, 100_003):
        add(check_gelu, size)
    attended = [(1, 1, 1, 1, 1, 1), (2, 1, 3, 5, 3, 2), (1, 2, 4, 4, 4, 4), (1, 1, 5, 3, 1, 5)]
    attended += [(1, 1, 9, 7, 2, 3)] if tiny else []
    if not tiny:
        attended += [
            (2, 3, T, S, 64, 64) for T, S in ((1, 65), (31, 33), (32, 32), (33, 31), (7, 300))
        ]
        attended += [(1, 2, 40, 40, K, K) for K in (8, 9, 32, 65, 80, 127, 128)]
    for shape in attended:
        for causal in (False, True):
            add(check_attention, Rules(causal, None, 0.5), shape)
    for shape in attended[1:4] + attended[-1:]:
        add(check_masks, shape)
    add(check_attention_to_odd_values, (1, 2, 9, 6, 3, 4) if tiny else (1, 2, 50, 60, 64, 64))
    return found


def outcome(check):
    """Nothing, or what is wrong."""
    try:
        check()
    except Exception:
        return traceback.format_exc(limit=-4)
    return ""


def poisoned(empty):
    """As an empty(), but of NaN: whoever reads before writing is found out."""

    @functools.wraps(empty)
    def filled(*arguments, **keywords):
        array = empty(*arguments, **keywords)
        if array.dtype.kind == "f":
            array.fill(np.nan)
        return array

    return filled


ALLOCATING = threading.Lock()


def shared_array(memory, shape, dtype):
    """The array in shared memory of one line of a kernel, NaN at first.

    In place of the simulator's own, of which two threads that come at the same moment get one each.
    """
    caller = sys._getframe(1)
    with ALLOCATING:
        place = caller.f_code.co_filename, caller.f_lineno
        if place not in memory._allocations:
            from numba.np.numpy_support import as_dtype

            memory._allocations[place] = np.full(shape, np.nan, as_dtype(dtype))
        return memory._allocations[place]


def main():
    from numba.cuda.simulator.kernelapi import FakeCUDAShared

    FakeCUDAShared.array = shared_array
    np.empty = poisoned(np.empty)
    sys.setswitchinterval(1e-5)  # threads of a block wait for one another all the time
    json.dump({name: outcome(check) for name, check in checks(Simulator()).items()}, sys.stdout)


if __name__ == "__main__":
    main()
