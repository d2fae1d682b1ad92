"""T5: Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer.

Raffel, Shazeer, Roberts, Lee, Narang, Matena, Zhou, Li and Liu, JMLR 21, 2020 (arXiv:1910.10683). The sizes called v1.1
are those released later: GLU variants (Shazeer, 2020, arXiv:2002.05202), an output layer of its own.

The paper in five lines: every task is text in, text out, so one encoder-decoder, one loss and one way to decode serve
all. It is pretrained to fill in spans that were cut out of a text. Against the Transformer of 2017 the norms move to
the input of each branch and lose their mean and bias, no layer has a bias, scores are not divided by sqrt(K) (the
queries' weights start smaller instead), and positions are a learned number per head and bucket of differences, added to
the scores of self-attention; one table serves all layers of a stack.

Symbols: B batch, T time, S time of the encoder, V vocabulary, D hidden_size (d_model), K head_size (d_kv), H heads,
F ffn_size (d_ff), L layers.
"""

from dataclasses import dataclass
from typing import Any

from ..autograd import Tensor, no_grad, ops, recording
from ..backend import namespace
from ..errors import ConfigError, GraphError, ShapeError
from ..nn import (
    ACTIVATIONS,
    Conditioned,
    CrossAttention,
    Embedding,
    EncoderDecoderCache,
    FeedForward,
    GatedFeedForward,
    Head,
    Inspection,
    Module,
    RelativeBias,
    RMSNorm,
    SelfAttention,
    init,
)
from ..nn.checks import checked_ids, checked_mask
from ..nn.settings import check_fields
from ..types import Array, Generator


@dataclass(frozen=True, kw_only=True)
class T5Config:
    """What a T5 is made of.

    Attributes:
        vocab_size: tokens, V; the published 32,128 are 32,000 pieces, 100 sentinels and 28 rows without a token.
        hidden_size: width, D.
        head_size: width of a head, K; H K need not be D.
        ffn_size: width inside the feed-forward block, F.
        layers: blocks of the encoder, L.
        decoder_layers: blocks of the decoder; as many when None.
        heads: per layer, H.
        buckets: of relative positions.
        max_distance: from which on all distances share a bucket.
        gated: the feed-forward block has a gate, as in v1.1.
        activation: "relu", "gelu_tanh", "gelu", "silu" or "tanh".
        eps: added to the mean square in norms.
        dropout: of embeddings, attention probabilities, feed-forward, branches, and what a stack gives.
        tied: the head's weight is the token embedding's.
        scaled_output: the decoder's result is multiplied by 1 / sqrt(D) before the head.
        decoder_start: token that the decoder reads first; T5 takes its padding.
        init_factor: factor of the standard deviations of new weights.
    """

    vocab_size: int = 32_128
    hidden_size: int = 512
    head_size: int = 64
    ffn_size: int = 2_048
    layers: int = 6
    decoder_layers: int | None = None
    heads: int = 8
    buckets: int = 32
    max_distance: int = 128
    gated: bool = False
    activation: str = "relu"
    eps: float = 1e-6
    dropout: float = 0.1
    tied: bool = True
    scaled_output: bool = True
    decoder_start: int = 0
    init_factor: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "T5")
        if self.buckets < 4 or self.max_distance <= self.buckets // 2:
            raise ConfigError(
                f"buckets is {self.buckets} and max_distance {self.max_distance}, but there must be at least 4 "
                "buckets, half of which, for single distances, must end before max_distance."
            )
        if self.decoder_start >= self.vocab_size:
            raise ConfigError(
                f"decoder_start is {self.decoder_start}, but ids are below vocab_size={self.vocab_size}."
            )

    @property
    def positions(self) -> None:
        """No longest text: only differences of positions count."""
        return None


def _v1_1(**sizes: Any) -> T5Config:
    """With a gated feed-forward block and an output layer of its own."""
    shape: dict[str, Any] = {"gated": True, "activation": "gelu_tanh"}
    return T5Config(tied=False, scaled_output=False, **shape, **sizes)


