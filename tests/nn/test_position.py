"""Relative positions: the published bucket edges, biases that see differences only, and Shaw's keys and values."""

import math

import numpy as np
import pytest

import tinyplm
from tinyplm import Tensor, ops
from tinyplm.nn import ClippedPositions, CrossAttention, RelativeAttention, RelativeBias
from tinyplm.nn.position import buckets_of

# First distance of each bucket, of 32 up to 128; a direction's last one goes on for ever.
BOTH = [*range(9), 12, 16, 23, 32, 46, 64, 91]
CAUSAL = [*range(17), 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]


def edges(found):
    """Where each bucket begins, which must come in order."""
    assert (np.diff(found) >= 0).all()
    return [int(np.argmax(found == b)) for b in range(found.max() + 1)]


def test_bucket_edges_are_those_of_the_published_models():
    far = np.arange(5_000)
    settings = {"buckets": 32, "max_distance": 128}
    before = buckets_of(-far, bidirectional=True, **settings)
    assert edges(before) == BOTH
    after = buckets_of(far, bidirectional=True, **settings)
    np.testing.assert_array_equal(after[1:], before[1:] + 16)
    assert after[0] == 0
    assert edges(buckets_of(-far, bidirectional=False, **settings)) == CAUSAL
    assert not buckets_of(far, bidirectional=False, **settings).any()


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 5), (1, 6), (3, 9)])
def test_a_bias_is_its_bucket_s_number_for_each_head(bidirectional, queries, keys):
    layer = RelativeBias(
        8, 3, max_distance=6, bidirectional=bidirectional, rng=np.random.default_rng(0)
    )
    bias, table = layer(queries, keys).array, layer.table.array
    assert bias.shape == (1, 3, queries, keys)
    for t in range(queries):
        for s in range(keys):
            difference = np.array([s - (keys - queries + t)])
            bucket = buckets_of(difference, buckets=8, max_distance=6, bidirectional=bidirectional)
            np.testing.assert_array_equal(bias[0, :, t, s], table[bucket[0]])


def test_a_bias_depends_on_the_difference_of_positions_only():
    layer = RelativeBias(32, 2, max_distance=128, bidirectional=True, rng=np.random.default_rng(0))
    bias = layer(40, 40).array[0]
    np.testing.assert_array_equal(bias[:, 1:, 1:], bias[:, :-1, :-1])
    np.testing.assert_array_equal(layer(10, 40).array[0], bias[:, 30:])


def test_the_gradient_of_the_table_is_its_derivative():
    layer = RelativeBias(8, 2, max_distance=6, bidirectional=True, rng=np.random.default_rng(0))
    layer.load({"table": np.random.default_rng(1).standard_normal((8, 2))})
    rng = np.random.default_rng(2)
    q, k, v = (Tensor(rng.standard_normal((3, 2, 9, 4))) for _ in range(3))
    weights = rng.standard_normal((3, 2, 9, 4))

    def loss():
        return (ops.attention(q, k, v, layer(9, 9), scale=1.0) * weights).sum()

    found = tinyplm.check_grad(loss, wrt=[layer.table])
    assert found.derivatives >= 1


def test_clipped_positions_share_the_rows_at_the_limit():
    layer = ClippedPositions(2, 3, rng=np.random.default_rng(0))
    keys, values = (a.array for a in layer(4, 6))
    assert keys.shape == values.shape == (4, 6, 3)
    for t in range(4):
        for s in range(6):
            row = max(-2, min(2, s - (t + 2))) + 2
            np.testing.assert_array_equal(keys[t, s], layer.keys.array[row])
            np.testing.assert_array_equal(values[t, s], layer.values.array[row])


def relative_attention(seed=0):
    layer = RelativeAttention(6, 2, limit=2, rng=np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    layer.load({k: rng.standard_normal(a.shape) for k, a in layer.arrays().items()})
    return layer


@pytest.mark.parametrize("causal", [True, False])
def test_attention_with_relative_keys_and_values_equals_a_loop(causal):
    layer = relative_attention()
    w = layer.arrays()
    x = np.random.default_rng(1).standard_normal((2, 5, 6))
    real = np.array([[True] * 5, [True, True, True, False, False]])
    y = layer(Tensor(x), causal=causal, key_padding=real).array
    for b in range(2):
        qkv = x[b] @ w["project_in.weight"] + w["project_in.bias"]
        mixed = np.zeros((5, 6))
        for h in range(2):
            q, k, v = (qkv[:, i * 6 + h * 3 : i * 6 + h * 3 + 3] for i in range(3))
            for t in range(5):
                seen = [s for s in range(5) if real[b, s] and (s <= t or not causal)]
                rows = {s: max(-2, min(2, s - t)) + 2 for s in seen}
                e = {
                    s: math.exp(q[t] @ (k[s] + w["positions.keys"][rows[s]]) / math.sqrt(3))
                    for s in seen
                }
                for s in seen:
                    value = v[s] + w["positions.values"][rows[s]]
                    mixed[t, h * 3 : h * 3 + 3] += e[s] / sum(e.values()) * value
        expected = mixed @ w["project_out.weight"] + w["project_out.bias"]
        np.testing.assert_allclose(y[b], expected, rtol=1e-10, atol=1e-10)


def test_gradients_reach_the_tables_of_keys_and_values():
    layer = relative_attention()
    x = Tensor(np.random.default_rng(1).standard_normal((2, 5, 6)))
    weights = np.random.default_rng(2).standard_normal((2, 5, 6))
    tinyplm.check_grad(lambda: (layer(x, causal=False) * weights).sum(), wrt=layer.parameters())


def test_cross_attention_equals_a_loop_with_heads_of_any_width():
    layer = CrossAttention(6, 2, head_size=5, bias=False, scale=1.0, rng=np.random.default_rng(0))
    rng = np.random.default_rng(0)
    layer.load({k: 0.5 * rng.standard_normal(a.shape) for k, a in layer.arrays().items()})
    w = layer.arrays()
    x, memory = rng.standard_normal((2, 3, 6)), rng.standard_normal((2, 4, 6))
    real = np.array([[True] * 4, [False, True, True, False]])
    y = layer(Tensor(x), Tensor(memory), key_padding=real).array
    for b in range(2):
        q, kv = x[b] @ w["project_query.weight"], memory[b] @ w["project_memory.weight"]
        mixed = np.zeros((3, 10))
        for h in range(2):
            here, values = slice(h * 5, h * 5 + 5), slice(10 + h * 5, 15 + h * 5)
            for t in range(3):
                e = [math.exp(q[t, here] @ kv[s, here]) * real[b, s] for s in range(4)]
                for s in range(4):
                    mixed[t, here] += e[s] / sum(e) * kv[s, values]
        np.testing.assert_allclose(y[b], mixed @ w["project_out.weight"], rtol=1e-10, atol=1e-12)
