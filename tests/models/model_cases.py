"""The smallest useful config of every model, and what its paper's sizes must count."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tinyplm.models.bert import Bert, BertConfig
from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.models.recurrent_lm import RecurrentConfig, RecurrentLM
from tinyplm.models.roberta import Roberta, RobertaConfig
from tinyplm.models.seq2seq import Seq2Seq, Seq2SeqConfig
from tinyplm.models.t5 import T5, T5Config
from tinyplm.objectives import (
    CausalLM,
    MaskedLM,
    NextSentence,
    SequenceToSequence,
    SpanCorruption,
    Sum,
    TruncatedBptt,
)


@dataclass(frozen=True)
class Case:
    """What the conformance suite needs to know of a model."""

    build: Callable[..., Any]
    config: Any
    counts: dict[str, int]
    causal: bool
    objective: Any  # that reaches every parameter
    first_id: int = 0  # ids below are no text
    encoder_decoder: bool = False  # calls of it need two texts
    fields: Callable[[int, int], dict[str, Any]] = field(default=lambda rows, time: {})

    def model(self, *, dropout: float = 0.0, dtype: str = "float32", seed: int = 0) -> Any:
        """A model whose gains and biases are not those of a new one, so that each of them matters."""
        rates = dict.fromkeys(("dropout", "embedding_dropout", "attention_dropout"), dropout)
        settings = vars(self.config)
        rates = {name: rate for name, rate in rates.items() if name in settings}
        model = self.build(type(self.config)(**(settings | rates)), rng=np.random.default_rng(seed))
        rng = np.random.default_rng(seed + 1)
        model.load(
            {
                name: (array + 0.2 * rng.standard_normal(array.shape)).astype(dtype)
                for name, array in model.arrays().items()
            }
        )
        return model

    def ids(self, batch: int, time: int, seed: int = 0) -> np.ndarray:
        size = (batch, time)
        return np.random.default_rng(seed).integers(
            self.first_id, self.config.vocab_size, size=size
        )

    def read(self, model: Any, ids: Any, **seen: Any) -> Any:
        """Hidden states of a text; an encoder-decoder reads the same one on both sides."""
        if self.encoder_decoder:
            seen["decoder_input_ids"] = [[0]] if ids is None else ids
            if "attention_mask" in seen:
                seen["decoder_attention_mask"] = seen["attention_mask"]
        return model(ids, **seen)

    @property
    def has_positions(self) -> bool:
        """Whether texts have a longest length, and tokens their positions."""
        return getattr(self.config, "positions", None) is not None

    @property
    def longest(self) -> int:
        """Tokens of the longest text that is tried."""
        return self.config.positions if self.has_positions else 16

    def at(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Positions as the model takes them, if it does."""
        return {"position_ids": positions} if self.has_positions else {}

    def batch(self, rows: int, time: int) -> dict[str, Any]:
        """Token batches as the objective takes them."""
        return {"input_ids": self.ids(rows, time)} | self.fields(rows, time)


def _two_segments(rows: int, time: int) -> dict[str, Any]:
    return {
        "token_type_ids": np.tile(np.arange(time) * 2 // time, (rows, 1)),
        "next_sentence_labels": np.arange(rows) % 2,
    }


def _targets(rows: int, time: int) -> dict[str, Any]:
    return {
        "attention_mask": np.ones((rows, time), int),
        "target_ids": np.random.default_rng(1).integers(31, size=(rows, 4)),
        "target_mask": np.ones((rows, 4), int),
    }


_MLM = MaskedLM(mask=4, vocab_size=31, special=frozenset(range(5)), rate=0.4)
_NSP = NextSentence(classifier=2, separator=3, padding=0, end_of_text=3, ends=np.zeros(31, bool))


_SPANS = SpanCorruption(sentinels=(30, 29, 28, 27), end=1)
_T5 = T5Config(
    vocab_size=31,
    hidden_size=12,
    head_size=5,
    ffn_size=20,
    layers=2,
    heads=3,
    buckets=8,
    max_distance=9,
)


CASES: dict[str, Case] = {
    "gpt2": Case(
        build=Gpt2,
        config=Gpt2Config(
            vocab_size=31, hidden_size=12, layers=2, heads=3, ffn_size=20, positions=16
        ),
        counts={
            "small": 124_439_808,
            "medium": 354_823_168,
            "large": 774_030_080,
            "xl": 1_557_611_200,
        },
        causal=True,
        objective=CausalLM(),
    ),
    "bert": Case(
        build=Bert,
        config=BertConfig(
            vocab_size=31, hidden_size=12, layers=2, heads=3, ffn_size=20, positions=16
        ),
        counts={
            "base": 110_106_428,
            "large": 336_226_108,
            "tiny": 4_433_468,
            "mini": 11_267_900,
            "small": 29_058_876,
            "medium": 41_668_412,
        },
        causal=False,
        objective=Sum(_MLM, _NSP),
        fields=_two_segments,
    ),
    "roberta": Case(
        build=Roberta,
        config=RobertaConfig(
            vocab_size=31, hidden_size=12, layers=2, heads=3, ffn_size=20, positions=16, padding=0
        ),
        counts={"base": 124_697_433, "large": 355_412_057},
        causal=False,
        objective=_MLM,
        first_id=1,  # tokens of padding take no position
    ),
    "rnn": Case(
        build=RecurrentLM,
        config=RecurrentConfig(cell="rnn", vocab_size=31, hidden_size=12, layers=2),
        counts={},
        causal=True,
        objective=TruncatedBptt(),
    ),
    "lstm": Case(
        build=RecurrentLM,
        config=RecurrentConfig(
            cell="lstm", vocab_size=31, embedding_size=8, hidden_size=12, layers=2, tied=True
        ),
        counts={"small": 4_651_600, "medium": 19_775_200, "large": 66_022_000},
        causal=True,
        objective=TruncatedBptt(),
    ),
    "gru": Case(
        build=RecurrentLM,
        config=RecurrentConfig(cell="gru", vocab_size=31, hidden_size=12, layers=2, tied=True),
        counts={},
        causal=True,
        objective=TruncatedBptt(),
    ),
    "t5": Case(
        build=T5,
        config=_T5,
        counts={
            "small": 60_506_624,
            "base": 222_903_552,
            "large": 737_668_096,
            "3b": 2_851_598_336,
            "11b": 11_307_321_344,
        },
        causal=False,
        objective=_SPANS,
        encoder_decoder=True,
    ),
    "t5-v1.1": Case(
        build=T5,
        config=replace(
            _T5,
            gated=True,
            activation="gelu_tanh",
            tied=False,
            scaled_output=False,
        ),
        counts={
            "small": 76_961_152,
            "base": 247_577_856,
            "large": 783_150_080,
            "xl": 2_849_757_184,
            "xxl": 11_135_332_352,
        },
        causal=False,
        objective=_SPANS,
        encoder_decoder=True,
    ),
    "seq2seq": Case(
        build=Seq2Seq,
        config=Seq2SeqConfig(
            cell="gru",
            vocab_size=31,
            embedding_size=8,
            hidden_size=12,
            layers=2,
            bidirectional=True,
            attention="additive",
            decoder_start=1,
        ),
        counts={"sutskever": 384_112_000, "bahdanau": 99_066_000, "luong": 221_082_000},
        causal=False,
        objective=SequenceToSequence(end_id=1, padding_id=0),
        encoder_decoder=True,
        fields=_targets,
    ),
}
