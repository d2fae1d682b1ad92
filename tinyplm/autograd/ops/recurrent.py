"""Recurrent cells: one step as an op, and a whole sequence of steps with the way back through it.

The input's part of the gates, x W + b, is one product for all steps and stays outside; these ops add the state's part
h W and do the rest. A sequence has time first, so that each step lies in one piece. Where `real` is false, which is
padding, the state passes as it is, and so does its gradient.

Gates lie side by side: i, f, g, o of an LSTM, r, z, n of a GRU; other libraries have other orders.

Axes: T time, B batch, H width of the state.
"""

from typing import Any

from ...backend import namespace
from ...errors import DtypeError, ShapeError
from ...kernels.matmul import product
from ...kernels.recurrent import (
    gru_gates,
    gru_gates_pullback,
    lstm_gates,
    lstm_gates_pullback,
    rnn_gates,
    rnn_gates_pullback,
)
from ...types import Array, Pullback
from ..engine import op
from .broadcasting import at_least_float32, same_precision
from .elementwise import quiet


@op
@at_least_float32
@quiet
def rnn(
    gates: Array, h: Array, weight: Array, *, real: Array | None = None
) -> tuple[Array, Pullback]:
    """States h' = tanh(gates + h W) after each step (Elman, 1990).

    Shapes:
        gates: (T, B, H); h: (B, H), the state before; weight: (H, H); real: (T, B) booleans; result: (T, B, H).

    Raises:
        ShapeError: the shapes do not fit together.
    """
    gates, (h, weight), real, dtypes = _given("rnn", 1, gates, (h,), weight, (), real)
    xp, T = namespace(gates), len(gates)
    states = xp.empty((T + 1, *h.shape), gates.dtype)
    states[0], states[1:] = h, gates
    for t in range(T):
        product(states[t], weight, states[t + 1], 1.0)
        rnn_gates(states[t + 1], states[t], _at(real, t))

    def pullback(g: Array) -> tuple[Any, ...]:
        ga, gh = xp.empty_like(states[1:]), xp.zeros_like(states[0])
        for t in reversed(range(T)):
            gh += g[t]
            rnn_gates_pullback(gh, states[t + 1], _at(real, t), ga[t])
            product(ga[t], weight.T, gh, 1.0)
        return _cast(dtypes, ga, gh, lambda: _of_weight(states, ga))

    return states[1:], pullback


@op
@at_least_float32
@quiet
def lstm(
    gates: Array, h: Array, c: Array, weight: Array, *, real: Array | None = None
) -> tuple[Any, Pullback]:
    """States h after each step, and the last c (Hochreiter and Schmidhuber, 1997; with the forget gate of Gers, 2000).

        i, f, o = sigmoid, g = tanh of (gates + h W);  c' = f c + i g;  h' = o tanh(c')

    Shapes:
        gates: (T, B, 4 H), in the order i, f, g, o; h, c: (B, H), the state before; weight: (H, 4 H); real: (T, B)
        booleans; results: (T, B, H) and (B, H).

    Raises:
        ShapeError: the shapes do not fit together.
    """
    gates, (h, c, weight), real, dtypes = _given("lstm", 4, gates, (h, c), weight, (), real)
    xp, T = namespace(gates), len(gates)
    a = xp.array(gates, order="C")
    states, cells = (xp.empty((T + 1, *h.shape), gates.dtype) for _ in range(2))
    states[0], cells[0] = h, c
    for t in range(T):
        product(states[t], weight, a[t], 1.0)
        lstm_gates(a[t], states[t], cells[t], _at(real, t), states[t + 1], cells[t + 1])

    def pullback(g: Any) -> tuple[Any, ...]:
        g_states, g_cell = g
        ga, gh, gc = xp.empty_like(a), xp.zeros_like(cells[0]), xp.zeros_like(cells[0])
        if g_cell is not None:
            gc += g_cell
        for t in reversed(range(T)):
            if g_states is not None:
                gh += g_states[t]
            lstm_gates_pullback(gh, gc, a[t], cells[t], cells[t + 1], _at(real, t), ga[t])
            product(ga[t], weight.T, gh, 1.0)
        return _cast(dtypes, ga, gh, gc, lambda: _of_weight(states, ga))

    return (states[1:], cells[T]), pullback


