"""GPT-2: Language Models are Unsupervised Multitask Learners.

Radford, Wu, Child, Luan, Amodei and Sutskever, OpenAI, 2019 (no arXiv number; technical report, February 2019).

The paper in five lines: a decoder-only Transformer trained on forty gigabytes of web pages predicts the next token;
with enough of both, tasks it was never trained on can be asked for in plain text. Against GPT-1 the layer norms move
to the input of each branch, one more follows the last block, the weights that write into the residual stream start
smaller by 1 / sqrt(2 L), the context grows to 1024 tokens, and the tokens are bytes merged by BPE, so that nothing is
unknown.

Symbols: B batch, T time, V vocabulary, D hidden_size, F ffn_size, L layers, H heads, P positions.
Parameter counts that the paper prints (117M, 345M, 762M, 1542M) are miscounts; SIZES gives the true ones.
"""

import math
from dataclasses import dataclass

from ..autograd import Tensor, no_grad, ops, recording
from ..backend import namespace, to_numpy
from ..errors import ConfigError, GraphError, ShapeError
from ..nn import (
    ACTIVATIONS,
    Cache,
    Embedding,
    FeedForward,
    Head,
    Inspection,
    LayerNorm,
    Module,
    PreNormBlock,
    SelfAttention,
    init,
)
from ..nn.checks import checked_ids, checked_mask
from ..nn.decoding import decode
from ..nn.settings import check_fields
from ..types import Array, Generator


@dataclass(frozen=True, kw_only=True)
class Gpt2Config:
    """What a GPT-2 is made of.

    Attributes:
        vocab_size: tokens, V.
        hidden_size: width, D.
        layers: blocks, L.
        heads: per layer, H; the width of a head is D / H.
        ffn_size: width inside the feed-forward block, F; 4 D when None.
        positions: longest context, P.
        activation: "gelu_tanh", "gelu", "relu", "silu" or "tanh".
        eps: added to the variance in layer norms.
        dropout: of both residual branches.
        embedding_dropout: of the sum of embeddings.
        attention_dropout: of attention probabilities.
        tied: the head's weight is the token embedding's.
        scaled: scores are divided by sqrt(D / H).
        scaled_by_depth: scores of block i, from 0, are also divided by i + 1.
        init_std: standard deviation of new weights.
    """

    vocab_size: int = 50_257
    hidden_size: int = 768
    layers: int = 12
    heads: int = 12
    ffn_size: int | None = None
    positions: int = 1_024
    activation: str = "gelu_tanh"
    eps: float = 1e-5
    dropout: float = 0.1
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.1
    tied: bool = True
    scaled: bool = True
    scaled_by_depth: bool = False
    init_std: float = 0.02

    def __post_init__(self) -> None:
        if self.ffn_size is None and type(self.hidden_size) is int:
            object.__setattr__(self, "ffn_size", 4 * self.hidden_size)
        check_fields(self, "GPT-2")
        if self.hidden_size % self.heads:
            raise ConfigError(
                f"hidden_size={self.hidden_size} is not a multiple of heads={self.heads}; choose heads that divide it."
            )


SIZES = {
    "small": Gpt2Config(),  # 124,439,808 parameters
    "medium": Gpt2Config(hidden_size=1_024, layers=24, heads=16),  # 354,823,168
    "large": Gpt2Config(hidden_size=1_280, layers=36, heads=20),  # 774,030,080
    "xl": Gpt2Config(hidden_size=1_600, layers=48, heads=25),  # 1,557,611,200
}


