"""What a recurrent cell does with its gates: one step for a batch of rows, and its pullback.

The product of the state with its weight is the caller's; this is what comes element by element before and behind it.
Rows R are texts, H is the width of the state. Gates of a row lie side by side: i, f, g, o of an LSTM (input, forget,
candidate, output; the order of PyTorch and cuDNN), r, z, n of a GRU (reset, update, candidate). A row that is not real
is padding: its state passes as it is. Results are written to arrays that are given.
"""

from typing import Any

from ..backend import namespace
from ..types import Array
from .compiled import cut, exponential, is_float, parallel
from .registry import Kernel
from .threads import LEAST


@Kernel
def rnn_gates(a_RH: Array, h_RH: Array, real_R: Array | None) -> None:
    """Hyperbolic tangent in place: the next state (Elman, 1990)."""
    namespace(a_RH).tanh(a_RH, out=a_RH)
    _pass_padding(real_R, (h_RH, a_RH))


@Kernel
def rnn_gates_pullback(gh_RH: Array, next_RH: Array, real_R: Array | None, ga_RH: Array) -> None:
    """Gradient ga of the gates; gh becomes what of it passes to the state before beside the product."""
    ga_RH[...] = gh_RH * (1 - next_RH * next_RH)
    _keep_padding(real_R, gh_RH, 0, ga_RH)


@Kernel
def lstm_gates(
    a_RF: Array, h_RH: Array, c_RH: Array, real_R: Array | None, h_next_RH: Array, c_next_RH: Array
) -> None:
    """The gates in place, c' = f c + i g and h' = o tanh(c') (Hochreiter and Schmidhuber, 1997)."""
    xp = namespace(a_RF)
    i, f, g, o = _parts(a_RF, 4)
    for gate in (i, f, o):
        gate[...] = _sigmoid(gate)
    xp.tanh(g, out=g)
    c_next_RH[...] = f * c_RH + i * g
    h_next_RH[...] = o * xp.tanh(c_next_RH)
    _pass_padding(real_R, (c_RH, c_next_RH), (h_RH, h_next_RH))


@Kernel
def lstm_gates_pullback(
    gh_RH: Array, gc_RH: Array, a_RF: Array, c_RH: Array, c_next_RH: Array,
    real_R: Array | None, ga_RF: Array,
) -> None:  # fmt: skip
    """Gradient ga of the gates before their nonlinearities; gc becomes that of c.

    gh becomes what of it passes to the state before beside the product.
    """
    xp = namespace(a_RF)
    i, f, g, o = _parts(a_RF, 4)
    gi, gf, gg, go = _parts(ga_RF, 4)
    bent = xp.tanh(c_next_RH)
    through = gc_RH + gh_RH * o * (1 - bent * bent)
    gi[...] = through * g * i * (1 - i)
    gf[...] = through * c_RH * f * (1 - f)
    gg[...] = through * i * (1 - g * g)
    go[...] = gh_RH * bent * o * (1 - o)
    _keep_padding(real_R, gc_RH, through * f)
    _keep_padding(real_R, gh_RH, 0, ga_RF)


@Kernel
def gru_gates(
    a_RF: Array, u_RF: Array, bias_H: Array, h_RH: Array, real_R: Array | None,
    h_next_RH: Array, reset_RH: Array,
) -> None:  # fmt: skip
    """The gates in place and h' = (1 - z) n + z h, from the input's part a and the state's part u.

    r = sigmoid(a + u), z likewise, n = tanh(a + r (u + bias)): the reset comes after the product, as in PyTorch and
    cuDNN; Cho et al. (2014) have it before. What is reset, u + bias, is written to `reset`.
    """
    xp = namespace(a_RF)
    r, z, n = _parts(a_RF, 3)
    u_r, u_z, u_n = _parts(u_RF, 3)
    r[...] = _sigmoid(r + u_r)
    z[...] = _sigmoid(z + u_z)
    reset_RH[...] = u_n + bias_H
    n[...] = xp.tanh(n + r * reset_RH)
    h_next_RH[...] = n + z * (h_RH - n)
    _pass_padding(real_R, (h_RH, h_next_RH))


@Kernel
def gru_gates_pullback(
    gh_RH: Array, a_RF: Array, reset_RH: Array, h_RH: Array, real_R: Array | None,
    ga_RF: Array, gu_RF: Array,
) -> None:  # fmt: skip
    """Gradients ga and gu of both parts of the gates; gh becomes what passes to the state before beside the product."""
    r, z, n = _parts(a_RF, 3)
    gr, gz, gn = _parts(ga_RF, 3)
    gn[...] = gh_RH * (1 - z) * (1 - n * n)
    gz[...] = gh_RH * (h_RH - n) * z * (1 - z)
    gr[...] = gn * reset_RH * r * (1 - r)
    gu_RF[...] = ga_RF
    _parts(gu_RF, 3)[2][...] *= r
    _keep_padding(real_R, gh_RH, gh_RH * z, ga_RF, gu_RF)


