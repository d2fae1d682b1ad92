"""Span corruption by hand, its numbers against the published ones, and its proportions over many draws."""

import itertools
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from tinyplm.errors import ConfigError
from tinyplm.objectives import SpanCorruption

SENTINELS = tuple(range(32_099, 31_999, -1))


def objective(**settings):
    return SpanCorruption(**({"sentinels": SENTINELS, "end": 1} | settings))


def prepare(ids, seed=0, mask=None, **settings):
    batch = {"input_ids": np.asarray(ids)}
    batch |= {} if mask is None else {"attention_mask": np.asarray(mask)}
    return objective(**settings).prepare(batch, rng=np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("inputs", "raw", "targets"), [(512, 568, 114), (256, 284, 58), (128, 141, 29), (64, 70, 14)]
)
def test_lengths_are_those_of_the_released_pipeline(inputs, raw, targets):
    assert objective().raw_length(inputs) == raw
    assert objective().widths(raw) == (inputs, targets)
    made = prepare(np.random.default_rng(0).integers(2, 30_000, size=(3, raw)))
    assert made["input_ids"].shape == (3, inputs)
    assert made["labels"].shape == made["decoder_input_ids"].shape == (3, targets)
    assert "attention_mask" not in made


@pytest.mark.parametrize("inputs", range(3, 200))
def test_no_longer_text_would_fit(inputs):
    raw = objective().raw_length(inputs)
    assert objective().widths(raw)[0] == inputs
    assert objective().widths(raw + 1)[0] > inputs


def test_counts_are_rounded_to_the_even_number():
    # 0.15 * 30 = 4.5 -> 4 noise tokens; 4 / 3 -> 1 span.
    assert objective().sizes(30) == (4, 1)
    assert objective(rate=0.25).sizes(18) == (4, 1)  # 4.5 -> 4
    assert objective(rate=0.25).sizes(22) == (6, 2)  # 5.5 -> 6
    assert objective(rate=0.5, span=2.0).sizes(10) == (5, 2)  # 2.5 -> 2
    assert objective().sizes(2) == (1, 1)
    assert objective(rate=0.99).sizes(5) == (4, 1)  # one stays


def restored(inputs, labels, sentinels=SENTINELS):
    """The text, put together again as a reader of the format would."""
    spans, current = {}, None
    for id in labels:
        if id in sentinels:
            current = spans.setdefault(int(id), [])
        elif id not in (1, -100):
            current.append(int(id))
    text = []
    for id in inputs:
        text += spans[int(id)] if id in sentinels else [int(id)] if id != 1 else []
    return text


@pytest.mark.parametrize("length", [2, 3, 7, 20, 70, 141])
def test_inputs_and_targets_hold_the_text_between_them(length):
    ids = np.random.default_rng(1).integers(2, 30_000, size=(5, length))
    made = prepare(ids)
    for row, inputs, labels in zip(ids, made["input_ids"], made["labels"], strict=True):
        assert restored(inputs, labels) == row.tolist()
        assert inputs[-1] == labels[-1] == 1
        noise, spans = objective().sizes(length)
        order = [i for i in inputs.tolist() if i in SENTINELS]
        assert order == list(SENTINELS[:spans])  # counting down from <extra_id_0>
        assert order == [i for i in labels.tolist() if i in SENTINELS]
        assert inputs[0] not in SENTINELS  # begins clean
        assert inputs[-2] == SENTINELS[spans - 1]  # ends with noise
        assert labels[0] == SENTINELS[0]
        assert len(labels) == noise + spans + 1


def test_the_decoder_reads_the_targets_one_later():
    made = prepare(np.arange(100, 130)[None], start=7)
    assert made["decoder_input_ids"][0, 0] == 7
    np.testing.assert_array_equal(made["decoder_input_ids"][:, 1:], made["labels"][:, :-1])