SIZES = {
    "small": T5Config(),  # 60,506,624 parameters
    "base": T5Config(hidden_size=768, ffn_size=3_072, layers=12, heads=12),  # 222,903,552
    "large": T5Config(hidden_size=1_024, ffn_size=4_096, layers=24, heads=16),  # 737,668,096
    "3b": T5Config(
        hidden_size=1_024, head_size=128, ffn_size=16_384, layers=24, heads=32
    ),  # 2,851,598,336
    "11b": T5Config(
        hidden_size=1_024, head_size=128, ffn_size=65_536, layers=24, heads=128
    ),  # 11,307,321,344
}
SIZES_V1_1 = {
    "small": _v1_1(hidden_size=512, ffn_size=1_024, layers=8, heads=6),  # 76,961,152
    "base": _v1_1(hidden_size=768, ffn_size=2_048, layers=12, heads=12),  # 247,577,856
    "large": _v1_1(hidden_size=1_024, ffn_size=2_816, layers=24, heads=16),  # 783,150,080
    "xl": _v1_1(hidden_size=2_048, ffn_size=5_120, layers=24, heads=32),  # 2,849,757,184
    "xxl": _v1_1(hidden_size=4_096, ffn_size=10_240, layers=24, heads=64),  # 11,135,332,352
}


class Block(Module):
    """Self-attention, in a decoder attention to the encoder, and feed-forward: each added to what its norm read.

    Takes and gives the stream and a branch that the next norm adds to it, as `nn.PreNormBlock`.
    """

    def __init__(self, c: T5Config, *, decoder: bool, rng: Generator | None) -> None:
        D, f = c.hidden_size, c.init_factor
        # The queries' weights are smaller by sqrt(K), so that scores begin as if they were divided by it.
        attention: dict[str, Any] = {
            "head_size": c.head_size,
            "bias": False,
            "scale": 1.0,
            "dropout": c.dropout,
            "std": f * D**-0.5,
            "std_query": f * (D * c.head_size) ** -0.5,
            "std_out": f * (c.heads * c.head_size) ** -0.5,
            "rng": rng,
        }
        self.norm_1 = RMSNorm(D, eps=c.eps, rng=rng)
        self.attention = SelfAttention(D, c.heads, **attention)
        self.norm_cross = RMSNorm(D, eps=c.eps, rng=rng) if decoder else None
        self.cross_attention = CrossAttention(D, c.heads, **attention) if decoder else None
        self.norm_2 = RMSNorm(D, eps=c.eps, rng=rng)
        self.feed_forward = (GatedFeedForward if c.gated else FeedForward)(
            D,
            c.ffn_size,
            activation=ACTIVATIONS[c.activation],
            bias=False,
            dropout=c.dropout,
            std=f * D**-0.5,
            std_out=f * c.ffn_size**-0.5,
            rng=rng,
        )
        self.dropout = c.dropout

    def __call__(
        self,
        x: Tensor,
        branch: Tensor | None,
        *,
        memory: Tensor | None,
        memory_padding: Array | None,
        seen: dict[str, Any],
        **shared: Any,
    ) -> tuple[Tensor, Tensor]:
        """What self-attention sees is in `seen`; the other keywords, rng among them, go to both attentions."""
        rng = shared["rng"]
        x, y = self.norm_1.add(x, branch)
        branch = ops.dropout(self.attention(y, **seen, **shared), rate=self.dropout, rng=rng)
        if self.cross_attention is not None and self.norm_cross is not None and memory is not None:
            x, y = self.norm_cross.add(x, branch)
            y = self.cross_attention(y, memory, key_padding=memory_padding, **shared)
            branch = ops.dropout(y, rate=self.dropout, rng=rng)
        x, y = self.norm_2.add(x, branch)
        return x, ops.dropout(self.feed_forward(y, rng=rng), rate=self.dropout, rng=rng)


