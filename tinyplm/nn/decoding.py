"""Blocks of a Transformer on a few new positions behind a cache: five kernels a block, and nothing recorded.

The same results as calling the blocks, up to the order of summation. What it saves is Python: an op costs microseconds,
and a block has more than twenty; with quantised weights that would take as long as the arithmetic.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..autograd import Tensor, ops, recording
from ..kernels import precision
from ..kernels.few_rows import FEW, few_rows
from ..types import Array
from .attention import Cache, SelfAttention
from .feed_forward import FeedForward
from .linear import Linear
from .norm import LayerNorm
from .quantized import Quantized
from .transformer import PreNormBlock


class Plan(NamedTuple):
    """The arrays of a block, in the order in which `few_rows` takes them: norm, then weight."""

    norm_1: tuple[Any, ...]
    project_in: tuple[Any, ...]
    project_out: tuple[Any, ...]
    norm_2: tuple[Any, ...]
    expand: tuple[Any, ...]
    contract: tuple[Any, ...]
    scale: float | None
    activation: Callable[[Tensor], Tensor] | None
    """None for that which `few_rows` has itself."""


NO_NORM = (None, None, 0.0)


def decode(blocks: list[Any], x: Tensor, cache: Cache, key_padding: Array | None) -> Tensor | None:
    """Hidden states (B, T, D) behind the blocks, without dropout; None where the blocks have to be called.

    Keys and values go into the cache, whose length stays as it is.
    """
    x_BTD = x.array
    B, T, D = x_BTD.shape
    if (
        B * T > FEW
        or type(x_BTD) is not np.ndarray
        or (x.requires_grad and recording())
        or precision.current() != "float32"
    ):
        return None
    if cache.plans is None:  # keys and values belong to the weights that they were made with
        cache.plans = [_plan(block) for block in blocks] if _known(blocks, x_BTD.dtype) else []
    if not cache.plans:
        return None
    cache.make_room(T)
    x_ND = np.ascontiguousarray(x_BTD).reshape(B * T, D)
    for layer, p in enumerate(cache.plans):
        qkv = few_rows(x_ND, *p.norm_1, *p.project_in, False, None)
        mixed = cache.attend(layer, qkv, key_padding, p.scale)
        x_ND = few_rows(mixed, *NO_NORM, *p.project_out, False, x_ND)
        inner = few_rows(x_ND, *p.norm_2, *p.expand, p.activation is None, None)
        if p.activation is not None:
            inner = p.activation(Tensor.wrap(inner)).array
        x_ND = few_rows(inner, *NO_NORM, *p.contract, False, x_ND)
    return Tensor.wrap(x_ND.reshape(B, T, D))


def _known(blocks: list[Any], dtype: np.dtype[Any]) -> bool:
    """Whether all blocks are made of the parts that are known here, and compute in one precision."""
    return dtype.char in "fd" and all(
        type(block) is PreNormBlock
        and type(block.attention) is SelfAttention
        and type(block.feed_forward) is FeedForward
        and type(block.norm_1) is type(block.norm_2) is LayerNorm
        and block.norm_1.gain.dtype == dtype
        and getattr(block.attention.project_in.bias, "dtype", None) == dtype
        for block in blocks
    )


def _plan(block: PreNormBlock) -> Plan:
    attention: Any = block.attention
    feed_forward: Any = block.feed_forward
    return Plan(
        _of_norm(block.norm_1),
        _of_linear(attention.project_in),
        _of_linear(attention.project_out),
        _of_norm(block.norm_2),
        _of_linear(feed_forward.expand),
        _of_linear(feed_forward.contract),
        attention.scale,
        None if feed_forward.activation is ops.gelu_tanh else feed_forward.activation,
    )


def _of_norm(norm: Any) -> tuple[Any, ...]:
    return norm.gain.array, norm.bias.array, norm.eps


def _of_linear(layer: Linear) -> tuple[Any, ...]:
    weight = layer.weight
    bias = None if layer.bias is None else layer.bias.array
    if isinstance(weight, Quantized):
        return weight.columns, weight.scale, bias
    return weight.array, None, bias
