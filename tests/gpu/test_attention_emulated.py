"""Attention's device code on the CPU, against the definition in float64."""

import ml_dtypes
import numpy as np
import pytest
import twins_attention as twins
from accuracy import wide

import tinyplm.kernels.attention_cuda  # noqa: F401 - registers its variants
from tinyplm.kernels.attention import Rules, attention_forward, attention_pullback

pytestmark = pytest.mark.device

BFLOAT16, FLOAT16, FLOAT32 = map(np.dtype, (ml_dtypes.bfloat16, np.float16, np.float32))
LIMIT = {BFLOAT16: 5e-3, FLOAT16: 1e-3, FLOAT32: 5e-6}
"""Of the result; gradients have twice as much."""


@pytest.fixture
def device(built, monkeypatch):
    built.install(monkeypatch)
    yield built
    built.check()


def forward(*given):
    (variant,) = (v for v in attention_forward.variants if v.name == "cuda")
    assert variant.when(*given)
    return variant.build()(*given)


def pullback(*given):
    (variant,) = (v for v in attention_pullback.variants if v.name == "cuda")
    assert variant.when(*given)
    return variant.build()(*given)


def drawn(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def heads(B, T, S, H, K, dtype, seed=0):
    """Queries (B, H, T, K), keys and values (B, H, S, K): side by side, as a projection makes them."""
    if T == S:
        return tuple(drawn((B, T, 3, H, K), dtype, seed).transpose(2, 0, 3, 1, 4))
    k, v = drawn((B, S, 2, H, K), dtype, seed).transpose(2, 0, 3, 1, 4)
    return drawn((B, T, H, K), dtype, seed + 1).swapaxes(1, 2), k, v


def unwritten(device, arrays):
    """Room of the same shapes and strides, side by side, with NaN in it."""
    if arrays[0].shape != arrays[1].shape:
        q, (B, H, T, K), S = arrays[0], arrays[0].shape, arrays[1].shape[2]
        rest = device.empty(q, (B, S, 2, H, K)).transpose(2, 0, 3, 1, 4)
        return device.empty(q, (B, T, H, K)).swapaxes(1, 2), *rest
    B, H, T, K = arrays[0].shape
    return tuple(device.empty(arrays[0], (B, T, 3, H, K)).transpose(2, 0, 3, 1, 4))


def error(found, exact):
    """Of all values together, relative to these, or to values of 1/1000 where they should be 0; NaN is a fault."""
    found, exact = wide(found), wide(exact)
    assert found.shape == exact.shape
    return np.linalg.norm(found - exact) / max(np.linalg.norm(exact), 1e-3 * exact.size**0.5)


def check(device, q, k, v, bias, rules):
    """Result and gradients, beside those of the definition in float64."""
    exact_bias = None if bias is None else wide(bias)
    found = forward(q, k, v, bias, rules, False)
    exact = attention_forward.definition(wide(q), wide(k), wide(v), exact_bias, rules, True)
    assert error(found.y, exact.y) <= LIMIT[q.dtype], "result"

    g = drawn((q.shape[0], q.shape[2], q.shape[1], q.shape[3]), q.dtype, 9).swapaxes(1, 2)
    into, exact_into = unwritten(device, (q, k, v)), tuple(np.zeros(a.shape) for a in (q, k, v))
    g_bias = pullback(g, None, q, k, v, bias, rules, found, into)
    exact_g_bias = attention_pullback.definition(
        wide(g), None, wide(q), wide(k), wide(v), exact_bias, rules, exact, exact_into
    )
    for name, a, b in zip(("gq", "gk", "gv"), into, exact_into, strict=True):
        assert error(a, b) <= 2 * LIMIT[q.dtype], name
    if bias is not None:
        assert g_bias.dtype == bias.dtype
        assert error(g_bias, exact_g_bias) <= 2 * LIMIT[q.dtype], "g_bias"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("T", [1, 7, 64, 65, 100, 130])
def test_lengths(device, T, causal):
    check(device, *heads(2, T, T, 2, 64, BFLOAT16), None, Rules(causal, None, 0.125))


def padding(B, S):
    """Keys seen of each batch row: at the right, at the left, with a hole, and none."""
    seen = np.ones((4, S), bool)
    seen[0, S * 2 // 3 :] = False
    seen[1, : S // 2] = False
    seen[2, S // 3 : S // 2] = False
    seen[3] = False
    return seen[:B, None, None]


RULES = {
    "padding": lambda B, T, S: {"mask": padding(B, S)},
    "padding and causal": lambda B, T, S: {"mask": padding(B, S), "causal": True},
    "mask": lambda B, T, S: {"mask": np.random.default_rng(1).uniform(size=(B, 1, T, S)) < 0.6},
    "mask of heads": lambda B, T, S: {
        "mask": np.random.default_rng(1).uniform(size=(1, 2, T, S)) < 0.6
    },
    "window": lambda B, T, S: {"window": 20},
    "window and causal": lambda B, T, S: {"window": 33, "causal": True},
    "dropout": lambda B, T, S: {"rate": 0.2, "seed": (1 << 62) + 12345},
    "all dropped": lambda B, T, S: {"rate": 1.0, "seed": 7},
    "negative": lambda B, T, S: {"scale": -0.3},
    "everything": lambda B, T, S: {
        "mask": padding(B, S), "window": 70, "causal": True, "rate": 0.1, "seed": 5,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("T", "S"), [(100, 100), (33, 130), (130, 70)])
def test_rules(device, name, T, S):
    B = 4 if "padding" in name or name == "everything" else 2
    rules = Rules(**{"causal": False, "mask": None, "scale": 0.125, **RULES[name](B, T, S)})
    check(device, *heads(B, T, S, 2, 32, BFLOAT16), None, rules)


BIASES = {
    "of pairs": lambda B, H, T, S: (1, H, T, S),
    "of heads": lambda B, H, T, S: (1, 1, T, S),
    "of each": lambda B, H, T, S: (B, H, T, S),
    "of keys": lambda B, H, T, S: (B, 1, 1, S),
    "of keys of a head": lambda B, H, T, S: (1, H, 1, S),
    "by difference": lambda B, H, T, S: (H, S + T - 1),
}


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("name", BIASES)
@pytest.mark.parametrize(("T", "S"), [(100, 100), (33, 130)])
def test_biases(device, name, T, S, plain):
    bias = drawn(BIASES[name](3, 2, T, S), BFLOAT16, 4)
    rules = Rules(causal=False, mask=None, scale=0.125)
    if not plain:
        rules = Rules(True, padding(3, S), 0.25, rate=0.1, seed=3, window=90)
    check(device, *heads(3, T, S, 2, 32, BFLOAT16), bias, rules)


@pytest.mark.parametrize("K", [1, 5, 16, 40, 80, 96, 128, 136, 256])
def test_head_sizes(device, K):
    check(device, *heads(1, 70, 70, 1, K, FLOAT16), None, Rules(True, None, K**-0.5))


def test_rows_may_begin_anywhere(device):
    q, k, v = (a[..., 3:19] for a in heads(2, 70, 70, 2, 32, BFLOAT16))
    check(device, q, k, v, None, Rules(False, None, 0.25))


@pytest.mark.parametrize("T", [7, 64, 130])
def test_floats(device, T):
    check(device, *heads(2, T, T, 2, 40, FLOAT32), None, Rules(True, None, 0.125))


def test_floats_differ_from_a_twin_by_some_roundings(device):
    """Which goes the same way in NumPy: an error of theirs that is larger is one of the device's."""
    q, k, v = heads(2, 70, 100, 2, 32, FLOAT32)
    g = drawn((2, 70, 2, 32), FLOAT32, 9).swapaxes(1, 2)
    rules = Rules(True, padding(2, 100), 0.25, rate=0.2, seed=3, window=60)
    twin, found = twins.forward(q, k, v, None, rules, 128, 32), forward(q, k, v, None, rules, False)
    assert error(found.y, twin.y) <= 1e-6
    np.testing.assert_allclose(found.log_sum, twin.log_sum, rtol=1e-6, atol=1e-6)
    into = unwritten(device, (q, k, v))
    pullback(g, None, q, k, v, None, rules, twin, into)
    expected = twins.pullback(g, q, k, v, None, rules, twin, 64, 32)
    for a, b in zip(into, expected[:3], strict=True):
        assert error(a, b) <= 1e-6


@pytest.mark.parametrize("name", ["by difference", "of pairs"])
def test_floats_with_everything(device, name):
    bias = drawn(BIASES[name](3, 2, 70, 100), FLOAT32, 4)
    rules = Rules(True, padding(3, 100), 0.25, rate=0.1, seed=3, window=60)
    check(device, *heads(3, 70, 100, 2, 37, FLOAT32), bias, rules)


@pytest.mark.parametrize("name", ["plain", "causal", "window", "bias", "table", "odd"])
def test_few_queries_of_many_keys(device, name):
    """Keys are shared out between blocks; a batch row sees none of them."""
    T, S, K = {"bias": (4, 300, 64), "odd": (3, 150, 36)}.get(name, (2, 300, 64))
    bias, rules = None, Rules(name == "causal", padding(4, S), 0.125)
    if name == "bias":
        bias = drawn((4, 1, T, S), BFLOAT16, 4)
    if name == "table":
        bias = drawn((2, S + T - 1), FLOAT32, 4)
    if name == "window":
        rules = Rules(True, None, 0.125, window=100)
    if name == "plain":
        rules = Rules(False, None, -0.125)
    check(device, *heads(4, T, S, 2, K, FLOAT32 if name == "causal" else BFLOAT16), bias, rules)