class Gpt2(Module):
    """The model; calling it gives hidden states, and `head` turns them into logits."""

    def __init__(self, config: Gpt2Config, *, rng: Generator | None) -> None:
        c, std = config, config.init_std
        # Section 2.3: residual weights are scaled by 1/sqrt(N), N the number of residual branches.
        std_out = std / math.sqrt(2 * c.layers)
        self.config = c
        self.token_embedding = Embedding(c.vocab_size, c.hidden_size, std=std, rng=rng)
        self.position_embedding = Embedding(c.positions, c.hidden_size, std=std, rng=rng)
        self.blocks = [
            PreNormBlock(
                SelfAttention(
                    c.hidden_size,
                    c.heads,
                    scale=_score_scale(c, i),
                    dropout=c.attention_dropout,
                    std=std,
                    std_out=std_out,
                    rng=rng,
                ),
                FeedForward(
                    c.hidden_size,
                    c.ffn_size or 4 * c.hidden_size,
                    activation=ACTIVATIONS[c.activation],
                    std=std,
                    std_out=std_out,
                    rng=rng,
                ),
                LayerNorm(c.hidden_size, eps=c.eps, rng=rng),
                LayerNorm(c.hidden_size, eps=c.eps, rng=rng),
                dropout=c.dropout,
            )
            for i in range(c.layers)
        ]
        self.norm = LayerNorm(c.hidden_size, eps=c.eps, rng=rng)
        self.head = Head(
            self.token_embedding.weight
            if c.tied
            else init.normal(rng, (c.vocab_size, c.hidden_size), std)
        )

    def __call__(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        cache: Cache | None = None,
        inspection: Inspection | None = None,
        rng: Generator | None = None,
    ) -> Tensor:
        """Hidden states after the last norm, (B, T, D).

        Args:
            input_ids: (B, T) integers in [0, V); with a cache, only the tokens that are not in it yet.
            attention_mask: (B, S) of 1 for real tokens and 0 for padding, S counting those in the cache.
            position_ids: (B, T) or (1, T); 0 to T - 1 behind the cache by default, also with padding on the left.
            cache: keys and values of earlier positions; extended. Only under no_grad: nothing flows back into it.
            inspection: collects hidden states and attention weights.
            rng: source of dropout; without it nothing is dropped.

        Raises:
            ShapeError: ids out of range, too long, empty, or a mask of another shape.
            DtypeError: ids that are not integers.
            GraphError: a cache while gradients are recorded.
        """
        c, past = self.config, cache.length if cache else 0
        if cache is not None and recording():
            raise GraphError(
                "A cache keeps keys and values without their history, so gradients would be wrong. Use it within "
                "tinyplm.no_grad(), or train without a cache."
            )
        xp = namespace(self.norm.gain.array)
        ids_BT = xp.asarray(checked_ids(input_ids, c.vocab_size, "input_ids", "vocab_size"))
        B, T = ids_BT.shape
        if past + T > c.positions:
            raise ShapeError(
                f"{past + T} tokens, but this GPT-2 has {c.positions} positions. Truncate to {c.positions}, or read "
                "long text in windows."
            )
        if position_ids is None:
            position_ids = xp.arange(past, past + T)
        else:
            position_ids = checked_ids(position_ids, c.positions, "position_ids", "positions")
            if position_ids.shape not in ((B, T), (1, T)):
                raise ShapeError(
                    f"position_ids has shape {position_ids.shape}, expected that of input_ids, {(B, T)}."
                )
        padding_BS = None
        if attention_mask is not None:
            padding_BS = xp.asarray(checked_mask(attention_mask, (B, past + T)))
        x = self.token_embedding(ids_BT) + self.position_embedding(xp.asarray(position_ids))
        x = ops.dropout(x, rate=c.embedding_dropout, rng=rng)
        branch = None  # what the last block leaves to be added to x
        blocks = self.blocks
        if (
            cache is not None
            and inspection is None
            and rng is None
            and (decoded := decode(blocks, x, cache, padding_BS)) is not None
        ):
            x, blocks = decoded, []
        for layer, block in enumerate(blocks):
            if inspection is not None:
                inspection.hidden_states.append(x if branch is None else x + branch)
            x, branch = block(
                x,
                branch,
                causal=True,
                key_padding=padding_BS,
                cache=cache,
                layer=layer,
                inspection=inspection,
                rng=rng,
            )
        if cache is not None:
            cache.length += T
        _, y = self.norm.add(x, branch)
        if inspection is not None:
            inspection.hidden_states.append(y)
        return y

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty cache for this many rows and positions."""
        c, weight = self.config, self.norm.gain.array
        shape = (batch, c.heads, capacity, c.hidden_size // c.heads)
        return Cache(c.layers, shape, weight.dtype, weight)

    def next_logits(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        cache: Cache | None = None,
    ) -> Array:
        """Logits (B, V) of the token after the last one given, as a NumPy array; nothing is recorded."""
        with no_grad():
            hidden = self(
                input_ids, attention_mask=attention_mask, position_ids=position_ids, cache=cache
            )
            return to_numpy(self.head(hidden[:, -1]).array)


def _score_scale(c: Gpt2Config, layer: int) -> float:
    scale = 1 / math.sqrt(c.hidden_size // c.heads) if c.scaled else 1.0
    return scale / (layer + 1) if c.scaled_by_depth else scale
