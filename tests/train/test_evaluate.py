"""Scores of held-out text: every token once, whatever the window."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyplm import Tensor
from tinyplm.errors import DataError
from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.nn import Head, Module
from tinyplm.objectives import CausalLM
from tinyplm.text import Windows
from tinyplm.train.evaluate import (
    Score,
    count_labels,
    examine,
    score_text,
    validation_loss,
)


class Unigram(Module):
    """Predicts the same whatever came before; notes how long the texts were that it read."""

    def __init__(self, bias):
        self.head = Head(Tensor(np.zeros((len(bias), 1))), Tensor(bias))
        self.read = []

    def __call__(self, ids, **_):
        self.read.append(ids.shape)
        return Tensor(np.zeros((*ids.shape, 1)))


@given(
    length=st.integers(2, 60),
    window=st.integers(1, 25),
    part=st.integers(0, 24),
    batch=st.integers(1, 5),
)
def test_every_token_but_the_first_is_counted_once(length, window, part, batch):
    stride = 1 + part % window
    bias = np.random.default_rng(0).standard_normal(length)
    model = Unigram(bias)
    # Each token of the text is another one, and each costs another amount.
    score = score_text(
        model, np.arange(length), text_bytes=7, window=window, stride=stride, batch=batch
    )
    total = np.log(np.exp(bias).sum())
    expected = sum(total - bias[token] for token in range(1, length))
    assert score.tokens == length - 1
    assert math.isclose(score.nats * score.tokens, expected, rel_tol=1e-12)
    assert score.bytes == 7
    assert all(rows <= batch and columns <= window for rows, columns in model.read)


def gpt2():
    model = Gpt2(
        Gpt2Config(vocab_size=11, hidden_size=8, layers=1, heads=2, positions=12),
        rng=np.random.default_rng(0),
    )
    rng = np.random.default_rng(1)
    model.load({n: 0.4 * rng.standard_normal(a.shape) for n, a in model.arrays().items()})
    return model


def cost(model, text, place):
    """Minus the log-probability of the last token after the text."""
    logits = model.head(model(text[None])).array[0, -1]
    return math.log(np.exp(logits).sum()) - logits[place]


@pytest.mark.parametrize("length", [2, 7, 13, 14, 25, 40])
@pytest.mark.parametrize(
    ("window", "stride"), [(12, 6), (12, None), (12, 1), (5, 3), (1, 1), (12, 12)]
)
def test_the_score_equals_a_slow_loop(length, window, stride):
    model = gpt2()
    tokens = np.random.default_rng(2).integers(11, size=length)
    score = score_text(model, tokens, text_bytes=1, window=window, stride=stride, batch=3)
    step = stride or max(1, window // 2)
    total = 0.0
    for place in range(1, length):
        start = 0  # of the first window that reaches this token
        while start + window < place:
            start += step
        total += cost(model, tokens[start:place], tokens[place])
    assert score.tokens == length - 1
    assert math.isclose(score.nats, total / (length - 1), rel_tol=1e-12)


def test_a_stride_of_a_whole_window_gives_plain_windows():
    model = gpt2()
    tokens = np.random.default_rng(2).integers(11, size=6 * 12 + 1)
    windows = Windows(tokens, length=12, batch=4).in_order()
    plain = validation_loss(model, CausalLM(), windows, rng=np.random.default_rng(0))
    score = score_text(model, tokens, text_bytes=1, window=12, stride=12)
    assert math.isclose(score.nats, plain, rel_tol=1e-13)


def test_more_context_is_given_by_a_smaller_stride_and_batches_change_nothing():
    model = gpt2()
    tokens = np.random.default_rng(3).integers(11, size=50)
    scores = [
        score_text(model, tokens, text_bytes=1, window=12, stride=6, batch=n).nats
        for n in (1, 2, 8)
    ]
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-13)


def test_bits_per_byte_and_perplexity_are_exact():
    # Two bits a token, three bytes a token.
    score = Score(nats=2 * math.log(2), tokens=8, bytes=24)
    assert score.bits_per_byte == pytest.approx(2 / 3, rel=1e-15)
    assert score.perplexity == pytest.approx(4, rel=1e-15)
    assert Score(nats=1e4, tokens=1, bytes=1).perplexity == math.inf
    assert Score(nats=0.0, tokens=3, bytes=3).bits_per_byte == 0.0


def test_bits_per_byte_of_a_text_are_all_its_bits_over_all_its_bytes():
    bias = np.zeros(16)  # four bits a token
    tokens = np.arange(16).repeat(3)
    score = score_text(Unigram(bias), tokens, text_bytes=100, window=5)
    assert score.bits_per_byte == pytest.approx(47 * 4 / 100, rel=1e-13)
    assert score.perplexity == pytest.approx(16, rel=1e-13)


def test_the_validation_loss_weighs_batches_by_their_tokens():
    model = gpt2()
    ids = np.random.default_rng(4).integers(11, size=(5, 9))
    mask = (np.arange(9) < np.array([[9], [2], [4], [1], [7]])) * 1
    whole = {"input_ids": ids, "attention_mask": mask}
    parts = [{k: v[i:j] for k, v in whole.items()} for i, j in [(0, 1), (1, 3), (3, 4), (4, 5)]]
    one, four = (
        validation_loss(model, CausalLM(), batches, rng=np.random.default_rng(0))
        for batches in ([whole], parts)
    )
    assert math.isclose(one, four, rel_tol=1e-13)


def test_nothing_is_recorded_and_no_dropout_acts():
    model = Gpt2(
        Gpt2Config(vocab_size=11, hidden_size=8, layers=1, heads=2, positions=12, dropout=0.5),
        rng=np.random.default_rng(0),
    )
    tokens = np.arange(30) % 11
    first, again = (score_text(model, tokens, text_bytes=1, window=12).nats for _ in range(2))
    assert first == again
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("stride", [0, -1, 13])
def test_a_stride_outside_the_window_is_refused(stride):
    with pytest.raises(DataError, match=f"stride is {stride}, but it must be from 1 to .* 12"):
        score_text(gpt2(), np.arange(9), text_bytes=1, window=12, stride=stride)


def test_texts_with_nothing_to_predict_are_refused():
    for tokens in ([], [3]):
        with pytest.raises(DataError, match=f"has {len(tokens)} token"):
            score_text(gpt2(), np.array(tokens, int), text_bytes=1, window=12)
    with pytest.raises(DataError, match="nothing to predict"):
        validation_loss(gpt2(), CausalLM(), [], rng=np.random.default_rng(0))


def test_a_term_is_examined_beside_what_knows_only_how_common_labels_are():
    bias = np.log([0.5, 0.3, 0.2])
    model = Unigram(bias)
    ids = np.array([[0, 1, 1, 2], [2, 0, 0, 1]])  # labels 1 1 2, 0 0 1
    counted = count_labels(
        CausalLM(), [{"input_ids": ids}], classes=3, rng=np.random.default_rng(0)
    )
    np.testing.assert_array_equal(counted["tokens"], [2, 3, 1])
    (term,) = examine(
        model,
        CausalLM(),
        [{"input_ids": ids[:1]}, {"input_ids": ids[1:, :3]}],  # labels 1 1 2, 0 0
        rng=np.random.default_rng(0),
        counted=counted,
    ).values()
    assert term.labels == 5
    assert math.isclose(term.nats, -(2 * bias[0] + 2 * bias[1] + bias[2]) / 5, rel_tol=1e-12)
    assert term.accuracy == 2 / 5  # it always says 0
    share = np.log(np.array([3, 4, 2]) / 9)  # one more of each
    assert math.isclose(term.unigram, -(2 * share[0] + 2 * share[1] + share[2]) / 5, rel_tol=1e-12)
    assert term.unigram_accuracy == 2 / 5  # it always says 1


def test_the_validation_loss_is_without_smoothing():
    model, windows = gpt2(), [{"input_ids": np.arange(10).reshape(2, 5)}]
    plain, smooth = (
        validation_loss(model, CausalLM(smoothing=s), windows, rng=np.random.default_rng(0))
        for s in (0.0, 0.2)
    )
    assert plain == smooth
