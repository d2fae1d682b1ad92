"""Cases of recurrent cells."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...types import Array
from .case import Hard, Sample, case
from .draw import Draw

nan = math.nan
A = np.array


def _cell(gates: int, states: int, bias: bool, *, step: bool) -> Callable[[Draw], Sample]:
    """Inputs of an op with so many gates and states, for one step or several."""

    def drawn(d: Draw) -> Sample:
        B, H = d.integer(1, 3), d.integer(1, 3)
        T = d.integer(1, 4)
        if not step and d.rarely(12):
            T = 0
        leading = (B,) if step else (T, B)
        attributes: dict[str, Any] = {"real": d.booleans(leading)} if d.rarely(2) else {}
        inputs = [d.array((*leading, gates * H)), *(d.array((B, H)) for _ in range(states))]
        inputs += [d.array((H, gates * H)), *([d.array((H,))] if bias else [])]
        return Sample(tuple(inputs), attributes)

    return drawn


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _row(kind: str, x: Array, h: Array, c: Array, weight: Array, bias: Array) -> tuple[Any, Any]:
    """The next state of one text, value by value."""
    H = len(h)
    u = [math.fsum(h[k] * weight[k, j] for k in range(H)) for j in range(weight.shape[1])]
    if kind == "rnn":
        return [math.tanh(x[j] + u[j]) for j in range(H)], c
    if kind == "lstm":
        i, f, g, o = ([x[k * H + j] + u[k * H + j] for j in range(H)] for k in range(4))
        cell = [_sigmoid(f[j]) * c[j] + _sigmoid(i[j]) * math.tanh(g[j]) for j in range(H)]
        return [_sigmoid(o[j]) * math.tanh(cell[j]) for j in range(H)], cell
    new = []
    for j in range(H):
        r, z = (_sigmoid(x[k * H + j] + u[k * H + j]) for k in range(2))
        n = math.tanh(x[2 * H + j] + r * (u[2 * H + j] + bias[j]))
        new.append((1 - z) * n + z * h[j])
    return new, c


def _one_by_one(kind: str, *, step: bool) -> Callable[..., Any]:
    def oracle(gates: Array, h: Array, *rest: Array, real: Array | None = None) -> Any:
        c = rest[0] if kind == "lstm" else np.zeros(h.shape)
        weight, bias = (rest[-2], rest[-1]) if kind == "gru" else (rest[-1], np.zeros(0))
        if step:
            gates, real = gates[None], None if real is None else real[None]
        h, c = h.copy(), c.copy()
        found = np.zeros((len(gates), *h.shape))
        for t in range(len(gates)):
            for b in range(len(h)):
                if real is None or real[t, b]:
                    h[b], c[b] = _row(kind, gates[t, b], h[b], c[b], weight, bias)
            found[t] = h
        hidden = found[0] if step else found
        return (hidden, c) if kind == "lstm" else hidden

    return oracle


def _keeps(gates: int, saved: int, weight_at: int, *, step: bool) -> Callable[[Sample], int]:
    """The gates, so many states a step with those before, others without, the weight and the mask."""

    def bytes_of(s: Sample) -> int:
        given, h, weight = s.inputs[0], s.inputs[1], s.inputs[weight_at]
        T = 1 if step else len(given)
        real = s.attributes.get("real")
        own = given.nbytes if gates > 1 else 0  # the gates of an RNN become its states
        kept = own + saved * (T + 1) * h.nbytes + weight.nbytes
        if gates == 3:
            kept += T * h.nbytes  # what is reset
        return int(kept + (0 if real is None else real.nbytes))

    return bytes_of


def _register(
    kind: str, gates: int, states: int, saved: int, bias: bool, *hard: tuple[Any, ...]
) -> None:
    """The cases of a whole sequence and of one step, with the same hard inputs."""
    for step in (False, True):
        made = [
            Hard(
                says,
                tuple((x[0] if step else x) if i == 0 else x for i, x in enumerate(inputs)),
                _first(value) if step else value,
                tuple((g[0] if step else g) if i == 0 else g for i, g in enumerate(gradients)),
                {k: v[0] if step else v for k, v in attributes.items()},
            )
            for says, inputs, value, gradients, attributes in hard
        ]
        case(
            f"{kind}_step" if step else kind,
            _cell(gates, states, bias, step=step),
            _one_by_one(kind, step=step),
            _keeps(gates, saved, states + 1, step=step),
            *made,
        )


def _first(value: Any) -> Any:
    return (value[0][0], value[1]) if isinstance(value, tuple) else value[0]


_register(
    *("rnn", 1, 1, 1, False),
    (
        "nothing in gives nothing out, and a gradient that passes whole",
        (np.zeros((1, 1, 1)), np.zeros((1, 1)), A([[2.0]])),
        np.zeros((1, 1, 1)),
        (np.ones((1, 1, 1)), A([[2.0]]), A([[0.0]])),
        {},
    ),
    (
        "very large gates are 1, and pass nothing",
        (np.full((1, 1, 1), 1e4), np.zeros((1, 1)), A([[2.0]])),
        np.ones((1, 1, 1)),
        (np.zeros((1, 1, 1)), A([[0.0]]), A([[0.0]])),
        {},
    ),
    (
        "padding passes the state and its gradient, whatever it holds",
        (np.full((1, 1, 1), nan), A([[0.25]]), A([[2.0]])),
        A([[[0.25]]]),
        (np.zeros((1, 1, 1)), A([[1.0]]), A([[0.0]])),
        {"real": A([[False]])},
    ),
)
_register(
    *("lstm", 4, 2, 2, False),
    (
        "gates wide open add 1 to the cell, and only the cell has a gradient",
        (A([[[1e3, 1e3, 1e3, -1e3]]]), np.zeros((1, 1)), A([[2.0]]), np.ones((1, 4))),
        (np.zeros((1, 1, 1)), A([[3.0]])),
        (np.zeros((1, 1, 4)), A([[0.0]]), A([[1.0]]), np.zeros((1, 4))),
        {},
    ),
    (
        "a closed forget gate forgets, and passes nothing to the cell before",
        (A([[[-1e3, -1e3, 0.0, 0.0]]]), np.zeros((1, 1)), A([[2.0]]), np.zeros((1, 4))),
        (np.zeros((1, 1, 1)), A([[0.0]])),
        (np.zeros((1, 1, 4)), A([[0.0]]), A([[0.0]]), np.zeros((1, 4))),
        {},
    ),
    (
        "padding passes both states and their gradients, whatever it holds",
        (np.full((1, 1, 4), nan), A([[0.25]]), A([[2.0]]), np.ones((1, 4))),
        (A([[[0.25]]]), A([[2.0]])),
        (np.zeros((1, 1, 4)), A([[1.0]]), A([[1.0]]), np.zeros((1, 4))),
        {"real": A([[False]])},
    ),
)
_register(
    *("gru", 3, 1, 1, True),
    (
        "a closed update gate gives the new state and keeps nothing of the old",
        (A([[[1e3, -1e3, 0.0]]]), A([[5.0]]), np.zeros((1, 3)), A([0.0])),
        np.zeros((1, 1, 1)),
        (A([[[0.0, 0.0, 1.0]]]), A([[0.0]]), A([[0.0, 0.0, 5.0]]), A([1.0])),
        {},
    ),
    (
        "an open update gate keeps the state",
        (A([[[0.0, 1e3, 0.0]]]), A([[5.0]]), np.zeros((1, 3)), A([0.0])),
        A([[[5.0]]]),
        (np.zeros((1, 1, 3)), A([[1.0]]), np.zeros((1, 3)), A([0.0])),
        {},
    ),
    (
        "padding passes the state and its gradient, whatever it holds",
        (np.full((1, 1, 3), nan), A([[0.25]]), np.ones((1, 3)), A([1.0])),
        A([[[0.25]]]),
        (np.zeros((1, 1, 3)), A([[1.0]]), np.zeros((1, 3)), A([0.0])),
        {"real": A([[False]])},
    ),
)
