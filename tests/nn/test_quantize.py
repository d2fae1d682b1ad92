"""A model with weights in fewer bits: what it is made of, how near it is, and what it refuses."""

import numpy as np
import pytest

import tinyplm
from tinyplm.autograd import Tensor, no_grad
from tinyplm.errors import ConfigError, GraphError, NonFiniteError
from tinyplm.generate import generate
from tinyplm.hub import save_pretrained
from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.nn import Embedding, Head, Linear, Module
from tinyplm.nn.quantized import KINDS, Quantized
from tinyplm.objectives import CausalLM
from tinyplm.optim import AdamW

CONFIG = Gpt2Config(vocab_size=50, hidden_size=32, layers=2, heads=4, positions=16)


def tensors(module):
    """All that hold values: quantised weights and tensors."""
    found = [value for layer in layers(module) for value in vars(layer).values()]
    return [value for value in found if isinstance(value, Quantized | Tensor)]


def layers(module):
    """A module and all within it."""
    yield module
    for value in vars(module).values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, Module):
                yield from layers(part)


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_are_quantised_and_nothing_else_is(kind, rng):
    model = Gpt2(CONFIG, rng=rng)
    before = {name: a.copy() for name, a in model.arrays().items()}
    small = tinyplm.quantize(model, kind)
    assert small.head.weight is small.token_embedding.weight
    found = {id(t): t for t in tensors(small)}.values()
    assert sum(isinstance(t, Quantized) for t in found) == 1 + 4 * CONFIG.layers
    assert {t.ndim for t in found if isinstance(t, Tensor)} == {1, 2}  # the 2 is of positions
    assert isinstance(small.position_embedding.weight, Tensor)
    for name, a in model.arrays().items():
        np.testing.assert_array_equal(a, before[name])
    for name, part in vars(model.norm).items():
        if isinstance(part, Tensor):
            assert not np.shares_memory(part.array, getattr(small.norm, name).array)


def bound(weight, kind):
    """How far a weight may be from what it was."""
    if kind == "bfloat16":
        return 2.0**-8 * np.abs(weight)
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    return np.broadcast_to(step * (0.5 + 127 * 2.0**-23), weight.shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 8, 30])
def test_a_layer_errs_by_no_more_than_its_weights_do(kind, rows, rng):
    layer = Linear(24, 40, rng=rng)
    x = rng.standard_normal((rows, 24)).astype(np.float32)
    weight = layer.weight.array.astype(np.float64)
    allowed = np.abs(x) @ bound(weight.T, kind).T
    with no_grad():
        found = tinyplm.quantize(layer, kind)(Tensor(x)).array
    error = np.abs(found - (x.astype(np.float64) @ weight + layer.bias.array))
    assert (error <= allowed + 24 * 2.0**-24 * (np.abs(x) @ np.abs(weight))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_gives_the_rows_that_its_head_multiplies_by(kind, rng):
    class Tied(Module):
        def __init__(self):
            self.table = Embedding(30, 8, rng=rng)
            self.head = Head(self.table.weight)

    small = tinyplm.quantize(Tied(), kind)
    rows = small.table(np.array([[3, 29], [0, 3]])).array
    np.testing.assert_array_equal(rows, small.head.matrix().array[[[3, 29], [0, 3]]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_model_is_the_model_of_its_own_weights(kind, rng):
    """Everything but the rounding of weights is as it was, with and without a cache."""
    small, same = tinyplm.quantize(Gpt2(CONFIG, rng=rng), kind), Gpt2(CONFIG, rng=rng)
    for ours, theirs in zip(layers(small), layers(same), strict=True):
        for name, value in vars(ours).items():
            if isinstance(value, Quantized):
                matrix = value.matrix().array
                value = Tensor(matrix.T if isinstance(ours, Linear) else matrix)
            if isinstance(value, Tensor):
                getattr(theirs, name).replace(value.array)
    prompt = rng.integers(0, 50, (3, 5))
    made = generate(small, prompt, max_new_tokens=9)
    np.testing.assert_array_equal(made, generate(same, prompt, max_new_tokens=9))
    np.testing.assert_array_equal(made, generate(small, prompt, max_new_tokens=9, use_cache=False))
    np.testing.assert_allclose(small(made).array, same(made).array, rtol=0, atol=2e-5)


def test_training_and_saving_a_quantised_model_are_refused(rng, tmp_path):
    model = Gpt2(CONFIG, rng=rng)
    small = tinyplm.quantize(model)
    with pytest.raises(GraphError, match="int8: it can write and be evaluated, but not be trained"):
        AdamW(small.named_parameters())
    with pytest.raises(GraphError, match="saved"):
        save_pretrained(small, tmp_path)
    with pytest.raises(GraphError, match="not be trained"):
        small.load(model.arrays())
    with pytest.raises(GraphError, match="not be trained"):
        small.blocks[0].attention.project_in(Tensor(np.ones((2, 32), "f"), requires_grad=True))
    ids = rng.integers(0, 50, (2, 9))
    loss = CausalLM().loss(small, CausalLM().prepare({"input_ids": ids}, rng=rng))
    with pytest.raises(GraphError):
        loss.backward()


def test_what_cannot_be_quantised_is_refused_in_words(rng):
    model = Gpt2(CONFIG, rng=rng)
    with pytest.raises(ConfigError, match="Known: int8, bfloat16"):
        tinyplm.quantize(model, "int4")
    with pytest.raises(ConfigError, match="are int8 already"):
        tinyplm.quantize(tinyplm.quantize(model), "bfloat16")
    model.blocks[1].feed_forward.expand.weight.data[3, 4] = np.nan
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        tinyplm.quantize(model)
