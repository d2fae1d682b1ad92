"""The models that can be pretrained, and how a run's settings become one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import ConfigError
from ..models import bert, gpt2, recurrent_lm, roberta, seq2seq, t5


@dataclass(frozen=True)
class Entry:
    """A model on offer.

    Attributes:
        paper: what it comes from, in a line.
        sizes: its published configs by name.
        build: a model from a config and a generator, None for placeholders.
        config: the config of a run's settings and a vocabulary size.
        objectives: names of the objectives that fit, its own first; the parts of a sum fit too.
        tokenizer: the kind that is trained for it.
        special_tokens: of that tokenizer; those of the kind when None.
        appended_tokens: more special tokens, with its last ids.
        decoder_start: what of a tokenizer a decoder begins with, such as "padding"; None where the config knows.
        defaults: settings of a run that differ for this model.
    """

    paper: str
    sizes: dict[str, Any]
    build: Callable[..., Any]
    config: Callable[[Any, int], Any]
    objectives: tuple[str, ...]
    tokenizer: str = "bpe"
    special_tokens: tuple[str, ...] | None = None
    appended_tokens: tuple[str, ...] = ()
    decoder_start: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def config_for(self, run: Any, tokenizer: Any) -> Any:
        """The config of a run's settings for a tokenizer; a model that knows its padding knows this one's."""
        config = self.config(run, tokenizer.vocab_size)
        if hasattr(config, "padding"):
            if tokenizer.padding is None:
                raise ConfigError(
                    f"This model counts positions by its padding token, and this {tokenizer.kind} tokenizer has none, "
                    "so a token of the text would be taken for it. Use one with '<pad>', such as the model's own."
                )
            config = replace(config, padding=tokenizer.padding)
        if self.decoder_start and getattr(tokenizer, self.decoder_start) is not None:
            config = replace(config, decoder_start=getattr(tokenizer, self.decoder_start))
        return config

    def fits(self, objective: str) -> bool:
        """Whether it can learn from this objective, or from this sum of several."""
        parts = objective.split("+")
        several = len(set(parts)) == len(parts)
        return several and any(set(parts) <= set(name.split("+")) for name in self.objectives)


def _gpt2(run: Any, vocab_size: int) -> gpt2.Gpt2Config:
    return gpt2.Gpt2Config(
        vocab_size=vocab_size,
        hidden_size=run.hidden_size,
        layers=run.layers,
        heads=run.heads,
        positions=run.positions,
        dropout=run.dropout,
        embedding_dropout=run.dropout,
        attention_dropout=run.dropout,
    )


def _bert(run: Any, vocab_size: int) -> bert.BertConfig:
    learns = (run.objective or "mlm+nsp").split("+")
    heads = {"mlm": "masked-lm", "nsp": "next-sentence"}
    return bert.BertConfig(
        vocab_size=vocab_size,
        hidden_size=run.hidden_size,
        layers=run.layers,
        heads=run.heads,
        positions=run.positions,
        dropout=run.dropout,
        attention_dropout=run.dropout,
        carries=tuple(heads[part] for part in learns if part in heads),
    )


def _roberta(run: Any, vocab_size: int) -> roberta.RobertaConfig:
    return roberta.RobertaConfig(
        vocab_size=vocab_size,
        hidden_size=run.hidden_size,
        layers=run.layers,
        heads=run.heads,
        positions=run.positions,
        dropout=run.dropout,
        attention_dropout=run.dropout,
    )


def _recurrent(run: Any, vocab_size: int) -> recurrent_lm.RecurrentConfig:
    return recurrent_lm.RecurrentConfig(
        cell=run.model,
        vocab_size=vocab_size,
        hidden_size=run.hidden_size,
        layers=run.layers,
        dropout=run.dropout,
        embedding_dropout=run.dropout,
        tied=True,
    )


def _seq2seq(run: Any, vocab_size: int) -> seq2seq.Seq2SeqConfig:
    attention = None if run.attention == "none" else run.attention or "general"
    return seq2seq.Seq2SeqConfig(
        cell="lstm",
        vocab_size=vocab_size,
        hidden_size=run.hidden_size,
        layers=run.layers,
        dropout=run.dropout,
        bidirectional=attention not in (None, "dot"),
        reversed=attention is None,
        attention=attention,
        init_std=0.2,
    )


def _t5(run: Any, vocab_size: int) -> t5.T5Config:
    if run.heads > run.hidden_size:
        raise ConfigError(
            f"heads is {run.heads}, more than hidden_size={run.hidden_size}; lower it."
        )
    return t5.T5Config(
        vocab_size=vocab_size,
        hidden_size=run.hidden_size,
        head_size=run.hidden_size // run.heads,
        ffn_size=4 * run.hidden_size,
        layers=run.layers,
        heads=run.heads,
        dropout=run.dropout,
    )


def _t5_v1_1(run: Any, vocab_size: int) -> t5.T5Config:
    return replace(
        _t5(run, vocab_size),
        ffn_size=max(1, 8 * run.hidden_size // 3),  # three matrices, as many weights as two have
        gated=True,
        activation="gelu_tanh",
        tied=False,
        scaled_output=False,
    )


SENTINELS = tuple(f"<extra_id_{k}>" for k in reversed(range(100)))
"""Counting down, so that <extra_id_0> is the last token, as in the published vocabulary."""

_T5_PAPER = "Raffel et al., 2020: Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer"
_T5_DEFAULTS = {"optimizer": "adafactor", "lr": 0.03, "vocab_size": 1_024, "steps": 480}
"""Steps are shares of a weight's own size, as in the paper: embeddings start with deviation 1, all else far smaller."""


