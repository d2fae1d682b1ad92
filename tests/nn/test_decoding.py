"""The short way through blocks gives what calling them gives."""

import numpy as np
import pytest

import tinyplm.models.gpt2 as gpt2
from tinyplm import no_grad
from tinyplm.autograd import Tensor
from tinyplm.errors import ShapeError
from tinyplm.generate import beam_search, generate
from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.nn import decoding
from tinyplm.nn.attention import Inspection


def model_of(rng, dtype="float32", **changed):
    settings = {"vocab_size": 40, "hidden_size": 24, "layers": 2, "heads": 3, "positions": 20}
    model = Gpt2(Gpt2Config(**settings | changed), rng=rng)
    model.load({n: (4 * a).astype(dtype) for n, a in model.arrays().items()})
    return model


@pytest.fixture
def counted(monkeypatch):
    """How often the short way was taken."""
    seen, real = [], decoding.decode

    def counting(*arguments):
        made = real(*arguments)
        seen.append(made is not None)
        return made

    monkeypatch.setattr(gpt2, "decode", counting)
    return seen


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu", "relu"])
@pytest.mark.parametrize("changed", [{}, {"scaled_by_depth": True}, {"scaled": False}], ids=str)
@pytest.mark.parametrize(("rows", "pieces"), [(1, [3, 1, 1, 4]), (4, [3, 1, 2]), (8, [1, 1, 1])])
def test_it_equals_calling_the_blocks(rng, counted, activation, changed, rows, pieces):
    model = model_of(rng, "float64", activation=activation, **changed)
    ids = rng.integers(0, 40, (rows, sum(pieces)))
    expected = model(ids).array
    cache, start = model.new_cache(rows, 12), 0
    with no_grad():
        for count in pieces:
            found = model(ids[:, start : start + count], cache=cache).array
            np.testing.assert_allclose(
                found, expected[:, start : start + count], rtol=0, atol=1e-12
            )
            start += count
    assert counted == [rows * count <= 8 for count in pieces]


def test_padding_on_the_left_is_not_seen(rng, counted):
    model = model_of(rng, "float64")
    ids, mask = rng.integers(0, 40, (2, 7)), np.ones((2, 7), int)
    mask[1, :3] = 0
    places = np.maximum(mask.cumsum(axis=1) - 1, 0)
    expected = model(ids, attention_mask=mask, position_ids=places).array
    cache = model.new_cache(2, 7)
    with no_grad():
        for here in (slice(0, 4), slice(4, 6), slice(6, 7)):
            found = model(
                ids[:, here],
                attention_mask=mask[:, : here.stop],
                position_ids=places[:, here],
                cache=cache,
            ).array
            real = mask[:, here] == 1
            np.testing.assert_allclose(found[real], expected[:, here][real], rtol=0, atol=1e-12)
    assert all(counted)


def test_it_leaves_everything_unusual_to_the_blocks(rng, counted):
    model, ids = model_of(rng), rng.integers(0, 40, (1, 2))
    with no_grad():
        looked = Inspection()
        model(ids, cache=model.new_cache(1, 4), inspection=looked)
        model(ids, cache=model.new_cache(1, 4), rng=rng)
        assert counted == []
        assert len(looked.attentions) == 2
        model(np.tile(ids, (5, 1)), cache=model.new_cache(5, 4))
        assert counted == [False]
        half = model_of(rng, "float16")
        half(ids, cache=half.new_cache(1, 4))
        assert counted == [False, False]

        class Other(type(model.blocks[0].norm_1)):
            pass

        model.blocks[1].norm_1.__class__ = Other
        model(ids, cache=model.new_cache(1, 4))
        assert counted == [False, False, False]


def test_a_full_cache_refuses_before_anything_is_stored(rng):
    model, ids = model_of(rng), rng.integers(0, 40, (1, 3))
    cache = model.new_cache(1, 4)
    with no_grad():
        model(ids, cache=cache)
        before = [keys.copy() for keys in cache.keys]
        with pytest.raises(ShapeError, match=r"room for 4 positions, 3 are filled and 2 more"):
            model(ids[:, :2], cache=cache)
        np.testing.assert_array_equal(before, cache.keys)


@pytest.mark.parametrize("rows", [1, 3])
def test_text_is_the_same_with_a_cache_and_without(rng, counted, rows):
    model = model_of(rng)
    prompt = rng.integers(0, 40, (rows, 4))
    with_cache = generate(model, prompt, max_new_tokens=12)
    np.testing.assert_array_equal(
        with_cache, generate(model, prompt, max_new_tokens=12, use_cache=False)
    )
    assert sum(counted) >= 11
    beams = beam_search(model, prompt[:1], num_beams=3, max_new_tokens=6)
    plain = beam_search(model, prompt[:1], num_beams=3, max_new_tokens=6, use_cache=False)
    np.testing.assert_array_equal(beams.ids, plain.ids)
    np.testing.assert_allclose(beams.scores, plain.scores, rtol=1e-5)


def test_nothing_is_skipped_when_a_gradient_is_wanted(rng):
    model = model_of(rng)
    x = Tensor(rng.standard_normal((1, 1, 24)).astype("f"), requires_grad=True)
    assert decoding.decode(model.blocks, x, model.new_cache(1, 4), None) is None


def test_reordering_moves_only_what_changes_place(rng):
    model = model_of(rng, "float64")
    ids = rng.integers(0, 40, (3, 6))
    cache = model.new_cache(3, 6)
    with no_grad():
        model(ids[:, :5], cache=cache)
        for rows in ([0, 0, 2], [2, 1, 0]):
            cache.reorder(np.array(rows))
            ids = ids[rows]
        found = model(ids[:, 5:], cache=cache).array
    np.testing.assert_allclose(found, model(ids).array[:, 5:], rtol=0, atol=1e-12)
