"""Every op against PyTorch: result and gradient in float64 and float32, results in half precision."""

import operator
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from accuracy import assert_near

from tinyplm import Tensor
from tinyplm.autograd import OPS
from tinyplm.autograd.cases import CASES, NumpyDraw
from tinyplm.autograd.cases.attention import kept_factors
from tinyplm.autograd.cases.case import is_float_array
from tinyplm.kernels.dropout import random32

torch = pytest.importorskip("torch")
F = torch.nn.functional
pytestmark = pytest.mark.parity

DRAWS = 60
FULL = {"float64": 1e-10, "float32": 1e-5}
HALF = {"float16": 1e-3, "bfloat16": 1.6e-2}


def number_or_tensor(x, like):
    return x if isinstance(x, torch.Tensor) else torch.tensor(x, dtype=like.dtype)


def pairwise(function):
    return lambda a, b: function(
        number_or_tensor(a, b), number_or_tensor(b, a if isinstance(a, torch.Tensor) else b)
    )


def dims(x, axis):
    return tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis


def over(function, **renamed):
    """A reduction; PyTorch takes no axes to mean all of them."""

    def reduced(x, axis=None, keepdims=False, **more):
        if dims(x, axis) == ():
            return x * 1
        return function(x, dim=dims(x, axis), keepdim=keepdims, **more)

    return reduced


def index(x, key):
    places = np.arange(x.numel()).reshape(tuple(x.shape))[key]
    return x.flatten()[torch.tensor(np.array(places))]


def take_along_axis(x, indices, axis):
    return torch.take_along_dim(x, indices % x.shape[axis], axis)


def scatter_add(x, indices, updates, axis):
    return x.scatter_add(axis, (indices % x.shape[axis]).expand(updates.shape), updates)


def pad(x, widths, value):
    return F.pad(x, [n for pair in widths[::-1] for n in pair], value=value)


