"""Where things stand to one another: relative positions, as biases of scores or in keys and values.

Both see the difference of two positions only, so a text may be shifted, padded on either side, or longer than any seen.

Axes: B batch, T queries, S keys, D width, H heads, K width of a head. Queries are the last T of the S positions.
"""

import functools
import math
from typing import Any

import numpy as np

from ..autograd import Tensor, ops
from ..backend import namespace
from ..types import Array, Generator
from . import init
from .attention import Inspection, SelfAttention
from .module import Module


def buckets_of(
    differences: Array, *, buckets: int, max_distance: int, bidirectional: bool
) -> Array:
    """The bucket of each key's position minus its query's, as T5's code has them.

    With n buckets for a direction, distances below n / 2 have one each; the rest share the other half, whose edges grow
    like powers up to max_distance, and everything farther is in the last. With `bidirectional`, n is half of the
    buckets, and keys after the query take the upper half; without it, keys after the query count as distance 0.
    """
    # (Raffel et al., 2020, section 2.1; the paper gives 32 and 128, the code the rule.)
    n = buckets // 2 if bidirectional else buckets
    distance = np.abs(differences) if bidirectional else np.maximum(-differences, 0)
    exact = n // 2
    # In float32, as there: at a power of the ratio the last bit decides.
    ratio = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(math.log(max_distance / exact)) * np.float32(n - exact)
    far = exact + ratio.astype(np.int64)
    found = np.where(distance < exact, distance, np.minimum(far, n - 1))
    return found + n * (differences > 0) if bidirectional else found


@functools.cache
def _buckets_within(
    xp: Any, length: int, buckets: int, max_distance: int, bidirectional: bool
) -> Array:
    """Those of differences above -length and below length, kept on the device: every step asks for the same."""
    differences = np.arange(1 - length, length)
    found = buckets_of(
        differences, buckets=buckets, max_distance=max_distance, bidirectional=bidirectional
    )
    kept: Array = xp.asarray(found)
    return kept


class RelativeBias(Module):
    """A learned number per head for each bucket of relative positions, added to scores (Raffel et al., 2020, 2.1).

    The table is (buckets, heads).
    """

    def __init__(
        self,
        buckets: int,
        heads: int,
        *,
        max_distance: int,
        bidirectional: bool,
        std: float = 0.02,
        rng: Generator | None,
    ) -> None:
        self.table = init.normal(rng, (buckets, heads), std)
        self.max_distance = max_distance
        self.bidirectional = bidirectional

    def __call__(self, queries: int, keys: int) -> Tensor:
        """Biases (1, H, T, S) of the last `queries` of `keys` positions, all pairs of them."""
        pairs = ops.by_difference(self.differences(queries, keys), queries=queries)
        return ops.reshape(pairs, shape=(1, *pairs.shape))

    def differences(self, queries: int, keys: int) -> Tensor:
        """The same by difference, (H, S + T - 1): from key 0 for the last query to the last key for the first."""
        room = 1 << (keys - 1).bit_length()  # so that few are kept while keys become more
        rule = self.table.shape[0], self.max_distance, self.bidirectional
        found = _buckets_within(namespace(self.table.array), room, *rule)
        # Differences from 1 - keys to queries - 1, as the first query stands at keys - queries.
        rows = ops.take_rows(self.table, found[room - keys : room + queries - 1])
        return ops.transpose(rows)


class ClippedPositions(Module):
    """A learned key and value for each difference from -limit to limit; what is farther counts as the limit.

    Self-Attention with Relative Position Representations (Shaw, Uszkoreit and Vaswani, 2018, arXiv:1803.02155),
    section 3.2. The tables are (2 limit + 1, K), shared by all heads.
    """

    def __init__(
        self, limit: int, head_size: int, *, std: float = 0.02, rng: Generator | None
    ) -> None:
        self.keys = init.normal(rng, (2 * limit + 1, head_size), std)
        self.values = init.normal(rng, (2 * limit + 1, head_size), std)

    def __call__(self, queries: int, keys: int) -> tuple[Tensor, Tensor]:
        """Keys and values (T, S, K) of the last `queries` of `keys` positions."""
        limit = self.keys.shape[0] // 2
        difference_TS = np.arange(keys) - np.arange(keys - queries, keys)[:, None]
        rows_TS = np.clip(difference_TS, -limit, limit) + limit
        return ops.take_rows(self.keys, rows_TS), ops.take_rows(self.values, rows_TS)


class RelativeAttention(Module):
    """Self-attention whose keys and values know how far they are from the query.

    e_ij = q_i . (k_j + a^K_ij) / sqrt(K);  z_i = sum_j softmax(e_i)_j (v_j + a^V_ij)    (Shaw et al., eqs. 3-4)
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        limit: int,
        bias: bool = True,
        dropout: float = 0.0,
        std: float = 0.02,
        std_out: float = 0.02,
        rng: Generator | None,
    ) -> None:
        plain = SelfAttention(width, heads, bias=bias, std=std, std_out=std_out, rng=rng)
        self.project_in = plain.project_in
        self.project_out = plain.project_out
        self.positions = ClippedPositions(limit, width // heads, std=std, rng=rng)
        self.heads = heads
        self.dropout = dropout

    def __call__(
        self,
        x: Tensor,
        *,
        causal: bool,
        key_padding: Array | None = None,
        inspection: Inspection | None = None,
        rng: Generator | None = None,
    ) -> Tensor:
        """From (B, T, D) to the same; arguments as those of SelfAttention."""
        B, T, D = x.shape
        shape = (B, T, 3, self.heads, D // self.heads)
        qkv: Any = ops.transpose(ops.reshape(self.project_in(x), shape=shape), axes=(2, 0, 3, 1, 4))
        q, k, v = qkv[0], qkv[1], qkv[2]
        keys_TSK, values_TSK = self.positions(T, T)
        scale = 1 / math.sqrt(D // self.heads)
        near = ops.einsum("bhtk,tsk->bhts", q, keys_TSK) * scale
        both: Any = ops.attention(
            q, k, v, near, causal=causal, key_padding=key_padding, return_probabilities=True
        )
        p = both[1]
        if inspection is not None:
            inspection.attentions.append(p)
        p = ops.dropout(p, rate=self.dropout, rng=rng)
        y = p @ v + ops.einsum("bhts,tsk->bhtk", p, values_TSK)
        y = ops.reshape(ops.transpose(y, axes=(0, 2, 1, 3)), shape=(B, T, D))
        return self.project_out(y)
