"""Recurrent language models: states that go on, tied weights, text written."""

import numpy as np
import pytest

from tinyplm import Tensor, no_grad
from tinyplm.errors import ConfigError, GraphError, ShapeError
from tinyplm.generate import beam_search, generate
from tinyplm.models.recurrent_lm import RecurrentConfig, RecurrentLM
from tinyplm.nn import CELLS, Linear
from tinyplm.objectives import CausalLM

cells = pytest.mark.parametrize("cell", CELLS)


def model(cell="lstm", *, dtype="float64", **settings):
    rates = {"dropout": 0.0, "embedding_dropout": 0.0}
    config = RecurrentConfig(
        **({"cell": cell, "vocab_size": 19, "hidden_size": 10} | rates | settings)
    )
    made = RecurrentLM(config, rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    made.load(
        {
            k: (a + 0.3 * rng.standard_normal(a.shape)).astype(dtype)
            for k, a in made.arrays().items()
        }
    )
    return made


@cells
@pytest.mark.parametrize("cuts", [[4], [1, 2, 5], [8]], ids=str)
def test_reading_on_from_a_state_equals_reading_at_once(cell, cuts, rng):
    lm, ids = model(cell), rng.integers(19, size=(3, 9))
    whole, after = lm.read(ids)
    state, found = None, []
    for part in np.split(ids, cuts, axis=1):
        hidden, state = lm.read(part, state)
        found.append(hidden.array)
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole.array, rtol=0, atol=1e-13)
    for a, b in zip(sum(state, ()), sum(after, ()), strict=True):
        np.testing.assert_allclose(a.array, b.array, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(lm(ids).array, whole.array)


@cells
def test_a_state_goes_on_behind_padding_as_if_there_were_none(cell, rng):
    lm, ids = model(cell), rng.integers(19, size=(1, 5))
    _, plain = lm.read(ids)
    padded = np.concatenate([[[7, 7]], ids[:, :3], [[7]], ids[:, 3:], [[7, 7, 7]]], axis=1)
    mask = np.array([[0, 0, 1, 1, 1, 0, 1, 1, 0, 0, 0]])
    _, state = lm.read(padded, attention_mask=mask)
    for a, b in zip(sum(state, ()), sum(plain, ()), strict=True):
        np.testing.assert_allclose(a.array, b.array, rtol=0, atol=1e-14)


def test_a_gradient_flows_through_a_state_and_stops_where_it_is_detached(rng):
    lm, ids = model(), np.arange(12)[None]
    for cut, reached in ((False, True), (True, False)):
        lm.clear_gradients()
        _, state = lm.read(ids[:, :6])
        if cut:
            state = [tuple(part.detach() for part in layer) for layer in state]
        lm.read(ids[:, 6:], state)[0].sum().backward()
        rows = lm.token_embedding.weight.grad.any(axis=1)
        assert rows[6:12].all()
        assert rows[:6].all() == rows[:6].any() == reached


def test_tied_weights_are_one_parameter_behind_a_projection_where_widths_differ():
    same, narrow = model(tied=True), model(tied=True, embedding_size=6)
    for lm in (same, narrow):
        assert lm.head.weight is lm.token_embedding.weight
        assert "head.weight" not in lm.named_parameters()
    assert same.head.before is None
    assert isinstance(narrow.head.before, Linear)
    assert narrow.head.before.weight.shape == (10, 6)
    assert model().head.weight is not model().token_embedding.weight


def test_dropout_is_on_embeddings_between_layers_and_on_top_but_not_in_time(rng):
    ids = rng.integers(19, size=(2, 7))
    for name in ("dropout", "embedding_dropout"):
        lm = model(**{name: 0.5}, layers=1)
        dropped = lm(ids, rng=np.random.default_rng(0)).array
        assert not np.array_equal(dropped, lm(ids).array)
        assert (dropped == 0).any() == (name == "dropout")
    lm = model(dropout=0.5, layers=1)
    _, state = lm.read(ids, rng=np.random.default_rng(0))
    _, plain = lm.read(ids)
    np.testing.assert_array_equal(state[0][1].array, plain[0][1].array)


@cells
def test_greedy_text_is_that_of_a_loop_over_logits(cell, rng):
    lm, prompt = model(cell), rng.integers(19, size=(2, 4))
    ids = prompt
    for _ in range(6):
        logits = lm.head(lm(ids)).array[:, -1]
        ids = np.concatenate([ids, logits.argmax(axis=-1)[:, None]], axis=1)
    for use_cache in (True, False):
        found = generate(lm, prompt, max_new_tokens=6, use_cache=use_cache)
        np.testing.assert_array_equal(found, ids)


@cells
def test_prompts_of_other_lengths_beside_it_change_no_text(cell, rng):
    lm = model(cell)
    prompts = [rng.integers(1, 19, size=n) for n in (5, 2, 3)]
    ids, mask = np.zeros((3, 5), int), np.zeros((3, 5), int)
    for row, prompt in enumerate(prompts):
        ids[row, 5 - len(prompt) :], mask[row, 5 - len(prompt) :] = prompt, 1
    for beams in (1, 3):
        together = generate(lm, ids, attention_mask=mask, max_new_tokens=5, num_beams=beams)
        for row, prompt in enumerate(prompts):
            alone = generate(lm, prompt[None], max_new_tokens=5, num_beams=beams)
            np.testing.assert_array_equal(together[row, 5:], alone[0, len(prompt) :])


def test_a_beam_as_wide_as_everything_finds_the_likeliest_text():
    lm = model("gru", vocab_size=5)
    prompt = np.array([[1, 3]])
    best = (-np.inf, None)
    for a in range(5):
        for b in range(5):
            for c in range(5):
                ids = np.array([[1, 3, a, b, c]])
                logits = lm.head(lm(ids)).array[0]
                p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
                best = max(best, (p[1, a] + p[2, b] + p[3, c], (a, b, c)))
    found = beam_search(
        lm, prompt, num_beams=25, max_new_tokens=3, length_penalty=0.0, early_stopping="never"
    )
    assert tuple(found.ids[0, 2:]) == best[1]
    assert abs(found.scores[0] - best[0]) < 1e-5


def test_no_text_is_too_long():
    lm = model(dtype="float32")
    ids = np.zeros((1, 3000), int)
    assert np.isfinite(lm(ids).array).all()
    assert lm.config.positions is None


def test_a_cache_wants_no_gradients_and_a_mask_that_counts_what_it_has_read(rng):
    lm, ids = model(), rng.integers(19, size=(2, 5))
    cache = lm.new_cache(2, 10)
    with pytest.raises(GraphError, match="no_grad"):
        lm(ids, cache=cache)
    with no_grad():
        lm(ids, cache=cache)
        with pytest.raises(ShapeError, match=r"shape \(2, 2\), expected \(2, 7\)"):
            lm(ids[:, :2], attention_mask=np.ones((2, 2)), cache=cache)
        assert cache.length == 5
        lm(ids[:, :2], attention_mask=np.ones((2, 7)), cache=cache)
    assert cache.length == 7


def test_a_state_that_does_not_fit_is_refused(rng):
    lm = model()
    _, state = lm.read(rng.integers(19, size=(2, 4)))
    with pytest.raises(ShapeError, match="batch of 3"):
        lm(rng.integers(19, size=(3, 4)), state=state)
    lm(rng.integers(19, size=(2, 4)), state=state)


def test_plain_windows_train_it_too(rng):
    lm = model()
    batch = CausalLM().prepare({"input_ids": rng.integers(19, size=(4, 9))}, rng=rng)
    before = CausalLM().loss(lm, batch)
    before.backward()
    for parameter in lm.parameters():
        parameter.data -= 0.3 * parameter.grad
    assert CausalLM().loss(lm, batch).item() < before.item()


def test_settings_say_what_they_are():
    with pytest.raises(ConfigError, match=r"cell is 'GRU'; known: rnn, lstm, gru"):
        RecurrentConfig(cell="GRU")
    assert RecurrentConfig(hidden_size=7).embedding_size == 7
    assert isinstance(model(), RecurrentLM)
    assert isinstance(model()(np.array([[1]])), Tensor)
