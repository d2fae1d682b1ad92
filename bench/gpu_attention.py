"""Attention on a card: 16,384 tokens of 2,048 values, forward and backward, with what models put into it; and decoding.

Operations are counted as papers do: 4 B H T S K forwards, half of them if causal, two and a half times as many
backwards; of windows and padding only what is seen.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from tinyplm.kernels.attention import Rules, attention_forward, attention_pullback

from .gpu_cases import COPY_RATE, Case, Ground, Seconds, Work, all_finite, nans, relative, wide
from .gpu_matmul import expected, ours
from .gpu_timing import Way

TOKENS, VALUES = 16_384, 2_048
WINDOW, RATE, PADDED, SEED = 256, 0.1, 0.7, 12_345
LIMITS = {"forward": 5e-3, "backward": 1e-2}
SINGLE_LIMIT = 1e-5
HEADS_CHECKED = 3

PREDICTED: dict[tuple[str, str], tuple[Seconds, str]] = {
    ("forward", "causal 1024"): ((185e12, 230e12), "6.3, F3 to F4"),
    ("backward", "causal 1024"): ((120e12, 150e12), "6.4, B1"),
}
"""Operations per second that the design predicts of mma.sync at heads of 64 (none measured)."""


@dataclass(frozen=True)
class Shape:
    """What is attended to.

    Attributes:
        kind: "plain", "causal", "window", "padding", "bias", "dropout", "decode".
        B: batch.
        H: heads.
        T: queries.
        S: keys.
        K: width of a head.
        dtype: of all.
    """

    kind: str
    B: int
    H: int
    T: int
    S: int
    K: int
    dtype: str = "bfloat16"

    @property
    def causal(self) -> bool:
        """Whether later keys are hidden; GPT-2 is what drops and what decodes."""
        return self.kind in ("causal", "window", "dropout", "decode")

    @property
    def scores(self) -> float:
        """That must be computed, of all heads."""
        one = float(self.T * self.S)
        if self.kind in ("causal", "dropout"):
            one /= 2
        elif self.kind == "window":
            near = min(WINDOW, self.T)
            one = near * (near + 1) / 2 + (self.T - near) * near
        elif self.kind == "padding":
            one *= PADDED
        return self.B * self.H * one

    def flops(self, way: str) -> float:
        """Operations of both products of the scores, or of the five of the gradients."""
        return 4.0 * self.scores * self.K * (2.5 if way == "backward" else 1.0)

    def moved(self, way: str) -> float:
        """Bytes: q, k, v and the result; backwards those, the gradient of the result and three more."""
        size = 4 if self.dtype == "float32" else 2
        queries, keys = self.B * self.H * self.T * self.K, self.B * self.H * self.S * self.K
        if way == "forward":
            return size * (2.0 * queries + 2.0 * keys) + 4.0 * self.B * self.H * self.T
        return size * (4.0 * queries + 4.0 * keys) + 4.0 * self.B * self.H * self.T

    def __str__(self) -> str:
        keys = f"x{self.S}" if self.S != self.T else ""
        return f"{self.B}x{self.H}x{self.T}{keys}x{self.K}"


def shape(kind: str, T: int, K: int, **more: Any) -> Shape:
    """The standard one: as many tokens and values whatever T and K are."""
    return Shape(kind, TOKENS // T, VALUES // K, T, T, K, **more)


def cases(settings: dict[str, Any]) -> list[Case]:
    """The standard ones, or causal and plain ones of the sizes (B, H, T, K) that were asked for."""
    asked = [s for s in settings.get("sizes") or [] if len(s) == 4]
    if asked:
        return [
            _case(Shape(kind, B, H, T, T, K), way, 1)
            for B, H, T, K in asked
            for kind in ("causal", "plain")
            for way in LIMITS
        ]
    if settings.get("sizes"):
        return []
    found = []
    for way in ("forward", "backward"):
        found += [
            _case(shape("causal", 1024, 64), way, 1, quick=True),
            _case(shape("causal", 1024, 64), way, 2, jax=True),
            _case(shape("plain", 512, 64), way, 1, quick=True),
            _case(shape("causal", 4096, 64), way, 1),
            _case(shape("causal", 1024, 128), way, 2),
            _case(shape("causal", 4096, 128), way, 2),
            _case(shape("plain", 2048, 64), way, 2),
            _case(shape("bias", 512, 64), way, 1),
            _case(shape("padding", 512, 64), way, 2),
            _case(shape("window", 4096, 64), way, 2),
            _case(shape("dropout", 1024, 64), way, 1),
            _case(shape("causal", 512, 64), way, 3),
            _case(shape("causal", 2048, 64), way, 3),
            _case(shape("plain", 1024, 64), way, 3),
            _case(shape("plain", 4096, 64), way, 3),
            _case(shape("plain", 2048, 128), way, 3),
            _case(shape("causal", 1024, 64, dtype="float32"), way, 3),
        ]
    found.append(_case(Shape("decode", 64, 12, 1, 1024, 64), "forward", 2))
    found.append(_case(Shape("decode", 1, 12, 1, 8192, 64), "forward", 3))
    return found


def _case(s: Shape, way: str, priority: int, *, quick: bool = False, jax: bool = False) -> Case:
    flops, moved = s.flops(way), s.moved(way)
    predicted, source = None, ""
    if s.kind == "decode":
        predicted = moved / COPY_RATE, moved / COPY_RATE / 0.8
        source = "6.5"
    elif s.K == 64 and s.dtype == "bfloat16" and (way, f"{s.kind} {s.T}") in PREDICTED:
        rates, source = PREDICTED[way, f"{s.kind} {s.T}"]
        predicted = expected(flops, moved, rates)
    return Case(
        family="attention",
        what=f"attention_{'forward' if way == 'forward' else 'pullback'} {s.kind}" + " jax" * jax,
        shapes=str(s),
        dtype=s.dtype,
        flops=flops,
        moved=moved,
        predicted=predicted,
        source=source,
        priority=priority,
        seconds=7,
        limit=150,
        quick=quick,
        compiles=s.kind in ("window", "padding", "bias"),
        build=partial(_build, s, way, jax),
        files=partial(_launched, s, way),
    )


def _launched(s: Shape, way: str, ground: Ground) -> list[str]:
    """Launches what the case does, at a size that takes no time; which kernels those are depends on little of it."""
    small = replace(s, B=1, H=1, T=min(s.T, 128), S=min(s.S, 128))
    peers, ground.peers = ground.peers, ()
    try:
        for one in _build(small, way, False, ground).ways:
            if one.variant == "cuda":
                one.run(0)
    finally:
        ground.peers = peers
    return []


@dataclass
class Inputs:
    """One set: views of a packed projection (B, T, 3, H, K), and the gradient of the result."""

    q: Any
    k: Any
    v: Any
    g: Any
    into: tuple[Any, Any, Any]
    found: Any = None


def _build(s: Shape, way: str, jax: bool, ground: Ground) -> Work:
    xp = ground.xp
    mask, bias, lengths = _extras(s, ground)
    rules = Rules(
        causal=s.causal,
        mask=mask,
        scale=s.K**-0.5,
        rate=RATE if s.kind == "dropout" else 0.0,
        seed=SEED,
        window=WINDOW if s.kind == "window" else None,
    )
    sets = ground.sets(s.moved(way), partial(_inputs, s, way, ground))
    if way == "forward":
        given = (sets[0].q, sets[0].k, sets[0].v, bias, rules, False)

        def run(f: Any, i: int) -> Any:
            one = sets[i % len(sets)]
            return f(one.q, one.k, one.v, bias, rules, False)

        ways = list(ours(ground, attention_forward, given, run))
    else:
        for one in sets:
            one.found = attention_forward(one.q, one.k, one.v, bias, rules, False)
        first = sets[0]
        given = (first.g, None, first.q, first.k, first.v, bias, rules, first.found, first.into)

        def run(f: Any, i: int) -> Any:
            o = sets[i % len(sets)]
            g_bias = f(o.g, None, o.q, o.k, o.v, bias, rules, o.found, o.into)
            return (*o.into, g_bias) if g_bias is not None else o.into

        ways = list(ours(ground, attention_pullback, given, run))
    for one in ways:
        one.read = partial(_read, way)
    if "torch" in ground.peers and not jax:
        ways += _peers(s, way, ground, sets, mask, bias, lengths)
    if jax and "jax" in ground.peers:  # a case of its own, as both bring libraries of one name
        from . import gpu_peers

        given_jax = [(o.q, o.k, o.v, o.q if o.g is None else o.g) for o in sets]
        ways += gpu_peers.jax_attention(
            xp, given_jax, scale=rules.scale, causal=s.causal, backward=way == "backward"
        )
    return Work(ways, _heads_error(s, way, ground, sets[0], mask, bias, rules))


def _inputs(s: Shape, way: str, ground: Ground) -> Inputs:
    if s.T == s.S:
        packed = ground.normal((s.B, s.T, 3, s.H, s.K), s.dtype)
        q, k, v = (packed[:, :, i].swapaxes(1, 2) for i in range(3))
    else:
        q = ground.normal((s.B, s.T, s.H, s.K), s.dtype).swapaxes(1, 2)
        k, v = (ground.normal((s.B, s.H, s.S, s.K), s.dtype) for _ in range(2))
    g = into = None
    if way == "backward":
        g = ground.normal((s.B, s.T, s.H, s.K), s.dtype).swapaxes(1, 2)
        room = nans(ground.xp, (s.B, s.T, 3, s.H, s.K), s.dtype)
        into = tuple(room[:, :, i].swapaxes(1, 2) for i in range(3))
    return Inputs(q, k, v, g, into)


def _extras(s: Shape, ground: Ground) -> tuple[Any, Any, Any]:
    """Mask (B, 1, 1, S), bias by difference (H, S + T - 1), and how many keys each row has."""
    if s.kind == "padding":
        low = int(2 * PADDED * s.S) - s.S  # between this and all: PADDED of them on average
        lengths = ground.rng.integers(low, s.S + 1, s.B)
        mask = np.arange(s.S)[None, :] < lengths[:, None]
        return ground.xp.asarray(mask[:, None, None, :]), None, lengths
    if s.kind == "bias":
        return None, ground.normal((s.H, s.S + s.T - 1), "float32"), None
    return None, None, None


def _read(way: str, made: Any) -> tuple[Any, ...]:
    return (made.y,) if way == "forward" else made


# ---- against float64


def _heads_error(
    s: Shape, way: str, ground: Ground, one: Inputs, mask: Any, bias: Any, rules: Rules
) -> Callable[[tuple[Any, ...]], float]:
    """Every value is there; some heads are right, of the first, the last and another row of the batch.

    Which values dropout drops is checked elsewhere, at sizes for which the definition can be asked.
    """
    xp = ground.xp
    heads = {(0, 0), (s.B - 1, s.H - 1), (s.B // 2, s.H // 3)}
    exact = {}
    if not rules.rate:
        for b, h in sorted(heads)[:HEADS_CHECKED]:
            exact[b, h] = _exact(xp, s, way, one, mask, bias, rules, b, h)
    limit = SINGLE_LIMIT if s.dtype == "float32" else LIMITS[way]

    def error(results: tuple[Any, ...]) -> float:
        arrays = results[: 1 if way == "forward" else 3]
        if not all(all_finite(xp, a) for a in arrays):
            return math.nan
        worst = 0.0
        for i, array in enumerate(arrays):
            if exact:
                found = xp.concatenate([wide(xp, array[b, h]) for b, h in exact])
                right = xp.concatenate([e[i] for e in exact.values()])
                worst = max(worst, relative(xp, found, right) / limit)
        return worst

    return error


def _exact(
    xp: Any, s: Shape, way: str, one: Inputs, mask: Any, bias: Any, rules: Rules, b: int, h: int
) -> tuple[Any, ...]:
    """The result of one head in float64, or the gradients of its queries, keys and values."""
    q, k, v = (wide(xp, a[b, h]) for a in (one.q, one.k, one.v))
    t, key = xp.arange(s.T)[:, None] + (s.S - s.T), xp.arange(s.S)[None, :]
    seen = xp.ones((s.T, s.S), np.bool_)
    if rules.causal:
        seen &= key <= t
    if rules.window is not None:
        seen &= abs(key - t) < rules.window
    if mask is not None:
        seen &= mask[b, 0, 0][None, :]
    scores = xp.matmul(q, k.T) * rules.scale
    if bias is not None:
        scores += bias[h].astype(np.float64)[key - xp.arange(s.T)[:, None] + s.T - 1]
    scores = xp.where(seen, scores, -np.inf)
    p = xp.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    if way == "forward":
        return (xp.matmul(p, v),)
    g = wide(xp, one.g[b, h])
    gp = xp.matmul(g, v.T)
    gs = p * (gp - (gp * p).sum(axis=1, keepdims=True)) * rules.scale
    return xp.matmul(gs, k), xp.matmul(gs.T, q), xp.matmul(p.T, g)


# ---- peers


def _peers(
    s: Shape, way: str, ground: Ground, sets: list[Inputs], mask: Any, bias: Any, lengths: Any
) -> Iterator[Way]:
    from . import gpu_peers

    xp, scale, backward = ground.xp, s.K**-0.5, way == "backward"
    given = [(o.q, o.k, o.v, o.g if backward else o.q) for o in sets]
    dense = None
    if mask is not None:
        dense = gpu_peers.tensor(mask.view(np.uint8)).bool()
    elif s.kind == "bias":
        t, key = xp.arange(s.T)[:, None], xp.arange(s.S)[None, :]
        dense = gpu_peers.tensor(bias[:, key - t + s.T - 1].astype(sets[0].q.dtype))[None]
    elif s.kind == "window":
        t, key = np.arange(s.T)[:, None], np.arange(s.S)[None, :]
        near = (key <= t) & (abs(key - t) < WINDOW)
        dense = gpu_peers.tensor(xp.asarray(near.view(np.uint8))).bool()
    plain = s.kind in ("plain", "causal", "dropout")
    yield from gpu_peers.attention(
        xp, given, scale=scale, causal=s.causal and plain, mask=dense,
        rate=RATE if s.kind == "dropout" else 0.0, backward=backward,
    )  # fmt: skip
    if s.kind in ("window", "padding", "bias"):
        yield gpu_peers.flex(xp, given, scale=scale, backward=backward, **_rule(s, bias, lengths))
    short = s.kind in ("plain", "causal") and s.dtype != "float32"  # Triton's float32 is TF32
    if "triton" in ground.peers and short and not backward:
        yield gpu_peers.triton_attention(xp, given, scale=scale, causal=s.causal)


def _rule(s: Shape, bias: Any, lengths: Any) -> dict[str, Any]:
    """For PyTorch's compiled attention: who sees whom, or what is added to scores."""
    import torch

    from . import gpu_peers

    if s.kind == "window":
        return {"seen": lambda b, h, t, key: (key <= t) & (t - key < WINDOW)}
    if s.kind == "padding":
        real = torch.as_tensor(lengths, device=gpu_peers.DEVICE)
        return {"seen": lambda b, h, t, key: key < real[b]}
    table, T = gpu_peers.tensor(bias), s.T
    return {
        "score": lambda score, b, h, t, key: score + table[h, key - t + T - 1],
        "learned": [table],
    }
