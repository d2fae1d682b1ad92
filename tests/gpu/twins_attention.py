"""NumPy that goes attention's device code's way: tile by tile, the same tiles left out, the same order of every sum.

What decides which tiles are visited is written as in attention_rules.cu, in plain Python. Numbers have the type of q;
in float64 a twin differs from a definition by nothing but roundings, which shows that tiles, order and rules are right.
"""

import math

import numpy as np

from tinyplm.kernels.attention import Kept
from tinyplm.kernels.dropout import scale
from tinyplm.kernels.philox import kept, threshold


class Sight:
    """Who sees whom, for T queries and S keys of a batch row: (begin, end) of spans, as attention_rules.cu has them."""

    def __init__(self, T, S, rules, mask_of_keys=None):
        self.T, self.S, self.shift = T, S, S - T
        self.back, self.ahead = rules.reach(T, S)
        self.visible = (0, S)
        if mask_of_keys is not None:
            seen = np.flatnonzero(mask_of_keys)
            self.visible = (seen[0], seen[-1] + 1) if seen.size else (0, 0)

    def keys_of(self, first, end):
        """Keys that some query of [first, end) may see."""
        low = first + self.shift - self.back + 1
        return max(self.visible[0], low), min(self.visible[1], end - 1 + self.shift + self.ahead)

    def queries_of(self, first, end):
        """Queries that may see some key of [first, end)."""
        first, end = max(first, self.visible[0]), min(end, self.visible[1])
        if first >= end:
            return 0, 0
        high = end - 1 + self.back - self.shift
        return max(0, first - self.ahead + 1 - self.shift), min(self.T, high)

    def all_seen(self, t, t_end, s, s_end):
        """Whether every query of [t, t_end) sees every key of [s, s_end), as far as positions say."""
        return (
            s_end <= self.S
            and s > t_end - 1 + self.shift - self.back
            and s_end - 1 < t + self.shift + self.ahead
        )

    def none_seen(self, t, t_end, s, s_end):
        """Whether no query of [t, t_end) sees any key of [s, s_end), as far as positions say."""
        return s >= t_end + self.shift - 1 + self.ahead or s_end <= t + self.shift - self.back + 1

    def seen(self, t, t_end, s, s_end):
        """The same pair by pair, as far as positions say."""
        position, key = np.arange(t, t_end)[:, None] + self.shift, np.arange(s, s_end)
        return (key > position - self.back) & (key < position + self.ahead)


