"""Attention's device code on the CPU, against the definition in float64."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from accuracy import wide

from tinyplm.kernels import attention_cuda, cuda
from tinyplm.kernels.attention import Kept, Rules, attention_forward, attention_pullback

pytestmark = pytest.mark.device

BFLOAT16, FLOAT16 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
LIMIT = {BFLOAT16: 5e-3, FLOAT16: 1e-3}
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


def drawn(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def packed(B, T, S, H, K, dtype, seed=0):
    """Queries, keys and values as a projection makes them, side by side; (B, H, T, K) and twice (B, H, S, K)."""
    if T == S:
        return tuple(drawn((B, T, 3, H, K), dtype, seed).transpose(2, 0, 3, 1, 4))
    k, v = drawn((B, S, 2, H, K), dtype, seed).transpose(2, 0, 3, 1, 4)
    return drawn((B, T, H, K), dtype, seed + 1).swapaxes(1, 2), k, v


def error(found, exact):
    """Of all values together, relatively; NaN is a fault."""
    found, exact = wide(found), wide(exact)
    assert found.shape == exact.shape
    return np.linalg.norm(found - exact) / max(np.linalg.norm(exact), 1e-30)


def exact_forward(q, k, v, bias, rules):
    given = (wide(q), wide(k), wide(v), None if bias is None else wide(bias))
    return attention_forward.definition(*given, rules, True)


def check(q, k, v, bias, rules):
    found = forward(q, k, v, bias, rules, False)
    exact = exact_forward(q, k, v, bias, rules)
    assert error(found.y, exact.y) <= LIMIT[q.dtype]
    return found, exact


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("T", [1, 7, 64, 65, 100, 130])
def test_lengths(device, T, causal):
    check(*packed(2, T, T, 2, 64, BFLOAT16), None, Rules(causal, None, 0.125))