MODELS: dict[str, Entry] = {
    "gpt2": Entry(
        paper="Radford et al., 2019: Language Models are Unsupervised Multitask Learners",
        sizes=dict(gpt2.SIZES),
        build=gpt2.Gpt2,
        config=_gpt2,
        objectives=("causal-lm",),
    ),
    "bert": Entry(
        paper="Devlin et al., 2019: Pre-training of Deep Bidirectional Transformers for Language Understanding",
        sizes=dict(bert.SIZES),
        build=bert.Bert,
        config=_bert,
        objectives=("mlm+nsp", "mlm", "nsp"),
        tokenizer="wordpiece",
        defaults={"steps": 1_200, "batch": 32, "lr": 2e-3},
    ),
    "roberta": Entry(
        paper="Liu et al., 2019: RoBERTa: A Robustly Optimized BERT Pretraining Approach",
        sizes=dict(roberta.SIZES),
        build=roberta.Roberta,
        config=_roberta,
        objectives=("mlm",),
        tokenizer="bpe",
        special_tokens=("<s>", "<pad>", "</s>", "<unk>"),
        appended_tokens=("<mask>",),
        defaults={"steps": 1_200, "batch": 32, "lr": 2e-3},
    ),
    **{
        cell: Entry(
            paper=paper,
            sizes=dict(recurrent_lm.SIZES) if cell == "lstm" else {},
            build=recurrent_lm.RecurrentLM,
            config=_recurrent,
            objectives=("tbptt", "causal-lm"),
            defaults={"layers": 1, "steps": 800, "lr": 8e-3},
        )
        for cell, paper in (
            ("rnn", "Elman, 1990: Finding Structure in Time; Mikolov et al., 2010"),
            (
                "lstm",
                "Hochreiter and Schmidhuber, 1997: Long Short-Term Memory; Zaremba et al., 2014",
            ),
            ("gru", "Cho et al., 2014: Learning Phrase Representations using RNN Encoder-Decoder"),
        )
    },
    "seq2seq": Entry(
        paper="Sutskever et al., 2014; Bahdanau et al., 2014; Luong et al., 2015: Effective Approaches to Attention",
        sizes=dict(seq2seq.SIZES),
        build=seq2seq.Seq2Seq,
        config=_seq2seq,
        objectives=("seq2seq",),
        special_tokens=("<pad>", "</s>"),
        decoder_start="end_of_text",
        defaults={"layers": 1, "steps": 1_500, "batch": 32, "lr": 4e-3, "weight_decay": 0.01},
    ),
    **{
        name: Entry(
            paper=paper,
            sizes=dict(sizes),
            build=t5.T5,
            config=config,
            objectives=("span-corruption", "prefix-lm"),
            special_tokens=("<pad>", "</s>", "<unk>"),
            appended_tokens=SENTINELS,
            decoder_start="padding",
            defaults=_T5_DEFAULTS,
        )
        for name, config, sizes, paper in (
            ("t5", _t5, t5.SIZES, _T5_PAPER),
            ("t5-v1.1", _t5_v1_1, t5.SIZES_V1_1, f"{_T5_PAPER}, with the gate of Shazeer, 2020"),
        )
    },
}
"""Every model by its name on the command line."""
