"""What attention on a card is tried with, emulated or there: packed heads, each rule and bias, and how near is near."""

import ml_dtypes
import numpy as np
from accuracy import wide

from tinyplm.backend import to_numpy
from tinyplm.kernels.attention import Rules, attention_forward, attention_pullback

BFLOAT16, FLOAT16, FLOAT32 = map(np.dtype, (ml_dtypes.bfloat16, np.float16, np.float32))
LIMIT = {BFLOAT16: 5e-3, FLOAT16: 1e-3, FLOAT32: 5e-6}
"""Of the result; gradients have twice as much."""


def variant(kernel, *given):
    """The device code's function, which takes these arguments."""
    (found,) = (v for v in kernel.variants if v.name == "cuda")
    assert found.when(*given)
    return found.build()


def drawn(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def sides(B, T, S, H, K):
    """Shapes of what lies side by side, and who turns an array of such a shape into queries, keys and values."""
    if T == S:
        return ((B, T, 3, H, K),), lambda a: tuple(a.transpose(2, 0, 3, 1, 4))
    shapes = (B, T, H, K), (B, S, 2, H, K)
    return shapes, lambda q, kv: (q.swapaxes(1, 2), *kv.transpose(2, 0, 3, 1, 4))


def heads(B, T, S, H, K, dtype, *, seed=0, put=lambda a: a):
    """Queries (B, H, T, K), keys and values (B, H, S, K): side by side, as a projection makes them."""
    shapes, turned = sides(B, T, S, H, K)
    return turned(*(put(drawn(shape, dtype, seed + i)) for i, shape in enumerate(shapes)))


def padding(B, S):
    """Keys seen of each batch row: at the right, at the left, with a hole, and none."""
    seen = np.ones((4, S), bool)
    seen[0, S * 2 // 3 :] = False
    seen[1, : S // 2] = False
    seen[2, S // 3 : S // 2] = False
    seen[3] = False
    return seen[:B, None, None]


def some(shape):
    return np.random.default_rng(1).uniform(size=shape) < 0.6


RULES = {
    "padding": lambda B, T, S: {"mask": padding(B, S)},
    "padding and causal": lambda B, T, S: {"mask": padding(B, S), "causal": True},
    "mask": lambda B, T, S: {"mask": some((B, 1, T, S))},
    "mask of heads": lambda B, T, S: {"mask": some((1, 2, T, S))},
    "mask of queries": lambda B, T, S: {"mask": some((B, 1, T, 1))},
    "window": lambda B, T, S: {"window": 20},
    "window and causal": lambda B, T, S: {"window": 33, "causal": True},
    "dropout": lambda B, T, S: {"rate": 0.2, "seed": (1 << 62) + 12345},
    "all dropped": lambda B, T, S: {"rate": 1.0, "seed": 7},
    "negative": lambda B, T, S: {"scale": -0.3},
    "one mask of keys for all": lambda B, T, S: {"mask": padding(B, S)[:1]},
    "everything": lambda B, T, S: {
        "mask": padding(B, S), "window": 70, "causal": True, "rate": 0.1, "seed": 5,
    },
}  # fmt: skip


def rules_of(name, B, T, S):
    return Rules(**{"causal": False, "mask": None, "scale": 0.125, **RULES[name](B, T, S)})


BIASES = {
    "of pairs": lambda B, H, T, S: (1, H, T, S),
    "of heads": lambda B, H, T, S: (1, 1, T, S),
    "of each": lambda B, H, T, S: (B, H, T, S),
    "of keys": lambda B, H, T, S: (B, 1, 1, S),
    "of keys of a head": lambda B, H, T, S: (1, H, 1, S),
    "by difference": lambda B, H, T, S: (H, S + T - 1),
}


def biased(B, S, plain):
    """The rules that a bias is tried with."""
    if plain:
        return Rules(causal=False, mask=None, scale=0.125)
    return Rules(True, padding(B, S), 0.25, rate=0.1, seed=3, window=90)


FEW = {
    "plain": ((2, 300, 32), None, {"mask": None, "scale": -0.125}),
    "causal": ((2, 300, 40), None, {"causal": True}),
    "window": ((2, 300, 32), None, {"causal": True, "mask": None, "window": 100}),
    "bias": ((4, 300, 32), (4, 1, 4, 300), {}),
    "table": ((2, 300, 32), (2, 301), {}),
    "odd": ((3, 150, 13), None, {}),
}
"""Queries, keys and size of heads, a bias, and rules, where keys are shared out between blocks."""


def few_of(name):
    """Queries, keys and size of heads; a bias; rules."""
    (T, S, K), shape, more = FEW[name]
    bias = None if shape is None else drawn(shape, FLOAT32 if len(shape) == 2 else BFLOAT16, 4)
    rules = Rules(**{"causal": False, "mask": padding(4, S), "scale": 0.125, **more})
    return (T, S, K), FLOAT32 if name == "causal" else BFLOAT16, bias, rules


def computed(q, k, v, bias, rules, empty, put=lambda a: a):
    """The result, gradients of q, k, v and of the bias, by device code; empty makes arrays with NaN in them."""
    found = variant(attention_forward, q, k, v, bias, rules, False)(q, k, v, bias, rules, False)
    B, H, T, K = q.shape
    g = put(drawn((B, T, H, K), q.dtype, 9)).swapaxes(1, 2)
    shapes, turned = sides(B, T, k.shape[2], H, K)
    into = turned(*(empty(q, shape) for shape in shapes))
    given = g, None, q, k, v, bias, rules, found, into
    g_bias = variant(attention_pullback, *given)(*given)
    return found.y, *into, g_bias


def assert_right(q, k, v, bias, rules, found):
    """Near the definition in float64 of the same values."""
    q, k, v, bias = (None if a is None else to_numpy(a) for a in (q, k, v, bias))
    rules = rules._replace(mask=None if rules.mask is None else to_numpy(rules.mask))
    exact_bias = None if bias is None else wide(bias)
    given = wide(q), wide(k), wide(v), exact_bias, rules
    exact = attention_forward.definition(*given, True)
    B, H, T, K = q.shape
    g = wide(drawn((B, T, H, K), q.dtype, 9).swapaxes(1, 2))
    into = tuple(np.zeros(a.shape) for a in (q, k, v))
    g_bias = attention_pullback.definition(g, None, *given, exact, into)
    y, *gradients, found_g_bias = found
    assert error(y, exact.y) <= LIMIT[q.dtype], "result"
    for name, a, b in zip(("gq", "gk", "gv"), gradients, into, strict=True):
        assert error(a, b) <= 2 * LIMIT[q.dtype], name
    if bias is not None:
        assert found_g_bias.dtype == bias.dtype
        assert error(found_g_bias, g_bias) <= 2 * LIMIT[q.dtype], "g_bias"


def error(found, exact):
    """Of all values together, relative to these, or to values of 1/1000; NaN is a fault.

    Where all should be 0, as the gradient of the query of a single key, sums of values of about 1 have cancelled.
    """
    found, exact = wide(to_numpy(found)), wide(exact)
    assert found.shape == exact.shape
    least = 1e-3 if exact.any() else 0.1
    return np.linalg.norm(found - exact) / max(np.linalg.norm(exact), least * exact.size**0.5)


def hidden_tiles(put=lambda a: a):
    """Queries, keys, values and rules; keys of whole tiles that are hidden are NaN, and so are their values."""
    q, k, v = heads(2, 200, 200, 2, 64, BFLOAT16, put=put)
    seen = np.zeros((2, 1, 1, 200), bool)
    seen[..., :64] = True
    k[:, :, 64:], v[:, :, 64:] = np.nan, np.nan
    return q, k, v, Rules(False, put(seen), 0.125)
