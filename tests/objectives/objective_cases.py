"""What the conformance suite needs to know of an objective."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tinyplm.models.bert import Bert, BertConfig
from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.models.recurrent_lm import RecurrentConfig, RecurrentLM
from tinyplm.models.seq2seq import Seq2Seq, Seq2SeqConfig
from tinyplm.models.t5 import T5, T5Config
from tinyplm.objectives import (
    CausalLM,
    MaskedLM,
    NextSentence,
    PrefixLM,
    SequenceToSequence,
    SpanCorruption,
    TruncatedBptt,
)

VOCAB = 23


@dataclass(frozen=True)
class Case:
    """An objective, token batches for it, and a model that it can train."""

    objective: Any
    draws: bool  # whether prepare chooses anything at random
    batch: Callable[[int], dict[str, Any]]  # of a seed
    nothing: list[dict[str, Any]]  # batches in which nothing can be predicted
    uniform: Callable[[], Any]  # a float64 model that predicts uniformly
    model: Callable[[], Any]  # a float64 model without dropout
    classes: int = VOCAB  # that are told apart


def _gpt2():
    config = Gpt2Config(
        vocab_size=VOCAB, hidden_size=8, layers=1, heads=2, positions=16,
        dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    model = Gpt2(config, rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    model.load({k: 0.4 * rng.standard_normal(a.shape) for k, a in model.arrays().items()})
    return model


def _uniform_gpt2():
    model = _gpt2()
    arrays = {k: np.array(a) for k, a in model.arrays().items()}
    arrays["token_embedding.weight"][:] = 0  # the head's weight too
    model.load(arrays)
    return model


def _bert(*carries):
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=8, layers=1, heads=2, positions=16,
        dropout=0.0, attention_dropout=0.0, carries=carries,
    )  # fmt: skip
    model = Bert(config, rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    model.load({k: 0.4 * rng.standard_normal(a.shape) for k, a in model.arrays().items()})
    return model


def _uniform_bert(*carries):
    model = _bert(*carries)
    arrays = {k: np.array(a) for k, a in model.arrays().items()}
    for name in (
        "token_embedding.weight",
        "head.bias",
        "next_sentence.weight",
        "next_sentence.bias",
    ):
        if name in arrays:
            arrays[name][:] = 0
    model.load(arrays)
    return model


def _pairs(seed):
    rng = np.random.default_rng(seed)
    mask = (np.arange(9) < np.array([[9], [5], [7], [9]])).astype(np.int64)
    return {
        "input_ids": rng.integers(VOCAB, size=(4, 9)),
        "attention_mask": mask,
        "token_type_ids": (np.arange(9) >= 4) * mask,
        "next_sentence_labels": np.array([0, 1, 1, 0]),
    }


def _masked(**settings):
    begins = np.arange(VOCAB) % 3 > 0
    return MaskedLM(mask=4, vocab_size=VOCAB, special=frozenset({3, 4}), begins=begins, **settings)


def _padded(seed):
    """Texts of 7, 3, 1 and 5 tokens."""
    ids = np.random.default_rng(seed).integers(VOCAB, size=(4, 7))
    mask = (np.arange(7) < np.array([[7], [3], [1], [5]])).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask}


def _without_mask(seed):
    return {"input_ids": np.random.default_rng(seed).integers(VOCAB, size=(4, 7))}


def _recurrent(uniform=False):
    config = RecurrentConfig(
        cell="gru", vocab_size=VOCAB, hidden_size=8, layers=2, dropout=0.0, embedding_dropout=0.0
    )
    return _drawn(RecurrentLM(config, rng=np.random.default_rng(0)), uniform)


def _seq2seq(uniform=False):
    config = Seq2SeqConfig(
        vocab_size=VOCAB, hidden_size=8, embedding_size=6, layers=1, bidirectional=True,
        attention="concat", input_feeding=True, decoder_start=1,
    )  # fmt: skip
    return _drawn(Seq2Seq(config, rng=np.random.default_rng(0)), uniform)


def _drawn(model, uniform):
    rng = np.random.default_rng(1)
    arrays = {k: 0.4 * rng.standard_normal(a.shape) for k, a in model.arrays().items()}
    if uniform:
        arrays |= {k: 0 * arrays[k] for k in ("head.weight", "head.bias")}
    model.load(arrays)
    return model


def _t5(uniform=False):
    config = T5Config(
        vocab_size=VOCAB, hidden_size=8, head_size=3, ffn_size=12, layers=1, heads=2, buckets=4,
        max_distance=6, dropout=0.0, tied=False,
    )  # fmt: skip
    model = T5(config, rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    arrays = {k: 0.4 * rng.standard_normal(a.shape) for k, a in model.arrays().items()}
    model.load(arrays | ({"head.weight": 0 * arrays["head.weight"]} if uniform else {}))
    return model


def _begun(seed):
    """Streams that begin."""
    return _without_mask(seed) | {"fresh": np.ones(4, bool)}


def _translations(seed):
    """Sources of 5, 1, 0 and 3 tokens, targets of 2, 4, 1 and 0."""
    rng = np.random.default_rng(seed)
    return {
        "input_ids": rng.integers(2, VOCAB, size=(4, 5)),
        "attention_mask": (np.arange(5) < np.array([[5], [1], [0], [3]])).astype(np.int64),
        "target_ids": rng.integers(2, VOCAB, size=(4, 4)),
        "target_mask": (np.arange(4) < np.array([[2], [4], [1], [0]])).astype(np.int64),
    }


CASES: dict[str, list[Case]] = {
    "causal-lm": [
        Case(
            objective=CausalLM(smoothing=smoothing),
            draws=False,
            batch=batch,
            nothing=[
                {"input_ids": np.zeros((2, 1), np.int64)},
                {"input_ids": np.zeros((2, 0), np.int64)},
                {
                    "input_ids": np.zeros((2, 5), np.int64),
                    "attention_mask": np.zeros((2, 5), np.int64),
                },
                {
                    "input_ids": np.zeros((2, 5), np.int64),
                    "attention_mask": np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]),
                },
            ],
            uniform=_uniform_gpt2,
            model=_gpt2,
        )
        for smoothing in (0.0, 0.1)
        for batch in (_padded, _without_mask)
    ],
    "mlm": [
        Case(
            objective=_masked(**settings),
            draws=True,
            batch=batch,
            nothing=[
                {"input_ids": np.full((2, 5), 3)},
                {"input_ids": np.zeros((2, 0), np.int64)},
                {
                    "input_ids": np.full((2, 5), 7),
                    "attention_mask": np.zeros((2, 5), np.int64),
                },
            ],
            uniform=lambda: _uniform_bert("masked-lm"),
            model=lambda: _bert("masked-lm"),
        )
        for settings in (
            {},
            {"rate": 0.6, "smoothing": 0.1},
            {"rate": 0.6, "whole_words": True},
            {"copies": 3},
        )
        for batch in (_padded, _without_mask)
    ],
    "nsp": [
        Case(
            objective=NextSentence(
                classifier=1,
                separator=3,
                padding=0,
                end_of_text=3,
                ends=np.zeros(VOCAB, bool),
            ),
            draws=False,
            batch=_pairs,
            nothing=[_pairs(0) | {"next_sentence_labels": np.full(4, -100)}],
            uniform=lambda: _uniform_bert("next-sentence"),
            model=lambda: _bert("next-sentence"),
            classes=2,
        )
    ],
    "tbptt": [
        Case(
            objective=TruncatedBptt(smoothing=smoothing),
            draws=False,
            batch=batch,
            nothing=[
                {"input_ids": np.zeros((2, 1), np.int64)},
                {
                    "input_ids": np.zeros((2, 5), np.int64),
                    "attention_mask": np.zeros((2, 5), np.int64),
                },
            ],
            uniform=lambda: _recurrent(uniform=True),
            model=_recurrent,
        )
        for smoothing, batch in ((0.0, _without_mask), (0.1, _padded), (0.0, _begun))
    ],
    "seq2seq": [
        Case(
            objective=SequenceToSequence(end_id=1, padding_id=0, smoothing=smoothing),
            draws=False,
            batch=_translations,
            nothing=[],  # the end of a target is always predicted
            uniform=lambda: _seq2seq(uniform=True),
            model=_seq2seq,
        )
        for smoothing in (0.0, 0.1)
    ],
    **{
        name: [
            Case(
                objective=objective(smoothing=smoothing),
                draws=True,
                batch=batch,
                nothing=[
                    {"input_ids": np.zeros((2, 1), np.int64)},
                    {"input_ids": np.zeros((2, 0), np.int64)},
                    {
                        "input_ids": np.zeros((2, 5), np.int64),
                        "attention_mask": np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]),
                    },
                ],
                uniform=lambda: _t5(uniform=True),
                model=_t5,
            )
            for smoothing in (0.0, 0.1)
            for batch in (_padded, _without_mask)
        ]
        for name, objective in {
            "span-corruption": partial(
                SpanCorruption, sentinels=(22, 21, 20), end=1, rate=0.4, span=1.0
            ),
            "prefix-lm": partial(PrefixLM, end=1),
        }.items()
    },
}