def _parts(a_RF: Array, count: int) -> list[Array]:
    width = a_RF.shape[1] // count
    return [a_RF[:, i * width : (i + 1) * width] for i in range(count)]


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1 + namespace(x).tanh(0.5 * x))


def _pass_padding(real_R: Array | None, *pairs: tuple[Array, Array]) -> None:
    """The state of padded rows as it was before."""
    if real_R is not None:
        padded_R1 = ~real_R[:, None]
        for before, after in pairs:
            namespace(after).copyto(after, before, where=padded_R1)


def _keep_padding(real_R: Array | None, kept: Array, new: Any, *zeroed: Array) -> None:
    """Take the new values where rows are real; padded rows keep theirs, and their gates have no gradient."""
    if real_R is None:
        kept[...] = new
        return
    kept[...] = namespace(kept).where(real_R[:, None], new, kept)
    for gates in zeroed:
        namespace(gates).copyto(gates, gates.dtype.type(0), where=~real_R[:, None])


# Compiled. Each loop writes to one array and reads few, so that the compiler can tell them apart and use vectors.


def sigmoid(v: Any) -> Any:
    """1 / (1 + e^-v) of one value."""
    one = type(v)(1)
    return one / (one + exponential(-v))


def tanh(v: Any) -> Any:
    """Hyperbolic tangent of one value; right to an unit in the last place of 1."""
    one = type(v)(1)
    e = exponential(type(v)(-2) * abs(v))
    t = (one - e) / (one + e)
    return t if v > type(v)(0) else -t


HELPERS = sigmoid, tanh


def _rnn_part(team: Any, part: int, start: int, stop: int, a: Any, h: Any, real: Any) -> None:
    H = h.shape[1]
    for r in range(start, stop):
        out, before = cut(a, r * H, H), cut(h, r * H, H)
        if real is not None and not real[r]:
            for j in range(out.size):
                out[j] = before[j]
        else:
            for j in range(out.size):
                out[j] = tanh(out[j])


def _rnn_back_part(
    team: Any, part: int, start: int, stop: int, gh: Any, after: Any, real: Any, ga: Any
) -> None:
    kind, H = gh.dtype.type, gh.shape[1]
    for r in range(start, stop):
        g, h, out = cut(gh, r * H, H), cut(after, r * H, H), cut(ga, r * H, H)
        if real is not None and not real[r]:
            for j in range(out.size):
                out[j] = kind(0)
        else:
            for j in range(out.size):
                out[j] = g[j] * (kind(1) - h[j] * h[j])
            for j in range(g.size):
                g[j] = kind(0)


def _lstm_part(
    team: Any, part: int, start: int, stop: int,
    a: Any, h: Any, c: Any, real: Any, h_next: Any, c_next: Any,
) -> None:  # fmt: skip
    H = c.shape[1]
    for r in range(start, stop):
        i, f = cut(a, 4 * r * H, H), cut(a, (4 * r + 1) * H, H)
        g, o = cut(a, (4 * r + 2) * H, H), cut(a, (4 * r + 3) * H, H)
        both = cut(a, 4 * r * H, 2 * H)
        c_old, c_new = cut(c, r * H, H), cut(c_next, r * H, H)
        h_old, h_new = cut(h, r * H, H), cut(h_next, r * H, H)
        for j in range(both.size):
            both[j] = sigmoid(both[j])
        for j in range(g.size):
            g[j] = tanh(g[j])
        for j in range(o.size):
            o[j] = sigmoid(o[j])
        if real is not None and not real[r]:
            for j in range(c_new.size):
                c_new[j] = c_old[j]
            for j in range(h_new.size):
                h_new[j] = h_old[j]
        else:
            for j in range(c_new.size):
                c_new[j] = f[j] * c_old[j] + i[j] * g[j]
            for j in range(h_new.size):
                h_new[j] = o[j] * tanh(c_new[j])


def _lstm_back_part(
    team: Any, part: int, start: int, stop: int,
    gh: Any, gc: Any, a: Any, c: Any, c_next: Any, real: Any, ga: Any,
) -> None:  # fmt: skip
    kind, H = gh.dtype.type, gh.shape[1]
    one = kind(1)
    for r in range(start, stop):
        whole = cut(ga, 4 * r * H, 4 * H)
        if real is not None and not real[r]:
            for j in range(whole.size):
                whole[j] = kind(0)
            continue
        i, f = cut(a, 4 * r * H, H), cut(a, (4 * r + 1) * H, H)
        g, o = cut(a, (4 * r + 2) * H, H), cut(a, (4 * r + 3) * H, H)
        gi, gf = cut(ga, 4 * r * H, H), cut(ga, (4 * r + 1) * H, H)
        gg, go = cut(ga, (4 * r + 2) * H, H), cut(ga, (4 * r + 3) * H, H)
        c_old, c_new = cut(c, r * H, H), cut(c_next, r * H, H)
        by_h, by_c = cut(gh, r * H, H), cut(gc, r * H, H)
        for j in range(gi.size):  # a place for tanh(c') until it is no longer needed
            gi[j] = tanh(c_new[j])
        for j in range(go.size):
            go[j] = by_h[j] * gi[j] * o[j] * (one - o[j])
        for j in range(by_c.size):
            by_c[j] += by_h[j] * o[j] * (one - gi[j] * gi[j])
        for j in range(gf.size):
            gf[j] = by_c[j] * c_old[j] * f[j] * (one - f[j])
        for j in range(gg.size):
            gg[j] = by_c[j] * i[j] * (one - g[j] * g[j])
        for j in range(gi.size):
            gi[j] = by_c[j] * g[j] * i[j] * (one - i[j])
        for j in range(by_c.size):
            by_c[j] *= f[j]
        for j in range(by_h.size):
            by_h[j] = kind(0)


