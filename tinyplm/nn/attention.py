"""Attention of many heads, and the cache that spares computing the past again.

Axes: B batch, T queries, S keys, D width, H heads, K width of a head.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from ..autograd import Tensor, ops
from ..backend import namespace
from ..errors import ShapeError
from ..kernels.few_rows import attend_few
from ..types import Array, Generator
from .linear import Linear
from .module import Module


@dataclass
class Inspection:
    """A look inside: pass one to a model and read it afterwards.

    Attributes:
        hidden_states: the embeddings' sum and what each block hands on, (B, T, D) each.
        attentions: the weights of each block, (B, H, T, S) each, before dropout.
        cross_attentions: of each block of a decoder, the weights over what an encoder made.
        encoder_hidden_states: as hidden_states, of the encoder beside a decoder.
        encoder_attentions: as attentions, of the encoder beside a decoder.
    """

    hidden_states: list[Tensor] = field(default_factory=list)
    attentions: list[Tensor] = field(default_factory=list)
    cross_attentions: list[Tensor] = field(default_factory=list)
    encoder_hidden_states: list[Tensor] = field(default_factory=list)
    encoder_attentions: list[Tensor] = field(default_factory=list)


class Cache:
    """Keys and values of every layer for the positions seen so far; room for `capacity` of them.

    Attributes:
        length: positions filled.
        plans: the weights that keys and values were made with, as `decoding.decode` wants them; None until it runs.
    """

    def __init__(
        self, layers: int, shape: tuple[int, int, int, int], dtype: np.dtype, beside: Array
    ) -> None:
        """Shape is (B, H, capacity, K); beside is an array of the library to use."""
        xp = namespace(beside)
        self.keys = [xp.zeros(shape, dtype) for _ in range(layers)]
        self.values = [xp.zeros(shape, dtype) for _ in range(layers)]
        self.length = 0
        self.plans: list[Any] | None = None

    @property
    def capacity(self) -> int:
        """Positions there is room for."""
        return self.keys[0].shape[2] if self.keys else 0

    def make_room(self, count: int) -> None:
        """Refuse more positions than there is room for.

        Raises:
            ShapeError: so many more do not fit.
        """
        if self.length + count > self.capacity:
            raise ShapeError(
                f"the cache has room for {self.capacity} positions, {self.length} are filled and {count} more "
                "came; make it with a larger capacity."
            )

    def extend(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Store keys and values (B, H, T, K) behind those of earlier positions; all of them so far, to be read."""
        self.make_room(k.shape[2])
        end = self.length + k.shape[2]
        self.keys[layer][:, :, self.length : end] = k
        self.values[layer][:, :, self.length : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def attend(
        self, layer: int, qkv_NE: Array, key_padding: Array | None, scale: float | None
    ) -> Array:
        """Store the keys and values of a few new positions, and mix for each what it sees; the past is not copied.

        Shapes:
            qkv: (B T, 3 H K), queries, keys and values side by side; key_padding: (B, length + T); result: (B T, H K).
        """
        width = self.keys[layer].shape[3]
        scale = 1 / math.sqrt(width) if scale is None else scale
        y_ND = namespace(qkv_NE).empty((len(qkv_NE), qkv_NE.shape[1] // 3), qkv_NE.dtype)
        keys, values = self.keys[layer], self.values[layer]
        attend_few(qkv_NE, keys, values, self.length, key_padding, scale, y_ND)
        return y_ND

    def reorder(self, rows: Array) -> None:
        """Let batch row i be what row rows[i] was; there may be more rows than before, or fewer."""
        filled = slice(0, self.length)
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                if len(rows) == len(old):
                    moved = rows != np.arange(len(old))  # the others stay where they are
                    old[moved, :, filled] = old[rows[moved], :, filled]
                else:
                    store[layer] = old[rows]


class EncoderDecoderCache(Cache):
    """A cache that also holds the keys and values that a decoder makes, once, of what an encoder has read."""

    def __init__(
        self, layers: int, shape: tuple[int, int, int, int], dtype: np.dtype, beside: Array
    ) -> None:
        """Shape is (B, H, capacity, K); beside is an array of the library to use."""
        super().__init__(layers, shape, dtype, beside)
        self.read: dict[int, Array] = {}
        self._texts = np.arange(shape[0])

    def of_encoder(self, layer: int, make: Callable[[], Tensor]) -> Tensor:
        """Keys and values (B, S, 2 H K) of a layer, which are made at the first call."""
        if layer not in self.read:
            self.read[layer] = make().array
        return Tensor.wrap(self.read[layer])

    def reorder(self, rows: Array) -> None:
        """Let batch row i be what row rows[i] was; there may be more rows than before, or fewer."""
        super().reorder(rows)
        texts = self._texts[rows]
        if not np.array_equal(texts, self._texts):  # the beams of one text have read the same
            self.read = {layer: kv[rows] for layer, kv in self.read.items()}
            self._texts = texts


class SelfAttention(Module):
    """Attention of a sequence to itself: one projection to queries, keys and values, heads, one projection out."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        head_size: int | None = None,
        bias: bool = True,
        scale: float | None = None,
        dropout: float = 0.0,
        std: float = 0.02,
        std_query: float | None = None,
        std_out: float = 0.02,
        rng: Generator | None,
    ) -> None:
        """Heads are width / heads wide unless head_size says otherwise; the std's are those of new weights."""
        inner = heads * (head_size or width // heads)
        self.project_in = Linear(width, 3 * inner, bias=bias, std=std, rng=rng)
        self.project_out = Linear(inner, width, bias=bias, std=std_out, rng=rng)
        if std_query is not None and rng is not None:
            cast(Tensor, self.project_in.weight).write()[:, :inner] *= np.float32(std_query / std)
        self.heads = heads
        self.scale = scale
        self.dropout = dropout

    def __call__(
        self,
        x: Tensor,
        *,
        causal: bool,
        key_padding: Array | None = None,
        differences: Tensor | None = None,
        cache: Cache | None = None,
        layer: int = 0,
        inspection: Inspection | None = None,
        rng: Generator | None = None,
    ) -> Tensor:
        """From (B, T, D) to the same; with a cache, keys and values of earlier positions are seen too.

        Args:
            x: what queries, keys and values are made of.
            causal: a position sees none after it.
            differences: (H, S + T - 1), added to the scaled scores by how far a key is from a query, as in
                `ops.attention`.
            key_padding: (B, S) booleans, true where a key is real; S counts those in the cache.
            cache: extended by the keys and values of x under the number `layer`.
            layer: which of the cache's layers this is.
            inspection: collects the attention weights.
            rng: source of dropout; without it nothing is dropped.
        """
        B, T, _ = x.shape
        qkv = self.project_in(x)
        if cache is None and inspection is None:
            y: Any = ops.packed_attention(
                qkv,
                None,
                differences,
                heads=self.heads,
                causal=causal,
                key_padding=key_padding,
                scale=self.scale,
                rate=self.dropout,
                rng=rng,
            )
            return self.project_out(y)
        parts: Any = ops.split(qkv, parts=3, axis=2)
        q, k, v = (_heads(part, self.heads) for part in parts)
        if cache is not None:
            k, v = map(Tensor.wrap, cache.extend(layer, k.array, v.array))
        y = ops.attention(
            q,
            k,
            v,
            None,
            differences,
            causal=causal,
            key_padding=key_padding,
            scale=self.scale,
            rate=self.dropout,
            rng=rng,
            return_probabilities=inspection is not None,
        )
        if inspection is not None:
            y, probabilities = y
            inspection.attentions.append(probabilities)
        return self.project_out(ops.reshape(ops.transpose(y, axes=(0, 2, 1, 3)), shape=(B, T, -1)))


class CrossAttention(Module):
    """Attention of a sequence to another, mostly of a decoder to what an encoder made."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        head_size: int | None = None,
        bias: bool = True,
        scale: float | None = None,
        dropout: float = 0.0,
        std: float = 0.02,
        std_query: float | None = None,
        std_out: float = 0.02,
        rng: Generator | None,
    ) -> None:
        """As SelfAttention."""
        inner = heads * (head_size or width // heads)
        self.project_query = Linear(width, inner, bias=bias, std=std_query or std, rng=rng)
        self.project_memory = Linear(width, 2 * inner, bias=bias, std=std, rng=rng)
        self.project_out = Linear(inner, width, bias=bias, std=std_out, rng=rng)
        self.heads = heads
        self.scale = scale
        self.dropout = dropout

    def __call__(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        key_padding: Array | None = None,
        cache: EncoderDecoderCache | None = None,
        layer: int = 0,
        inspection: Inspection | None = None,
        rng: Generator | None = None,
    ) -> Tensor:
        """From (B, T, D) to the same.

        Args:
            x: what queries are made of.
            memory: (B, S, D), what keys and values are made of; with a cache only at the first call.
            key_padding: (B, S) booleans, true where a key is real.
            cache: holds the keys and values from the first call on, under the number `layer`.
            layer: which of the cache's layers this is.
            inspection: collects the attention weights.
            rng: source of dropout; without it nothing is dropped.
        """
        q = self.project_query(x)
        kv = (
            self.project_memory(memory)
            if cache is None
            else cache.of_encoder(layer, lambda: self.project_memory(memory))
        )
        rules: dict[str, Any] = {
            "key_padding": key_padding,
            "scale": self.scale,
            "rate": self.dropout,
            "rng": rng,
        }
        if inspection is None:
            y: Any = ops.packed_cross_attention(q, kv, heads=self.heads, **rules)
            return self.project_out(y)
        halves: Any = ops.split(kv, parts=2, axis=2)
        q4, k4, v4 = (_heads(part, self.heads) for part in (q, *halves))
        both: Any = ops.attention(q4, k4, v4, return_probabilities=True, **rules)
        y, probabilities = both
        inspection.cross_attentions.append(probabilities)
        y = ops.reshape(ops.transpose(y, axes=(0, 2, 1, 3)), shape=q.shape)
        return self.project_out(y)


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, heads K) as (B, heads, T, K)."""
    return ops.transpose(ops.reshape(x, shape=(*x.shape[:2], heads, -1)), axes=(0, 2, 1, 3))
