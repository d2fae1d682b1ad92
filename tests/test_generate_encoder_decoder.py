"""generate with a model that reads one text and writes another."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from tinyplm.errors import ConfigError, DtypeError, ShapeError
from tinyplm.generate import beam_search, generate, log_softmax

V, START, END = 6, 5, 1


class TokenCache:
    """Remembers the tokens themselves."""

    def __init__(self, batch):
        self.ids = np.empty((batch, 0), np.int64)

    @property
    def length(self):
        return self.ids.shape[1]

    def reorder(self, rows):
        self.ids = self.ids[rows]


class Writer:
    """Logits that depend on the text and on every token so far."""

    def __init__(self, config, texts):
        self.config, self.texts = config, texts

    def new_cache(self, batch, capacity):
        assert batch == len(self.texts)
        return TokenCache(batch)

    def next_logits(self, input_ids, *, attention_mask, position_ids, cache):
        assert attention_mask is None
        assert len(input_ids) == len(self.texts)
        if cache is not None:
            input_ids = cache.ids = np.concatenate([cache.ids, input_ids], axis=1)
        assert (input_ids[:, 0] == START).all()
        return np.stack([logits_of(t, i) for t, i in zip(self.texts, input_ids, strict=True)])

    def chosen(self, rows):
        return Writer(self.config, [self.texts[row] for row in rows])


def logits_of(text, tokens):
    rng = np.random.default_rng([*text, 99, *(int(one) for one in tokens)])
    return rng.normal(scale=2.0, size=V).astype(np.float32)


class Translator:
    """Reads a text; remembers what it was given."""

    def __init__(self, positions=None):
        self.config = SimpleNamespace(vocab_size=V, positions=positions, decoder_start=START)

    def conditioned(self, input_ids, attention_mask):
        self.mask = attention_mask
        real = np.ones_like(input_ids) if attention_mask is None else np.asarray(attention_mask)
        texts = [tuple(row[keep == 1].tolist()) for row, keep in zip(input_ids, real, strict=True)]
        return Writer(self.config, texts)


TEXTS = np.array([[2, 3, 4, 0], [0, 0, 2, 2], [4, 4, 4, 4], [3, 0, 0, 0]])


def greedy_by_hand(text, steps):
    tokens = [START]
    while len(tokens) < steps and tokens[-1] != END:
        tokens.append(int(logits_of(text, tokens).argmax()))
    return tokens


def real(row):
    return tuple(int(i) for i in row if i != 0)


@pytest.mark.parametrize("cached", [True, False])
def test_each_text_is_answered_by_itself(cached):
    found = generate(
        Translator(), TEXTS, eos_token_id=END, pad_token_id=0, max_length=9, use_cache=cached
    )
    assert found.shape[1] <= 9
    for row, text in zip(found, TEXTS, strict=True):
        expected = greedy_by_hand(real(text), 9)
        assert row[: len(expected)].tolist() == expected
        assert not row[len(expected) :].any()


def test_lengths_count_the_start_token():
    assert generate(Translator(), TEXTS, max_length=7, pad_token_id=0).shape == (4, 7)
    assert generate(Translator(), TEXTS, max_new_tokens=7, pad_token_id=0).shape == (4, 8)
    assert generate(Translator(), TEXTS, pad_token_id=0).shape == (4, 21)
    ids = generate(Translator(), TEXTS, min_length=6, eos_token_id=END, pad_token_id=0)
    assert not (ids[:, :6] == END).any()


def test_padding_of_the_texts_is_recognised_unless_it_also_ends_them():
    model = Translator()
    generate(model, TEXTS, pad_token_id=0, max_new_tokens=1)
    np.testing.assert_array_equal(model.mask, TEXTS != 0)
    generate(model, TEXTS, pad_token_id=0, eos_token_id=0, max_new_tokens=1)
    assert model.mask is None
    mask = np.ones_like(TEXTS)
    generate(model, TEXTS, attention_mask=mask, pad_token_id=0, max_new_tokens=1)
    assert model.mask is mask


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    ("normalization", "divisor"),
    [("power", lambda n: n**0.7), ("gnmt", lambda n: ((5 + n) / 6) ** 0.7)],
)
def test_a_wide_beam_finds_the_best_of_all_texts(cached, normalization, divisor):
    longest = 4
    found = beam_search(
        Translator(), TEXTS, num_beams=V**3, max_new_tokens=longest, eos_token_id=END,
        pad_token_id=0, length_penalty=0.7, length_normalization=normalization,
        early_stopping="never", use_cache=cached,
    )  # fmt: skip
    for row, score, text in zip(found.ids, found.scores, TEXTS, strict=True):
        best, written = -math.inf, None
        for n in range(1, longest + 1):
            for tokens in itertools.product(range(V), repeat=n):
                if END in tokens[:-1] or (n < longest and tokens[-1] != END):
                    continue
                total = 0.0
                for i, token in enumerate(tokens):
                    logits = logits_of(real(text), [START, *tokens[:i]])[None]
                    total += float(log_softmax(logits)[0, token])
                if total / divisor(n) > best:
                    best, written = total / divisor(n), [START, *tokens]
        assert row[: len(written)].tolist() == written
        assert math.isclose(score, best, rel_tol=1e-5)


def test_several_samples_of_a_text_look_at_that_text():
    settings = {
        "do_sample": True,
        "num_return_sequences": 3,
        "max_new_tokens": 5,
        "pad_token_id": 0,
    }
    cached = generate(Translator(), TEXTS, rng=np.random.default_rng(3), **settings)
    plain = generate(Translator(), TEXTS, rng=np.random.default_rng(3), use_cache=False, **settings)
    np.testing.assert_array_equal(cached, plain)
    assert cached.shape == (12, 6)


def test_a_decoder_with_positions_is_not_run_beyond_them():
    assert generate(Translator(positions=8), TEXTS, pad_token_id=0).shape == (4, 8)
    with pytest.raises(ShapeError, match="8 positions"):
        generate(Translator(positions=8), TEXTS, pad_token_id=0, max_new_tokens=12)


@pytest.mark.parametrize(
    ("ids", "settings", "error", "message"),
    [
        (TEXTS[0], {}, ShapeError, r"shape \(4,\)"),
        (TEXTS * 1.0, {}, DtypeError, "float64"),
        (TEXTS, {"length_normalization": "wu"}, ConfigError, "'power'.*'gnmt'"),
        (TEXTS, {"max_length": 1}, ConfigError, "max_length=1"),
    ],
)
def test_what_cannot_be_is_refused(ids, settings, error, message):
    with pytest.raises(error, match=message):
        generate(Translator(), ids, **settings)
