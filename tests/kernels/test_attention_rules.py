"""Windows, biases by difference and dropout: compiled variants do what the definition says, and Philox is Philox."""

import numpy as np
import pytest

from tinyplm.kernels.attention import Rules, attention_forward, attention_pullback, by_difference
from tinyplm.kernels.philox import kept, philox, threshold

LOW = (1 << 32) - 1
ANSWERS = [  # (Salmon et al., 2011), as their library prints them
    ((0,) * 4, (0,) * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((LOW,) * 4, (LOW,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), ANSWERS)
def test_philox_gives_the_published_answers(counter, key, expected):
    assert " ".join(f"{word:08x}" for word in philox(*counter, *key)) == expected
    words = philox(*(np.array([word]) for word in counter), *key)
    assert " ".join(f"{int(word[0]):08x}" for word in words) == expected


@pytest.mark.parametrize("keys", [1, 8, 31, 33, 100])
def test_a_decision_is_sixteen_bits_of_its_place(keys):
    seed, bar = 0x1234_5678_9ABC_DEF0, threshold(0.3)
    heads, queries = np.arange(3)[:, None], np.arange(5)[None]
    found = kept(seed, heads, queries, keys, bar)
    assert found.shape == (3, 5, keys)
    for head, query, key in np.ndindex(found.shape):
        quad = 4 * (key // 32) + key % 8 // 2
        word = philox(head, query, quad, 0, seed & LOW, seed >> 32)[key % 32 // 8]
        assert found[head, query, key] == ((word >> 16 * (key % 2)) & 0xFFFF >= bar)


@pytest.mark.parametrize("rate", [0.0, 1e-6, 0.1, 0.5, 0.999, 1.0])
def test_the_threshold_is_the_rate_to_16_bits(rate):
    assert 0 <= threshold(rate) < 1 << 16
    assert abs(threshold(rate) / 2**16 - rate) <= 2.0**-17 + (rate == 1) * 2.0**-16


@pytest.mark.parametrize(("T", "S"), [(4, 4), (1, 5), (5, 1), (3, 7), (7, 3)])
def test_pairs_add_up_by_difference(T, S):
    g = np.random.default_rng(0).standard_normal((2, T, S))
    expected = np.zeros((2, S + T - 1))
    for h, t, s in np.ndindex(g.shape):
        expected[h, s - t + T - 1] += g[h, t, s]
    np.testing.assert_allclose(by_difference(g), expected, rtol=1e-13, atol=1e-13)


SEEN = np.random.default_rng(1).random((1, 1, 150, 180)) < 0.7
RULES = {
    "mask, and a scale below 0": {"mask": SEEN, "scale": -0.5},
    "window, and a scale of 0": {"window": 40, "scale": 0.0},
    "window": {"window": 40},
    "window of one": {"window": 1, "causal": True},
    "causal window": {"window": 70, "causal": True},
    "dropout": {"rate": 0.3, "seed": 987654321987654321},
    "all of it": {"rate": 0.3, "seed": 5, "window": 33, "causal": True},
}


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_compiled_attention_follows_the_rules(name, keep, table):
    """Of more queries than a tile has, and too many scores to be kept by default."""
    rng = np.random.default_rng(0)
    B, H, T, S = (2, 3, 150, 180) if keep else (8, 6, 150, 180)
    q, k, v = (rng.standard_normal((B, H, n, 4)) for n in (T, S, S))
    g = rng.standard_normal((B, H, T, 4))
    bias = rng.standard_normal((H, S + T - 1)) if table else None
    rules = Rules(**({"causal": False, "mask": None, "scale": 0.5} | RULES[name]))
    results = []
    for variant in ("reference", "numba"):
        into = tuple(np.empty_like(a) for a in (q, k, v))
        with attention_forward.using(variant), attention_pullback.using(variant):
            found = attention_forward(q, k, v, bias, rules, keep)
            g_bias = attention_pullback(g, None, q, k, v, bias, rules, found, into)
        assert (found.p is not None) == keep
        results.append((found.y, *into, *([] if bias is None else [g_bias])))
    for expected, result in zip(*results, strict=True):
        assert expected.shape == result.shape
        np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-10)