class Stack(Module):
    """The encoder or the decoder: blocks, one table of relative positions for all of them, and a norm at the end."""

    def __init__(self, c: T5Config, layers: int, *, decoder: bool, rng: Generator | None) -> None:
        self.position = RelativeBias(
            c.buckets,
            c.heads,
            max_distance=c.max_distance,
            bidirectional=not decoder,
            std=c.init_factor * c.hidden_size**-0.5,
            rng=rng,
        )
        self.blocks = [Block(c, decoder=decoder, rng=rng) for _ in range(layers)]
        self.norm = RMSNorm(c.hidden_size, eps=c.eps, rng=rng)
        self.causal = decoder
        self.dropout = c.dropout

    def __call__(
        self,
        x: Tensor,
        *,
        key_padding: Array | None,
        memory: Tensor | None = None,
        memory_padding: Array | None = None,
        cache: EncoderDecoderCache | None = None,
        inspection: Inspection | None = None,
        rng: Generator | None = None,
    ) -> Tensor:
        """Hidden states after the norm, of embeddings (B, T, D); memory is what the encoder made, for a decoder."""
        T, past = x.shape[1], 0 if cache is None else cache.length
        seen = {
            "causal": self.causal,
            "key_padding": key_padding,
            "differences": self.position.differences(T, past + T),
        }
        shared: dict[str, Any] = {"cache": cache, "inspection": inspection, "rng": rng}
        reads: dict[str, Any] = {"memory": memory, "memory_padding": memory_padding}
        x, branch = ops.dropout(x, rate=self.dropout, rng=rng), None
        for layer, block in enumerate(self.blocks):
            if inspection is not None:
                inspection.hidden_states.append(x if branch is None else x + branch)
            x, branch = block(x, branch, seen=seen, layer=layer, **reads, **shared)
        if cache is not None:
            cache.length += T
        y = ops.dropout(self.norm.add(x, branch)[1], rate=self.dropout, rng=rng)
        if inspection is not None:
            inspection.hidden_states.append(y)
        return y


