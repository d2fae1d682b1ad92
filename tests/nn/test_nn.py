"""Layers and how their parameters are found."""

import numpy as np
import pytest

import tinyplm
from tinyplm import Tensor
from tinyplm.errors import ShapeError
from tinyplm.nn import (
    ACTIVATIONS,
    Cache,
    Embedding,
    FeedForward,
    Head,
    LayerNorm,
    Linear,
    Module,
    PreNormBlock,
    RMSNorm,
    SelfAttention,
    init,
)


class Pair(Module):
    def __init__(self, shared):
        self.first = Linear(2, 3, rng=np.random.default_rng(0))
        self.many = [Embedding(4, 2, rng=np.random.default_rng(1)), shared]
        self.again = shared
        self.number = 3
        self.alone = Tensor(np.ones(5, "float32"), requires_grad=True)


def in_float64(module, rng):
    module.load({k: 0.5 * rng.standard_normal(a.shape) for k, a in module.arrays().items()})
    return module


def test_parameters_are_found_in_the_order_written_and_shared_ones_once():
    shared = LayerNorm(6, rng=np.random.default_rng(0))
    pair = Pair(shared)
    assert list(pair.named_parameters()) == [
        "first.weight", "first.bias", "many.0.weight", "many.1.gain", "many.1.bias", "alone",
    ]  # fmt: skip
    assert pair.named_parameters()["many.1.gain"] is shared.gain
    assert pair.parameter_count == 6 + 3 + 8 + 6 + 6 + 5
    assert [id(p) for p in pair.parameters()] == [id(p) for p in pair.named_parameters().values()]


def test_arrays_are_to_be_read_and_gradients_can_be_cleared():
    pair = Pair(LayerNorm(6, rng=np.random.default_rng(0)))
    assert all(not a.flags.writeable for a in pair.arrays().values())
    pair.alone.sum().backward()
    assert pair.alone.grad is not None
    pair.clear_gradients()
    assert pair.alone.grad is None


def test_loading_takes_the_values_and_forgets_gradients(rng):
    pair = Pair(LayerNorm(6, rng=rng))
    pair.alone.sum().backward()
    new = {k: rng.standard_normal(a.shape) for k, a in pair.arrays().items()}
    pair.load(new)
    for name, array in pair.arrays().items():
        np.testing.assert_array_equal(array, new[name])
        assert array.dtype == np.float64
    assert pair.alone.grad is None


def test_placeholders_have_shapes_take_no_memory_and_cannot_be_written():
    linear = Linear(50_000, 50_000, rng=None)
    assert linear.parameter_count == 50_000 * 50_001
    assert linear.weight.array.strides == (0, 0)
    with pytest.raises(ValueError, match="read-only"):
        linear.weight.write()[...] = 1


def test_starting_values(rng):
    np.testing.assert_array_equal(init.zeros(rng, (3,)).array, np.zeros(3, "float32"))
    np.testing.assert_array_equal(init.ones(rng, (2, 2)).array, np.ones((2, 2), "float32"))
    drawn = init.normal(rng, (200, 300), 0.5)
    assert drawn.dtype == np.float32
    assert drawn.requires_grad
    assert abs(drawn.array.std() / 0.5 - 1) < 6 / np.sqrt(2 * 60_000)


def test_linear_is_a_product_and_a_sum_over_any_leading_axes(rng):
    linear = in_float64(Linear(3, 4, rng=rng), rng)
    for shape in [(3,), (2, 3), (2, 1, 5, 3), (0, 3)]:
        x = rng.standard_normal(shape)
        expected = np.einsum("...i,ij->...j", x, linear.weight.numpy()) + linear.bias.numpy()
        np.testing.assert_allclose(linear(Tensor(x)).array, expected, rtol=0, atol=1e-14)


def test_embedding_gives_rows(rng):
    table = Embedding(7, 3, rng=rng)
    ids = np.array([[6, 0], [6, 6]])
    np.testing.assert_array_equal(table(ids).array, table.weight.array[ids])


def test_a_head_multiplies_by_rows_and_adds_its_bias(rng):
    weight, bias = Tensor(rng.standard_normal((5, 3))), Tensor(rng.standard_normal(5))
    x = rng.standard_normal((2, 4, 3))
    np.testing.assert_allclose(Head(weight)(Tensor(x)).array, x @ weight.array.T, atol=1e-14)
    np.testing.assert_allclose(
        Head(weight, bias)(Tensor(x)).array, x @ weight.array.T + bias.array, atol=1e-14
    )