def _gru_part(
    team: Any, part: int, start: int, stop: int,
    a: Any, u: Any, bias: Any, h: Any, real: Any, h_next: Any, reset: Any,
) -> None:  # fmt: skip
    H = h.shape[1]
    for r in range(start, stop):
        both, u_both = cut(a, 3 * r * H, 2 * H), cut(u, 3 * r * H, 2 * H)
        z, n = cut(a, (3 * r + 1) * H, H), cut(a, (3 * r + 2) * H, H)
        u_n, own = cut(u, (3 * r + 2) * H, H), cut(reset, r * H, H)
        h_old, h_new = cut(h, r * H, H), cut(h_next, r * H, H)
        for j in range(both.size):
            both[j] = sigmoid(both[j] + u_both[j])
        for j in range(own.size):
            own[j] = u_n[j] + bias[j]
        for j in range(n.size):
            n[j] = tanh(n[j] + both[j] * own[j])
        if real is not None and not real[r]:
            for j in range(h_new.size):
                h_new[j] = h_old[j]
        else:
            for j in range(h_new.size):
                h_new[j] = n[j] + z[j] * (h_old[j] - n[j])


def _gru_back_part(
    team: Any, part: int, start: int, stop: int,
    gh: Any, a: Any, reset: Any, h: Any, real: Any, ga: Any, gu: Any,
) -> None:  # fmt: skip
    kind, H = gh.dtype.type, gh.shape[1]
    one = kind(1)
    for r in range(start, stop):
        whole, u_whole = cut(ga, 3 * r * H, 3 * H), cut(gu, 3 * r * H, 3 * H)
        if real is not None and not real[r]:
            for j in range(whole.size):
                whole[j] = kind(0)
            for j in range(u_whole.size):
                u_whole[j] = kind(0)
            continue
        s, z, n = cut(a, 3 * r * H, H), cut(a, (3 * r + 1) * H, H), cut(a, (3 * r + 2) * H, H)
        gr, gz = cut(ga, 3 * r * H, H), cut(ga, (3 * r + 1) * H, H)
        gn, u_n = cut(ga, (3 * r + 2) * H, H), cut(gu, (3 * r + 2) * H, H)
        own, h_old, by_h = cut(reset, r * H, H), cut(h, r * H, H), cut(gh, r * H, H)
        for j in range(gn.size):
            gn[j] = by_h[j] * (one - z[j]) * (one - n[j] * n[j])
        for j in range(gz.size):
            gz[j] = by_h[j] * (h_old[j] - n[j]) * z[j] * (one - z[j])
        for j in range(gr.size):
            gr[j] = gn[j] * own[j] * s[j] * (one - s[j])
        for j in range(u_whole.size):
            u_whole[j] = whole[j]
        for j in range(u_n.size):
            u_n[j] *= s[j]
        for j in range(by_h.size):
            by_h[j] *= z[j]


def _is_whole(*arguments: Any) -> bool:
    """Whether the loops take these: floats of one kind, and a mask of booleans if there is one."""
    arrays = [a for a in arguments if a is not None and a.dtype != bool]
    masks = [a for a in arguments if a is not None and a.dtype == bool]
    return is_float(*arrays) and all(m.flags.c_contiguous for m in masks)


def _compiled(kernel: Kernel, body: Any) -> None:
    """The body as a variant of the kernel; rows are shared between threads."""

    @kernel.variant("numba", library="numpy", when=_is_whole)
    def _numba() -> Any:
        """Every value is visited where it lies, without arrays in between."""
        run = parallel(body, *HELPERS)
        if run is None:
            return None

        def gates(*arguments: Any) -> None:
            rows, width = arguments[0].shape
            if arguments[0].size:
                run(rows, *arguments, least=-(-LEAST // (4 * width)))

        return gates


for _kernel, _body in (
    (rnn_gates, _rnn_part),
    (rnn_gates_pullback, _rnn_back_part),
    (lstm_gates, _lstm_part),
    (lstm_gates_pullback, _lstm_back_part),
    (gru_gates, _gru_part),
    (gru_gates_pullback, _gru_back_part),
):
    _compiled(_kernel, _body)