@op
@at_least_float32
@quiet
def gru(
    gates: Array, h: Array, weight: Array, bias: Array, *, real: Array | None = None
) -> tuple[Array, Pullback]:
    """States h after each step (Cho et al., 2014, with the reset behind the product, as PyTorch and cuDNN have it).

        r, z = sigmoid(gates + h W);  n = tanh(gates + r (h W + bias));  h' = (1 - z) n + z h

    Shapes:
        gates: (T, B, 3 H), in the order r, z, n; h: (B, H), the state before; weight: (H, 3 H); bias: (H,), of n
        only; real: (T, B) booleans; result: (T, B, H).

    Raises:
        ShapeError: the shapes do not fit together.
    """
    gates, (h, weight, bias), real, dtypes = _given("gru", 3, gates, (h,), weight, (bias,), real)
    xp, T = namespace(gates), len(gates)
    a = xp.array(gates, order="C")
    states, reset = xp.empty((T + 1, *h.shape), a.dtype), xp.empty((T, *h.shape), a.dtype)
    states[0], u = h, xp.empty(a.shape[1:], a.dtype)
    for t in range(T):
        product(states[t], weight, u, 0.0)
        gru_gates(a[t], u, bias, states[t], _at(real, t), states[t + 1], reset[t])

    def pullback(g: Array) -> tuple[Any, ...]:
        ga, gu, gh = xp.empty_like(a), xp.empty_like(a), xp.zeros_like(states[0])
        for t in reversed(range(T)):
            gh += g[t]
            gru_gates_pullback(gh, a[t], reset[t], states[t], _at(real, t), ga[t], gu[t])
            product(gu[t], weight.T, gh, 1.0)
        of_bias = gu[:, :, 2 * h_width :].sum(axis=(0, 1))
        return _cast(dtypes, ga, gh, lambda: _of_weight(states, gu), of_bias)

    h_width = states.shape[2]
    return states[1:], pullback


@op
@at_least_float32
@quiet
def rnn_step(
    gates: Array, h: Array, weight: Array, *, real: Array | None = None
) -> tuple[Array, Pullback]:
    """One step of `rnn`: the next state (B, H). gates: (B, H); real: (B,)."""
    (states,), back = rnn.on_arrays(gates[None], h, weight, real=_first(real))
    return states, lambda g: _without_time(back(g[None]))


@op
@at_least_float32
@quiet
def lstm_step(
    gates: Array, h: Array, c: Array, weight: Array, *, real: Array | None = None
) -> tuple[Any, Pullback]:
    """One step of `lstm`: the next h and c, (B, H) both. gates: (B, 4 H), in the order i, f, g, o; real: (B,)."""
    ((states,), cell), back = lstm.on_arrays(gates[None], h, c, weight, real=_first(real))

    def pullback(g: Any) -> tuple[Any, ...]:
        return _without_time(back((None if g[0] is None else g[0][None], g[1])))

    return (states, cell), pullback


@op
@at_least_float32
@quiet
def gru_step(
    gates: Array, h: Array, weight: Array, bias: Array, *, real: Array | None = None
) -> tuple[Array, Pullback]:
    """One step of `gru`: the next state (B, H). gates: (B, 3 H), in the order r, z, n; real: (B,)."""
    (states,), back = gru.on_arrays(gates[None], h, weight, bias, real=_first(real))
    return states, lambda g: _without_time(back(g[None]))


def _given(
    name: str, count: int, gates: Array, states: tuple[Array, ...], weight: Array,
    biases: tuple[Array, ...], real: Any,
) -> tuple[Array, list[Array], Array | None, list[Any]]:  # fmt: skip
    """Everything in one dtype and in row-major order, the mask as booleans, and the dtypes that were given."""
    xp, H = namespace(gates), weight.shape[0]
    inputs = (*states, weight, *biases)
    if gates.ndim != 3 or weight.ndim != 2 or gates.shape[2] != count * H:
        raise ShapeError(
            f"{name}: gates {gates.shape} and weight {weight.shape} do not fit; expected (T, B, {count} H) and "
            f"(H, {count} H), with H the width of the state."
        )
    expected = (*((gates.shape[1], H) for _ in states), (H, count * H), *((H,) for _ in biases))
    for given, shape in zip(inputs, expected, strict=True):
        if given.shape != shape:
            raise ShapeError(
                f"{name}: got shape {given.shape} where {shape} is expected; gates are {gates.shape}."
            )
    if real is not None:
        real = xp.ascontiguousarray(xp.asarray(real))
        if real.dtype != bool or real.shape != gates.shape[:2]:
            if real.dtype != bool:
                raise DtypeError(f"{name}: real has dtype {real.dtype}, expected bool.")
            raise ShapeError(f"{name}: real has shape {real.shape}, expected {gates.shape[:2]}.")
    dtype = xp.result_type(gates, *inputs)
    same_precision(xp.empty(0, dtype), gates, *inputs)
    same = [xp.ascontiguousarray(x, dtype=dtype) for x in inputs]
    return gates.astype(dtype, copy=False), same, real, [x.dtype for x in (gates, *inputs)]


def _at(real: Array | None, t: int) -> Array | None:
    return None if real is None else real[t]


def _first(real: Any) -> Any:
    return None if real is None else namespace(real).asarray(real)[None]


def _of_weight(states: Array, g: Array) -> Array:
    """The gradient of the weight: one product over all steps."""
    H = states.shape[2]
    return product(states[:-1].reshape(-1, H).T, g.reshape(-1, g.shape[2]))


def _cast(dtypes: list[Any], *gradients: Any) -> tuple[Any, ...]:
    """Each gradient in the dtype of its input; those that are put off stay so."""

    def cast(gradient: Any, dtype: Any) -> Any:
        if callable(gradient):
            return lambda: gradient().astype(dtype, copy=False)
        return gradient.astype(dtype, copy=False)

    return tuple(cast(g, d) for g, d in zip(gradients, dtypes, strict=True))


def _without_time(gradients: tuple[Any, ...]) -> tuple[Any, ...]:
    return gradients[0][0], *gradients[1:]