def test_norms_scale_the_last_axis(rng):
    x = rng.standard_normal((4, 6)) * 3 + 2
    layer = in_float64(LayerNorm(6, eps=0.01, rng=rng), rng)
    root = in_float64(RMSNorm(6, eps=0.02, rng=rng), rng)
    for row, ours, ours_root in zip(x, layer(Tensor(x)).array, root(Tensor(x)).array, strict=True):
        normal = (row - row.mean()) / np.sqrt(row.var() + 0.01)
        np.testing.assert_allclose(ours, normal * layer.gain.array + layer.bias.array, atol=1e-13)
        scale = np.sqrt((row**2).mean() + 0.02)
        np.testing.assert_allclose(ours_root, row / scale * root.gain.array, atol=1e-13)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_feed_forward_widens_bends_and_narrows_with_a_right_gradient(rng, activation):
    bend = ACTIVATIONS[activation]
    block = in_float64(FeedForward(3, 5, activation=bend, rng=rng), rng)
    x = rng.standard_normal((2, 3))
    wide = x @ block.expand.weight.array + block.expand.bias.array
    expected = bend(Tensor(wide)).array @ block.contract.weight.array + block.contract.bias.array
    np.testing.assert_allclose(block(Tensor(x)).array, expected, rtol=0, atol=1e-13)
    tinyplm.check_grad(block, x, wrt=block.parameters())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_self_attention_equals_a_loop_over_heads_and_queries(rng, causal, scale):
    layer = in_float64(SelfAttention(6, 3, scale=scale, rng=rng), rng)
    x = rng.standard_normal((2, 4, 6))
    padding = np.array([[True] * 4, [True, True, False, True]])
    expected = np.zeros((2, 4, 6))
    for b in range(2):
        qkv = x[b] @ layer.project_in.weight.array + layer.project_in.bias.array
        for t in range(4):
            for h in range(3):
                q, at = qkv[t, 2 * h : 2 * h + 2], slice(2 * h, 2 * h + 2)
                seen = [s for s in range(4) if padding[b, s] and (s <= t or not causal)]
                scores = np.array([q @ qkv[s, 6:12][at] for s in seen])
                p = np.exp(scores * (scale or 1 / np.sqrt(2)))
                p /= p.sum()
                expected[b, t, at] = sum(p[i] * qkv[s, 12:18][at] for i, s in enumerate(seen))
    expected = expected @ layer.project_out.weight.array + layer.project_out.bias.array
    got = layer(Tensor(x), causal=causal, key_padding=padding)
    np.testing.assert_allclose(got.array, expected, rtol=0, atol=1e-13)
    tinyplm.check_grad(
        lambda x: layer(x, causal=causal, key_padding=padding), x, wrt=layer.parameters()
    )


@pytest.mark.parametrize("Norm", [LayerNorm, RMSNorm])
def test_pre_norm_blocks_add_their_branches_to_what_came_in(rng, Norm):
    norm_1, norm_2, last = (in_float64(Norm(4, rng=rng), rng) for _ in range(3))
    attention = in_float64(SelfAttention(4, 2, rng=rng), rng)
    forward = in_float64(FeedForward(4, 6, activation=ACTIVATIONS["relu"], rng=rng), rng)
    block = PreNormBlock(attention, forward, norm_1, norm_2, dropout=0.5)

    def stack(x, seed=None):
        drop, branch = None if seed is None else np.random.default_rng(seed), None
        for _ in range(2):
            x, branch = block(x, branch, causal=True, rng=drop)
        return last.add(x, branch)

    x = Tensor(rng.standard_normal((1, 3, 4)), requires_grad=True)
    expected = x
    for _ in range(2):
        expected = expected + attention(norm_1(expected), causal=True)
        expected = expected + forward(norm_2(expected))
    whole, normalised = stack(x)
    np.testing.assert_allclose(whole.array, expected.array, rtol=1e-14)
    np.testing.assert_allclose(normalised.array, last(expected).array, rtol=1e-13)
    tinyplm.check_grad(lambda x: stack(x)[1], x, wrt=[*block.parameters(), *last.parameters()])
    np.testing.assert_array_equal(stack(x, 0)[0].array, stack(x, 0)[0].array)
    assert not np.array_equal(stack(x, 0)[0].array, expected.array)


def test_a_cache_hands_back_all_that_was_stored(rng):
    cache = Cache(2, (1, 2, 5, 3), np.dtype("float64"), np.zeros(1))
    assert (cache.capacity, cache.length) == (5, 0)
    first, second = rng.standard_normal((1, 2, 3, 3)), rng.standard_normal((1, 2, 2, 3))
    for layer in range(2):
        keys, values = cache.extend(layer, first + layer, first - layer)
        np.testing.assert_array_equal(keys, first + layer)
        np.testing.assert_array_equal(values, first - layer)
    cache.length = 3
    keys, _ = cache.extend(1, second, second)
    np.testing.assert_array_equal(keys, np.concatenate([first + 1, second], axis=2))
    cache.length = 5
    with pytest.raises(ShapeError, match="room for 5 positions, 5 are filled and 2 more"):
        cache.extend(0, second, second)