def split(x, parts, axis):
    lengths = [x.shape[axis] // parts] * parts if isinstance(parts, int) else parts
    return torch.split(x, lengths, axis)


def softmax(x, axis=-1):
    """PyTorch gives NaN where nothing can be chosen."""
    if not x.numel():
        return x * 1
    blind = (x == -np.inf).all(axis, keepdim=True)
    return torch.softmax(x.masked_fill(blind, 0.0), axis) * ~blind


def dropout(x, rate, rng):
    if rng is None or rate == 0:
        return x * 1
    bits = random32(int(rng.integers(1 << 63)), np.arange(x.numel())).reshape(x.shape)
    keep = bits / 2**32 >= rate
    return x * torch.tensor(keep) / (1 - rate)


def attention(
    q,
    k,
    v,
    bias,
    differences=None,
    causal=False,
    window=None,
    mask=None,
    key_padding=None,
    scale=None,
    rate=0,
    rng=None,
    return_probabilities=False,
):
    T, S = q.shape[-2], k.shape[-2]
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if bias is None else scores + bias
    scores = scores if differences is None else scores + by_difference(differences, T)
    allowed = torch.ones(scores.shape, dtype=bool)
    if causal:
        allowed = allowed.tril(S - T)
    if window is not None:
        allowed = allowed.tril(S - T + window - 1).triu(S - T - window + 1)
    if mask is not None:
        allowed = allowed & torch.tensor(mask)
    if key_padding is not None:
        allowed = allowed & torch.tensor(key_padding).reshape(len(q), *[1] * (q.ndim - 2), S)
    p = softmax(scores.masked_fill(~allowed, -np.inf))
    used = p
    if rng is not None and rate:
        used = p * torch.tensor(
            kept_factors(*(x.detach().double().numpy() for x in (q, k)), rate, rng)
        ).to(p)
    return (used @ v, p) if return_probabilities else used @ v


def packed_attention(qkv, bias, differences, heads, **rules):
    B, T, width = qkv.shape
    q, k, v = qkv.reshape(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4)
    y = attention(q, k, v, bias, differences, **rules)
    return y.transpose(1, 2).reshape(B, T, width // 3)


def packed_cross_attention(q, kv, heads, **rules):
    B, T, D = q.shape
    k, v = kv.reshape(B, -1, 2, heads, D // heads).permute(2, 0, 3, 1, 4)
    q = q.reshape(B, T, heads, -1).transpose(1, 2)
    return attention(q, k, v, None, **rules).transpose(1, 2).reshape(B, T, D)


def by_difference(x, queries):
    keys = x.shape[1] - queries + 1
    place = torch.arange(keys) - torch.arange(queries)[:, None] + queries - 1
    return x[:, place]


def linear_gelu(x, weight, bias, approximate="none"):
    return F.gelu(F.linear(x, weight.T, bias), approximate=approximate)


def feed_forward(x, *weights, approximate="none"):
    """What is between the layers is not rounded to half precision."""
    wide = torch.promote_types(x.dtype, torch.float32)
    given, weight_in, bias_in, weight_out, bias_out = (
        a if a is None else a.to(wide) for a in (x, *weights)
    )
    y = F.linear(linear_gelu(given, weight_in, bias_in, approximate), weight_out.T, bias_out)
    return y.to(x.dtype)


def cross_entropy(logits, labels, ignored, smoothing, weights, reduction):
    V = logits.shape[-1]
    settings = {"ignore_index": ignored, "label_smoothing": smoothing}
    if weights is None and labels.numel():
        y = F.cross_entropy(
            logits.reshape(-1, V), labels.reshape(-1), reduction=reduction, **settings
        )
        return y.reshape(labels.shape) if reduction == "none" else y
    losses = F.cross_entropy(
        logits.reshape(-1, V), labels.reshape(-1), reduction="none", **settings
    )
    shares = torch.ones(labels.shape) if weights is None else torch.tensor(weights)
    shares = (shares * (labels != ignored)).to(logits.dtype)
    losses = losses.reshape(labels.shape) * shares
    if reduction == "none":
        return losses
    return losses.sum() / (shares.sum() if reduction == "mean" else 1)


def linear_cross_entropy(x, weight, bias, labels, scale, **more):
    return scale * cross_entropy(F.linear(x, weight, bias), labels, **more)


def kl_divergence(log_p, log_q, reduction):
    rows = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    return rows if reduction == "none" else getattr(rows, reduction)()


def carried(new, old, real, t):
    """The new state of real rows, the old of padded ones."""
    return new if real is None else torch.where(torch.tensor(real[t])[:, None], new, old)


def rnn(gates, h, weight, real=None):
    states = []
    for t in range(len(gates)):
        h = carried(torch.tanh(gates[t] + h @ weight), h, real, t)
        states.append(h)
    return torch.stack(states) if states else gates * 1


def lstm(gates, h, c, weight, real=None):
    states = []
    for t in range(len(gates)):
        i, f, g, o = (gates[t] + h @ weight).chunk(4, dim=-1)
        cell = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = carried(torch.sigmoid(o) * torch.tanh(cell), h, real, t)
        c = carried(cell, c, real, t)
        states.append(h)
    return torch.stack(states) if states else gates[..., : h.shape[-1]] * 1, c * 1


def gru(gates, h, weight, bias, real=None):
    states = []
    for t in range(len(gates)):
        (r, z, n), (v, w, u) = gates[t].chunk(3, dim=-1), (h @ weight).chunk(3, dim=-1)
        r, z = torch.sigmoid(r + v), torch.sigmoid(z + w)
        n = torch.tanh(n + r * (u + bias))
        h = carried((1 - z) * n + z * h, h, real, t)
        states.append(h)
    return torch.stack(states) if states else gates[..., : h.shape[-1]] * 1


def one_step(cell):
    """A sequence of one step, without its axis of time."""

    def step(gates, *states, real=None):
        found = cell(gates[None], *states, real=None if real is None else real[None])
        return (found[0][0], found[1]) if isinstance(found, tuple) else found[0]

    return step


TORCH = {
    "abs": torch.abs,
    "add": operator.add,
    "attention": attention,
    "packed_attention": packed_attention,
    "packed_cross_attention": packed_cross_attention,
    "by_difference": by_difference,
    "binary_cross_entropy": lambda x, t, reduction: F.binary_cross_entropy_with_logits(
        x, t, reduction=reduction
    ),
    "broadcast_to": lambda x, shape: torch.broadcast_to(x, shape),
    "clip": lambda x, low, high: x * 1 if low is high is None else torch.clamp(x, low, high),
    "concatenate": lambda *xs, axis: torch.cat(xs, axis),
    "cosine": lambda a, b, axis, eps: F.cosine_similarity(a, b, axis, eps),
    "cross_entropy": cross_entropy,
    "cumsum": lambda x, axis: torch.cumsum(x, axis),
    "divide": operator.truediv,
    "dropout": dropout,
    "einsum": lambda *xs, equation: torch.einsum(equation, *xs),
    "erf": torch.erf,
    "exp": torch.exp,
    "flip": lambda x, axis: torch.flip(x, dims(x, axis)),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gru": gru,
    "gru_step": one_step(gru),
    "index": index,
    "kl_divergence": kl_divergence,
    "layer_norm": lambda x, gain, bias, eps: F.layer_norm(x, x.shape[-1:], gain, bias, eps),
    "linear_gelu": linear_gelu,
    "feed_forward": feed_forward,
    "linear": lambda x, weight, bias: F.linear(x, weight.T, bias),
    "linear_cross_entropy": linear_cross_entropy,
    "log": torch.log,
    "log1p": torch.log1p,
    "log_softmax": lambda x, axis: F.log_softmax(x, axis),
    "logsumexp": over(torch.logsumexp),
    "lstm": lstm,
    "lstm_step": one_step(lstm),
    "masked_fill": lambda x, mask, value: x.masked_fill(mask, value),
    "matmul": torch.matmul,
    "max": over(torch.amax),
    "maximum": pairwise(torch.maximum),
    "mean": over(torch.mean),
    "mean_squared_error": lambda a, b, reduction: F.mse_loss(a, b, reduction=reduction),
    "min": over(torch.amin),
    "minimum": pairwise(torch.minimum),
    "multiply": operator.mul,
    "negate": torch.neg,
    "pad": pad,
    "power": operator.pow,
    "relu": F.relu,
    "reshape": lambda x, shape: x.reshape(shape),
    "residual_layer_norm": lambda x, branch, gain, bias, eps: (
        x + branch,
        F.layer_norm(x + branch, x.shape[-1:], gain, bias, eps),
    ),
    "residual_rms_norm": lambda x, branch, gain, eps: (
        x + branch,
        F.rms_norm(x + branch, x.shape[-1:], gain, eps),
    ),
    "rms_norm": lambda x, gain, eps: F.rms_norm(x, x.shape[-1:], gain, eps),
    "rnn": rnn,
    "rnn_step": one_step(rnn),
    "rsqrt": torch.rsqrt,
    "scatter_add": scatter_add,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softmax": softmax,
    "split": split,
    "sqrt": torch.sqrt,
    "stack": lambda *xs, axis: torch.stack(xs, axis),
    "subtract": operator.sub,
    "sum": over(torch.sum),
    "take_along_axis": take_along_axis,
    "take_rows": lambda table, ids: table[ids],
    "tanh": torch.tanh,
    "transpose": lambda x, axes: x.permute(tuple(range(x.ndim))[::-1] if axes is None else axes),
    "var": over(torch.var),
    "where": torch.where,
}


EPS = {
    "cosine": 1e-8,  # PyTorch's gradient of a vector shorter than eps is not the derivative
    # In rows of equal values PyTorch's gradient is off by 1e-7 / sqrt(eps).
    "layer_norm": 1e-2,
    "residual_layer_norm": 1e-2,
}


def drawn(name):
    draw = NumpyDraw(np.random.default_rng(7))
    samples = [CASES[name].draw(draw).contiguous() for _ in range(DRAWS)]
    if name in EPS:
        samples = [replace(s, attributes={**s.attributes, "eps": EPS[name]}) for s in samples]
    return samples


def to_torch(x, dtype, grad=False):
    if is_float_array(x):
        return torch.tensor(x.astype(np.float64)).to(dtype).requires_grad_(grad)
    return torch.tensor(x) if isinstance(x, np.ndarray) else x


def parts_of(result):
    return result if isinstance(result, tuple | list) else (result,)


def test_every_op_has_its_counterpart():
    assert set(TORCH) == set(CASES)


@pytest.mark.parametrize("dtype", FULL)
@pytest.mark.parametrize("name", sorted(CASES))
def test_results_and_gradients_agree(name, dtype):
    for sample in drawn(name):
        sample = sample.astype(dtype)
        ours = [Tensor(x, requires_grad=True) if is_float_array(x) else x for x in sample.inputs]
        theirs = [to_torch(x, getattr(torch, dtype), grad=True) for x in sample.inputs]
        results = parts_of(OPS[name](*ours, **sample.keywords()))
        expected = parts_of(TORCH[name](*theirs, **sample.keywords()))
        total, torch_total = 0.0, 0.0
        for i, (r, e) in enumerate(zip(results, expected, strict=True)):
            assert_near(r.array, e.detach().numpy(), FULL[dtype], f"{name}{sample}")
            assert str(e.dtype) == f"torch.{r.dtype}"
            weights = np.random.default_rng(i).uniform(0.5, 1.5, r.shape).astype(dtype)
            total = total + (r * weights).sum()
            torch_total = torch_total + (e * torch.tensor(weights)).sum()
        total.backward()
        torch_total.backward()
        for x, t in zip(ours, theirs, strict=True):
            if isinstance(x, Tensor):
                right = np.zeros(x.shape) if t.grad is None else t.grad.numpy()
                assert_near(x.grad, right, FULL[dtype], f"gradient of {name}{sample}")


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", sorted(CASES))
def test_half_precision_results_agree(name, dtype):
    ours_dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    for sample in drawn(name):
        sample = sample.astype(ours_dtype)
        results = parts_of(OPS[name](*sample.inputs, **sample.keywords()))
        theirs = [to_torch(x, getattr(torch, dtype)) for x in sample.inputs]
        expected = parts_of(TORCH[name](*theirs, **sample.keywords()))
        for r, e in zip(results, expected, strict=True):
            assert r.dtype == ours_dtype
            assert_near(r.array, e.double().numpy(), HALF[dtype], f"{name}{sample}")
