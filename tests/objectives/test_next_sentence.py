"""Next sentence prediction by loops, and from a text to a loss."""

import math

import numpy as np
import pytest

from tinyplm import no_grad
from tinyplm.errors import ConfigError, DataError
from tinyplm.models.bert import Bert, BertConfig
from tinyplm.objectives import NextSentence, objective_named
from tinyplm.text import Tokenizer

TEXTS = [
    "The cat sat on the mat. It was warm there. The dog slept! Nobody minded. So it went on.",
    "Ships sail at dawn. The harbour is cold then. Who would stay? Ropes are cast off. Off they go.",
    "Bread needs time. Flour and water rest. Heat does what is left. Eat it warm. Share it.",
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train("wordpiece", TEXTS, vocab_size=120, lowercase=True)


@pytest.fixture(scope="module")
def tokens(tokenizer):
    parts = [[*ids, tokenizer.separator] for ids in tokenizer.encode_batch(TEXTS)]
    return np.concatenate(parts)


def build(tokenizer, *carries):
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=12, layers=1, heads=2, positions=40,
        dropout=0.0, attention_dropout=0.0, carries=carries,
    )  # fmt: skip
    model = Bert(config, rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    model.load({k: 0.4 * rng.standard_normal(a.shape) for k, a in model.arrays().items()})
    return model


def test_the_loss_is_that_of_a_slow_loop(tokenizer, tokens):
    objective, model = NextSentence.of(tokenizer), build(tokenizer, "next-sentence")
    batch = next(objective.batches(tokens, length=40, batch=6, seed=0))
    made = objective.prepare(batch, rng=np.random.default_rng(0))
    assert {0, 1} == set(made["next_sentence_labels"].tolist())
    lost = []
    for ids, types, mask, label in zip(
        made["input_ids"],
        made["token_type_ids"],
        made["attention_mask"],
        made["next_sentence_labels"],
        strict=True,
    ):
        real = mask == 1
        hidden = model(ids[None, real], token_type_ids=types[None, real])
        row = model.next_sentence(model.pooled(hidden)).array[0]
        lost.append(math.log(sum(math.exp(x) for x in row)) - row[label])
    assert objective.counts(made) == {"pairs": 6.0}
    assert math.isclose(objective.loss(model, made).item(), sum(lost) / 6, rel_tol=1e-12)


def test_both_objectives_of_bert_learn_from_one_batch(tokenizer, tokens):
    objective = objective_named("mlm+nsp", tokenizer)
    model = build(tokenizer, "masked-lm", "next-sentence")
    batch = next(objective.batches(tokens, length=32, batch=4, seed=0))
    made = objective.prepare(batch, rng=np.random.default_rng(0))
    assert set(objective.counts(made)) == {"tokens", "pairs"}
    special = np.isin(made["input_ids"], list(tokenizer.special_ids - {tokenizer.mask}))
    assert (made["labels"][special] == -100).all()
    with no_grad():
        terms = objective.terms(model, made)
        assert set(terms) == {"tokens", "pairs"}


def test_a_tokenizer_without_frame_is_refused():
    with pytest.raises(
        ConfigError, match=r"'nsp' puts tokens such as.*this bytes tokenizer has none"
    ):
        NextSentence.of(Tokenizer.train("bytes", []))


def test_a_model_without_the_head_is_refused(tokenizer, tokens):
    objective, model = NextSentence.of(tokenizer), build(tokenizer, "masked-lm")
    batch = next(objective.batches(tokens, length=32, batch=4, seed=0))
    with pytest.raises(ConfigError, match="needs a model that carries 'next-sentence'"):
        objective.loss(model, batch)


def test_a_batch_without_pairs_is_refused(tokenizer):
    with pytest.raises(DataError, match="no next_sentence_labels"):
        NextSentence.of(tokenizer).prepare(
            {"input_ids": np.zeros((2, 3), int)}, rng=np.random.default_rng(0)
        )