def tiles(span, size):
    """Tiles of so many columns that touch a span."""
    return range(span[0] // size, -(-span[1] // size)) if span[1] > span[0] else range(0)


class Head:
    """One head of one batch row: its scores, tile by tile."""

    def __init__(self, q, k, bias, rules, b, h):
        (_, H, T, _), S = q.shape, k.shape[2]
        self.q, self.k, self.rules, self.kind = q[b, h], k[b, h], rules, q.dtype.type
        self.mask = None
        if rules.mask is not None:
            self.mask = np.broadcast_to(rules.mask, (q.shape[0], H, T, S))[b, h]
        of_keys = rules.mask is not None and rules.mask.shape[1:3] == (1, 1)
        self.sight = Sight(T, S, rules, self.mask[0] if of_keys else None)
        self.bias = None
        if bias is not None and bias.ndim == 2:
            at = np.arange(S) - np.arange(T)[:, None] + T - 1
            self.bias = bias[h][at]
        elif bias is not None:
            self.bias = np.broadcast_to(bias, (q.shape[0], H, T, S))[b, h]
        self.factor = np.ones((T, S), q.dtype)
        if rules.rate:
            heads, rows = np.full(T, b * H + h, np.int64), np.arange(T, dtype=np.int64)
            stays = kept(rules.seed, heads, rows, S, threshold(rules.rate))
            self.factor = stays * self.kind(scale(rules.rate))

    def scores(self, t, t_end, s, s_end):
        """Scores of a tile, minus infinity where a key is not seen."""
        x = self.q[t:t_end] @ self.k[s:s_end].T * self.kind(self.rules.scale)
        if self.bias is not None:
            x = x + self.bias[t:t_end, s:s_end]
        if self.mask is not None or not self.sight.all_seen(t, t_end, s, s_end):
            seen = self.sight.seen(t, t_end, s, s_end)
            if self.mask is not None:
                seen = seen & self.mask[t:t_end, s:s_end]
            x = np.where(seen, x, self.kind(-np.inf))
        return x


def forward(q, k, v, bias, rules, rows, columns):
    """Tiles of so many queries, which go through tiles of so many keys, the last one first."""
    (B, H, T, _), S = q.shape, k.shape[2]
    y, log_sum = np.zeros_like(q), np.zeros((B, H, T), q.dtype)
    for b, h in np.ndindex(B, H):
        head = Head(q, k, bias, rules, b, h)
        for t in range(0, T, rows):
            t_end = min(t + rows, T)
            largest = np.full((t_end - t, 1), -1e30, q.dtype)
            total, o = np.zeros_like(largest), np.zeros((t_end - t, q.shape[3]), q.dtype)
            for tile in reversed(tiles(head.sight.keys_of(t, t_end), columns)):
                s, s_end = tile * columns, min(tile * columns + columns, S)
                x = head.scores(t, t_end, s, s_end)
                top = np.maximum(largest, x.max(axis=1, keepdims=True))
                shrink, p = np.exp(largest - top), np.exp(x - top)
                total, largest = total * shrink + p.sum(axis=1, keepdims=True), top
                o = o * shrink + (p * head.factor[t:t_end, s:s_end]) @ v[b, h, s:s_end]
            nothing = total == 0
            whole = np.where(nothing, 1, total)
            y[b, h, t:t_end] = o / whole
            log_sum[b, h, t:t_end] = np.where(nothing, np.inf, largest + np.log(whole))[:, 0]
    return Kept(y, None, log_sum.reshape(-1))


def pullback(g, q, k, v, bias, rules, found, rows, columns):
    """Gradients of q, k, v and of each score: tiles of keys go through queries, tiles of queries through keys."""
    (B, H, T, _), S = q.shape, k.shape[2]
    gq, gk, gv, gs = (
        np.zeros_like(q),
        np.zeros_like(k),
        np.zeros_like(v),
        np.zeros((B, H, T, S), q.dtype),
    )
    log_sum, along = found.log_sum.reshape(B, H, T, 1), (g * found.y).sum(axis=-1, keepdims=True)
    for b, h in np.ndindex(B, H):
        head, at = Head(q, k, bias, rules, b, h), (b, h)

        def both(t, t_end, s, s_end, head=head, at=at):
            """Probabilities and gradients of scores."""
            p = np.exp(head.scores(t, t_end, s, s_end) - log_sum[at][t:t_end])
            factor = head.factor[t:t_end, s:s_end]
            given = g[at][t:t_end] @ v[at][s:s_end].T * factor
            return p * factor, p * (given - along[at][t:t_end])

        for s in range(0, S, rows):
            s_end = min(s + rows, S)
            for tile in tiles(head.sight.queries_of(s, s_end), columns):
                t, t_end = tile * columns, min(tile * columns + columns, T)
                used, gx = both(t, t_end, s, s_end)
                gv[at][s:s_end] += used.T @ g[at][t:t_end]
                gk[at][s:s_end] += gx.T @ q[at][t:t_end] * q.dtype.type(rules.scale)
        for t in range(0, T, rows):
            t_end = min(t + rows, T)
            for tile in reversed(tiles(head.sight.keys_of(t, t_end), columns)):
                s, s_end = tile * columns, min(tile * columns + columns, S)
                gx = both(t, t_end, s, s_end)[1]
                gs[at][t:t_end, s:s_end] = gx
                gq[at][t:t_end] += gx @ k[at][s:s_end] * q.dtype.type(rules.scale)
    return gq, gk, gv, gs


def differences(gs, rows):
    """What scores (T, S) give to each difference: of tiles of so many queries, 32 columns at once, by diagonals."""
    T, S = gs.shape
    total = np.zeros(S + T - 1, gs.dtype)
    for t in range(0, T, rows):
        of_tile = np.zeros(S + rows - 1, gs.dtype)  # [s + rows - 1 + j - i]
        for s in range(0, S, 32):
            piece = np.zeros((rows, 32), gs.dtype)
            part = gs[t : t + rows, s : s + 32]
            piece[: part.shape[0], : part.shape[1]] = part
            for lane in range(32):
                near = far = gs.dtype.type(0)
                for row in range(rows):
                    column = lane + row - (rows - 1)
                    if column >= 0:
                        near += piece[row, column & 31]
                    else:
                        far += piece[row, column & 31]
                for place, found in ((s + lane, near), (s + lane + 32, far)):
                    if place < len(of_tile) and (found is near or lane < rows - 1):
                        of_tile[place] += found
        for at in range(S + T - 1):
            place = at - T + t + rows
            if 0 <= place < len(of_tile):
                total[at] += of_tile[place]
    return total


def bank_conflicts(places, size):
    """Times that lanes which read or write `size` bytes each at these places (bytes) have to wait for a bank.

    Shared memory has 32 banks of four bytes. 16 bytes are served to eight lanes at once, eight to sixteen; lanes of one
    place are served together.
    """
    waits, at_once = 0, 128 // size
    for i in range(0, len(places), at_once):
        some = set(places[i : i + at_once])
        banks = [(place // 4 + j) % 32 for place in some for j in range(max(1, size // 4))]
        waits += max(banks.count(bank) for bank in set(banks)) - 1
    return waits


def place(width, itemsize, row, group):
    """Where a group of 16 bytes of a row begins in shared memory, in bytes; as in attention_tiles.cu."""
    count = width * itemsize // 16
    apart = math.gcd(count, 8)
    return (row * count + (group ^ (row // (8 // apart) % apart))) * 16