def test_a_closing_sentinel_is_there_if_asked_for():
    plain, closed = (prepare(np.arange(100, 130)[None], closing=c)["labels"][0] for c in (0, 1))
    assert closed.tolist() == [*plain[:-1], SENTINELS[1], 1]


def test_every_division_is_equally_likely():
    """9 tokens, 4 of them noise in 2 spans: 3 divisions of the noise, 4 of the rest."""
    ids = np.tile(np.arange(100, 109), (24_000, 1))
    made = prepare(ids, rate=4 / 9, span=2.0)
    counts = Counter(map(tuple, made["input_ids"].tolist()))
    expected = set()
    for noise, clean in itertools.product(range(1, 4), range(1, 5)):
        kept = [*range(100, 100 + clean), SENTINELS[0]]
        kept += [*range(100 + clean + noise, 105 + noise), SENTINELS[1], 1]
        expected.add(tuple(kept))
    assert counts.keys() == expected
    mean = 24_000 / 12
    deviation = math.sqrt(24_000 * (1 / 12) * (11 / 12))
    assert max(abs(n - mean) for n in counts.values()) < 6 * deviation


def test_rows_of_different_lengths_are_cut_each_for_itself():
    ids = np.arange(100, 140).reshape(2, 20)
    mask = np.ones((2, 20), int)
    mask[1, :9] = 0  # padding on the left goes to the right
    made = prepare(ids, mask=mask)
    noise, spans = objective().sizes(11)
    assert made["attention_mask"].sum(axis=1).tolist() == [
        objective().widths(20)[0],
        objective().widths(11)[0],
    ]
    real = made["input_ids"][1][made["attention_mask"][1] == 1]
    assert restored(real, made["labels"][1]) == list(range(129, 140))
    assert (made["labels"][1] != -100).sum() == noise + spans + 1
    assert (made["decoder_input_ids"] >= 0).all()


def test_windows_are_as_long_as_the_inputs_need():
    text = np.arange(2, 5_000)
    source = objective().batches(text, length=64, batch=3, seed=0)
    batch = next(source)
    assert batch["input_ids"].shape == (3, 70)
    assert prepare(batch["input_ids"])["input_ids"].shape == (3, 64)


class Tokens:
    kind, padding, end_of_text = "bpe", 0, 1

    def __init__(self, *tokens, **settings):
        self.tokens = tokens
        vars(self).update(settings)

    def __contains__(self, token):
        return token in self.tokens

    def id(self, token):
        return self.tokens.index(token)


def test_a_tokenizer_gives_its_ids():
    tokenizer = Tokens("<pad>", "</s>", "<extra_id_1>", "a", "<extra_id_0>")
    made = SpanCorruption.of(tokenizer, rate=0.3)
    assert (made.sentinels, made.end, made.start, made.padding) == ((4, 2), 1, 0, 0)
    assert made.rate == 0.3


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (Tokens("<pad>", "</s>"), "needs sentinels.*appended_tokens.*prefix-lm"),
        (Tokens("<extra_id_0>", padding=None), "has no padding.*special_tokens"),
        (Tokens("<extra_id_0>", end_of_text=None), "has nothing that ends a text"),
    ],
)
def test_a_tokenizer_that_lacks_a_token_is_refused(tokenizer, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        SpanCorruption.of(tokenizer)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: objective(rate=0), "rate is 0"),
        (lambda: objective(rate=1.0), "rate is 1"),
        (lambda: objective(span=0.5), "span is 0.5"),
        (lambda: objective(sentinels=()), "sentinels is empty"),
        (lambda: objective().raw_length(2), "2 inputs are too few"),
        (
            lambda: objective(sentinels=(9, 8)).batches(
                SimpleNamespace(), length=512, batch=1, seed=0
            ),
            "568 tokens have 28 spans to cut, but there are 2 sentinels",
        ),
        (lambda: prepare(np.ones((1, 70), int), sentinels=(9, 8)), "3 spans to cut"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