class T5(Module):
    """The model; calling it gives the decoder's hidden states, and `head` turns them into logits."""

    def __init__(self, config: T5Config, *, rng: Generator | None) -> None:
        c, f = config, config.init_factor
        self.config = c
        self.token_embedding = Embedding(c.vocab_size, c.hidden_size, std=f, rng=rng)
        self.encoder = Stack(c, c.layers, decoder=False, rng=rng)
        self.decoder = Stack(c, c.decoder_layers or c.layers, decoder=True, rng=rng)
        scale = c.hidden_size**-0.5
        # An output layer of its own starts where the tied one does: weights and factor together of 1 / sqrt(D).
        own = None if c.tied else init.normal(rng, (c.vocab_size, c.hidden_size), f * scale)
        self.head = Head(
            self.token_embedding.weight if own is None else own,
            scale=scale if c.scaled_output else 1.0,
        )

    def encode(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        inspection: Inspection | None = None,
        rng: Generator | None = None,
    ) -> Tensor:
        """The encoder's hidden states (B, S, D); arguments as those of a call."""
        ids_BS, padding_BS = self._read("input_ids", input_ids, attention_mask)
        x = self.token_embedding(ids_BS)
        return self.encoder(x, key_padding=padding_BS, inspection=inspection, rng=rng)

    def __call__(
        self,
        input_ids: Array,
        *,
        attention_mask: Array | None = None,
        decoder_input_ids: Array | None = None,
        decoder_attention_mask: Array | None = None,
        inspection: Inspection | None = None,
        rng: Generator | None = None,
    ) -> Tensor:
        """The decoder's hidden states after its last norm, (B, T, D).

        Args:
            input_ids: (B, S) integers in [0, V), what the encoder reads.
            attention_mask: (B, S) of 1 for real tokens and 0 for padding, on either side.
            decoder_input_ids: (B, T), what the decoder reads: `decoder_start`, then the tokens before the last.
            decoder_attention_mask: (B, T), as attention_mask.
            inspection: collects hidden states and attention weights of both stacks.
            rng: source of dropout; without it nothing is dropped.

        Raises:
            ShapeError: ids out of range or empty, batches of different sizes, or a mask of another shape.
            DtypeError: ids that are not integers.
        """
        if decoder_input_ids is None:
            raise ShapeError(
                "decoder_input_ids is missing: T5 is an encoder-decoder, and its decoder begins with "
                f"decoder_start={self.config.decoder_start}. Objectives make them of labels; to write text use "
                "generate; for the encoder alone use encode."
            )
        look = None if inspection is None else Inspection()
        memory = self.encode(input_ids, attention_mask=attention_mask, inspection=look, rng=rng)
        if inspection is not None and look is not None:
            inspection.encoder_hidden_states += look.hidden_states
            inspection.encoder_attentions += look.attentions
        return self.decode(
            decoder_input_ids,
            memory,
            attention_mask=attention_mask,
            decoder_attention_mask=decoder_attention_mask,
            inspection=inspection,
            rng=rng,
        )

    def decode(
        self,
        decoder_input_ids: Array,
        memory: Tensor,
        *,
        attention_mask: Array | None = None,
        decoder_attention_mask: Array | None = None,
        cache: EncoderDecoderCache | None = None,
        inspection: Inspection | None = None,
        rng: Generator | None = None,
    ) -> Tensor:
        """The decoder's hidden states (B, T, D), given the encoder's (B, S, D).

        Arguments as those of a call; with a cache, decoder_input_ids are only the tokens that are not in it yet.

        Raises:
            GraphError: a cache while gradients are recorded.
        """
        past = 0 if cache is None else cache.length
        if cache is not None and recording():
            raise GraphError(
                "A cache keeps keys and values without their history, so gradients would be wrong. Use it within "
                "tinyplm.no_grad(), or train without a cache."
            )
        ids_BT, padding_BT = self._read(
            "decoder_input_ids", decoder_input_ids, decoder_attention_mask, past
        )
        if len(ids_BT) != memory.shape[0]:
            raise ShapeError(
                f"decoder_input_ids has {len(ids_BT)} rows and input_ids {memory.shape[0]}; expected as many."
            )
        if attention_mask is not None:
            real = checked_mask(attention_mask, memory.shape[:2])
            attention_mask = namespace(memory.array).asarray(real)
        return self.decoder(
            self.token_embedding(ids_BT),
            key_padding=padding_BT,
            memory=memory,
            memory_padding=attention_mask,
            cache=cache,
            inspection=inspection,
            rng=rng,
        )

    def conditioned(self, input_ids: Array, attention_mask: Array | None = None) -> Conditioned:
        """The language model that the decoder is once these texts (B, S) are read; nothing is recorded."""
        with no_grad():
            memory = self.encode(input_ids, attention_mask=attention_mask)
        return Conditioned(self, memory, attention_mask)

    def new_cache(self, batch: int, capacity: int) -> EncoderDecoderCache:
        """An empty cache of the decoder for this many rows and positions."""
        c, like = self.config, self.decoder.norm.gain.array
        shape = (batch, c.heads, capacity, c.head_size)
        return EncoderDecoderCache(c.decoder_layers or c.layers, shape, like.dtype, like)

    def _read(self, name: str, ids: Any, mask: Any, past: int = 0) -> tuple[Array, Array | None]:
        """Ids and padding, checked, as arrays of the library that the weights are of."""
        xp = namespace(self.encoder.norm.gain.array)
        checked = checked_ids(ids, self.config.vocab_size, name, "vocab_size")
        if mask is not None:
            mask = xp.asarray(checked_mask(mask, (len(checked), past + checked.shape[1])))
        return xp.asarray(checked), mask
