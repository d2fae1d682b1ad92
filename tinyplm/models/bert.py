"""BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding.

Devlin, Chang, Lee and Toutanova, NAACL 2019 (arXiv:1810.04805); the sizes tiny to medium are those of Turc, Chang, Lee
and Toutanova, "Well-Read Students Learn Better", 2019 (arXiv:1908.08962).

The paper in five lines: a Transformer encoder, in which every token sees those on both sides, learns from plain text to
fill in hidden tokens, and to tell whether one passage followed another; then one new layer and a few passes over a
task's examples are enough for classification, tagging and question answering. Against GPT there is no causal mask,
norms stand behind each sum (as in Vaswani et al., 2017) and behind the sum of embeddings, and segments are embedded.

What differs from the paper: its code bends by the tanh form of GELU ("gelu_tanh"), but the published folders say
"gelu", the exact one, and so does the default here. No optimizer state of TensorFlow is read.

Symbols: B batch, T time, V vocab_size, D hidden_size (H in the paper), F ffn_size, L layers, H heads (A in the paper),
P positions, C labels.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..autograd import Tensor, ops
from ..backend import namespace
from ..errors import ConfigError, ShapeError
from ..nn import (
    ACTIVATIONS,
    Embedding,
    FeedForward,
    Head,
    Inspection,
    LayerNorm,
    Linear,
    Module,
    PostNormBlock,
    SelfAttention,
    init,
)
from ..nn.checks import checked_ids, checked_mask
from ..nn.settings import check_fields
from ..types import Array, Generator

HEADS = {
    "masked-lm": "head",
    "next-sentence": "next_sentence",
    "sequence-classification": "classifier",
    "token-classification": "classifier",
    "question-answering": "span",
    "pooler": "pooler",
}
"""What a model may carry on top of its blocks, and the attribute that holds it."""

SEGMENTS = (
    "Segments number the texts of an input: 0 for the first, 1 for the second. Does the tokenizer "
    "belong to another model?"
)


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """What a BERT is made of.

    Attributes:
        vocab_size: tokens, V.
        hidden_size: width, D.
        layers: blocks, L.
        heads: per layer, H; the width of a head is D / H.
        ffn_size: width inside the feed-forward block, F; 4 D when None.
        positions: longest input, P.
        segments: texts that an input may hold, told apart by token_type_ids.
        activation: "gelu_tanh", "gelu", "relu", "silu" or "tanh".
        eps: added to the variance in layer norms.
        dropout: of the sum of embeddings and of both residual branches.
        attention_dropout: of attention probabilities.
        classifier_dropout: of what classifiers read; `dropout` when None.
        init_std: standard deviation of new weights, before truncation at twice that.
        carries: names of HEADS: what the model has on top of its blocks.
        labels: classes that a classifier knows, C.
    """

    vocab_size: int = 30_522
    hidden_size: int = 768
    layers: int = 12
    heads: int = 12
    ffn_size: int | None = None
    positions: int = 512
    segments: int = 2
    activation: str = "gelu"
    eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None
    init_std: float = 0.02
    carries: tuple[str, ...] = ("masked-lm", "next-sentence")
    labels: int = 2

    def __post_init__(self) -> None:
        if self.ffn_size is None and type(self.hidden_size) is int:
            object.__setattr__(self, "ffn_size", 4 * self.hidden_size)
        check_fields(self, "model")
        if self.hidden_size % self.heads:
            raise ConfigError(
                f"hidden_size={self.hidden_size} is not a multiple of heads={self.heads}; choose heads that divide it."
            )
        known = isinstance(self.carries, tuple) and all(name in HEADS for name in self.carries)
        if not known or len({HEADS[name] for name in self.carries}) < len(self.carries):
            raise ConfigError(
                f"carries is {self.carries!r}; expected a tuple of some of {', '.join(HEADS)}, of the two "
                "classifiers at most one."
            )
        read = {"next-sentence", "sequence-classification"}.intersection(self.carries)
        kept = (h for h in HEADS if h in self.carries and not (h == "pooler" and read))
        object.__setattr__(self, "carries", tuple(kept))  # in one order, and nothing twice

    @property
    def pooled(self) -> bool:
        """Whether there is a pooler: something reads it, or it is there for its own sake."""
        return not {"next-sentence", "sequence-classification", "pooler"}.isdisjoint(self.carries)


SIZES = {  # parameters with both heads of pretraining
    "base": BertConfig(),  # 110,106,428
    "large": BertConfig(hidden_size=1_024, layers=24, heads=16),  # 336,226,108
    "tiny": BertConfig(hidden_size=128, layers=2, heads=2),  # 4,433,468
    "mini": BertConfig(hidden_size=256, layers=4, heads=4),  # 11,267,900
    "small": BertConfig(hidden_size=512, layers=4, heads=8),  # 29,058,876
    "medium": BertConfig(hidden_size=512, layers=8, heads=8),  # 41,668,412
}


class Transform(Module):
    """What hidden states pass through before they are compared with token embeddings: norm(activation(dense(x)))."""

    def __init__(self, c: BertConfig, *, activation: str, rng: Generator | None) -> None:
        self.dense = Linear(c.hidden_size, c.hidden_size, std=c.init_std, rng=rng)
        self.activation = ACTIVATIONS[activation]
        self.norm = LayerNorm(c.hidden_size, eps=c.eps, rng=rng)

    def __call__(self, x: Tensor) -> Tensor:
        """From (..., D) to the same."""
        return self.norm(self.dense(x, activation=self.activation))


class Bert(Module):
    """The model; calling it gives hidden states, which the heads that it carries turn into logits.

    Attributes:
        head: over the vocabulary, tied to the token embedding ("masked-lm").
        next_sentence: 0 for passages that followed one another, 1 for others; reads `pooled`.
        classifier: of whole inputs or of tokens; reads `features`.
        span: two logits a token: an answer begins there, ends there ("question-answering").
    """

    paper: ClassVar[str] = "BERT"
    config: Any

    def __init__(self, config: BertConfig, *, rng: Generator | None) -> None:
        c, std, D = config, config.init_std, config.hidden_size
        rng = self._source(rng)
        self.config = c
        self.token_embedding = Embedding(c.vocab_size, D, std=std, rng=rng)
        self.position_embedding = Embedding(self._rows(c), D, std=std, rng=rng)
        self.segment_embedding = Embedding(c.segments, D, std=std, rng=rng)
        self.norm = LayerNorm(D, eps=c.eps, rng=rng)
        self.blocks = [
            PostNormBlock(
                SelfAttention(
                    D, c.heads, dropout=c.attention_dropout, std=std, std_out=std, rng=rng
                ),
                FeedForward(
                    D,
                    c.ffn_size or 4 * D,
                    activation=ACTIVATIONS[c.activation],
                    std=std,
                    std_out=std,
                    rng=rng,
                ),
                LayerNorm(D, eps=c.eps, rng=rng),
                LayerNorm(D, eps=c.eps, rng=rng),
                dropout=c.dropout,
            )
            for _ in range(c.layers)
        ]
        if c.pooled:
            self.pooler = Linear(D, D, std=std, rng=rng)
        if "masked-lm" in c.carries:
            self.head = Head(
                self.token_embedding.weight,
                init.zeros(rng, (c.vocab_size,)),
                before=self._transform(rng),
            )

        def classes(count: int) -> Head:
            return Head(init.normal(rng, (count, D), std), init.zeros(rng, (count,)))

        for name, count in (
            ("next-sentence", 2),
            ("sequence-classification", c.labels),
            ("token-classification", c.labels),
            ("question-answering", 2),
        ):
            if name in c.carries:
                setattr(self, HEADS[name], classes(count))

    @staticmethod
    def _source(rng: Generator | None) -> Generator | None:
        """Google's code draws from a normal distribution cut at two standard deviations."""
        return None if rng is None else init.Truncated(rng)

    @staticmethod
    def _rows(config: Any) -> int:
        """Rows of the position table."""
        return int(config.positions)

    def _transform(self, rng: Generator | None) -> Transform:
        return Transform(self.config, activation=self.config.activation, rng=rng)

    def __call__(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        inspection: Inspection | None = None,
        rng: Generator | None = None,
    ) -> Tensor:
        """Hidden states after the last block, (B, T, D).

        Args:
            input_ids: (B, T) integers in [0, V).
            attention_mask: (B, T) of 1 for real tokens and 0 for padding, on either side.
            token_type_ids: (B, T), the segment of each token; all 0 by default.
            position_ids: (B, T) or (1, T); 0 to T - 1 by default, also with padding on the left.
            inspection: collects hidden states and attention weights.
            rng: source of dropout; without it nothing is dropped.

        Raises:
            ShapeError: ids out of range, too long, empty, or a mask of another shape.
            DtypeError: ids that are not integers.
        """
        c, xp = self.config, namespace(self.norm.gain.array)
        ids_BT = checked_ids(input_ids, c.vocab_size, "input_ids", "vocab_size")
        B, T = ids_BT.shape
        if c.positions < T:
            raise ShapeError(
                f"{T} tokens, but this {self.paper} has {c.positions} positions. Truncate to {c.positions}, or read "
                "long text in windows."
            )
        if position_ids is not None:
            position_ids = checked_ids(position_ids, c.positions, "position_ids", "positions")
            if position_ids.shape not in ((B, T), (1, T)):
                raise ShapeError(
                    f"position_ids has shape {position_ids.shape}, expected that of input_ids, {(B, T)}."
                )
        padding = None if attention_mask is None else checked_mask(attention_mask, (B, T))
        if padding is not None:  # on the host, so that a card need not be asked
            padding = None if namespace(padding) is np and padding.all() else xp.asarray(padding)
        x = self.token_embedding(xp.asarray(ids_BT))
        places = self.position_embedding(xp.asarray(self._places(ids_BT, position_ids)))
        segments = None
        if token_type_ids is None:
            places = places + self.segment_embedding(xp.zeros((1, 1), np.int64))
        else:
            types = checked_ids(token_type_ids, c.segments, "token_type_ids", "segments", SEGMENTS)
            if types.shape != (B, T):
                raise ShapeError(
                    f"token_type_ids has shape {types.shape}, expected that of input_ids, {(B, T)}."
                )
            segments = self.segment_embedding(xp.asarray(types))
        _, x = self.norm.add(x + places, segments)
        x = ops.dropout(x, rate=c.dropout, rng=rng)
        if inspection is not None:
            inspection.hidden_states.append(x)
        for block in self.blocks:
            x = block(x, causal=False, key_padding=padding, inspection=inspection, rng=rng)
            if inspection is not None:
                inspection.hidden_states.append(x)
        return x

    def _places(self, ids_BT: Array, position_ids: Array | None) -> Array:
        """Rows of the position table."""
        like = self.norm.gain.array
        return (
            namespace(like).arange(ids_BT.shape[1])[None] if position_ids is None else position_ids
        )

    def pooled(self, hidden: Tensor, attention_mask: Array | None = None) -> Tensor:
        """One vector for each input, (B, D): the first token's through a layer and tanh.

        With padding on the left the mask says where the first token is.
        """
        if attention_mask is None:
            first = hidden[:, 0]
        else:
            B, T, D = hidden.shape
            xp = namespace(hidden.array)
            mask = xp.asarray(checked_mask(attention_mask, (B, T)))
            rows = xp.arange(B) * T + mask.argmax(axis=1)
            first = ops.take_rows(ops.reshape(hidden, shape=(B * T, D)), rows)
        return self.pooler(first, activation=ops.tanh)

    def features(
        self,
        hidden: Tensor,
        attention_mask: Array | None = None,
        *,
        rng: Generator | None = None,
    ) -> Tensor:
        """What the classifier reads: (B, D) of inputs, (B, T, D) of tokens; with rng after dropout."""
        c = self.config
        rate = c.dropout if c.classifier_dropout is None else c.classifier_dropout
        if "sequence-classification" in c.carries:
            hidden = self.pooled(hidden, attention_mask)
        return ops.dropout(hidden, rate=rate, rng=rng)
