"""Each way to compute a kernel beside its definition, PyTorch, JAX and a copy of the bytes that it must move.

The floor is what a copy takes, with as many threads, that reads and writes as many bytes as the arguments that are read
and the results that are written. A kernel that works element by element is finished when it takes no longer. All run in
one process, whose allocator keeps freed memory once our threads exist: that serves PyTorch too.

Kernels are those of the registry; arguments are made by the names of their parameters, whose capitals tell the shape.
"""

import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

import tinyplm.kernels
from tinyplm.kernels.registry import KERNELS, Kernel

from . import floors
from .measure import Contestant, Options, Record, WrongResultError, measure, note, require_close

Arguments = tuple[Any, ...]
ELSEWHERE = {
    *("product", "linear_forward", "linear_gelu_forward", "linear_residual_forward"),
    *("product_gelu_pullback", "linear_cross_entropy", "few_rows"),
    *("attention_forward", "attention_pullback", "attend_few", "quantize_rows"),
}
"""What matrix products or the reading of weights bounds has its floor in other benchmarks."""
DRAWN = {"dropout_forward", "dropout_pullback"}
"""A peer drops other values."""
STEPS, RATE, DECAY, BETA_1, BETA_2 = 10, 1e-3, 0.1, 0.9, 0.99
PLAIN: dict[str, Any] = {
    **{
        "axis": 1,
        "rate": 0.1,
        "seed": 1,
        "smoothing": 0.0,
        "gradient": True,
        "scale": 0.125,
        "first": 0,
    },
    **{"shrink": 1.0, "decay": 1 - RATE * DECAY, "beta_1": BETA_1, "beta_2": BETA_2, "eps": 1e-5},
    **{"step_size": RATE / (1 - BETA_1**STEPS), "root": (1 - BETA_2**STEPS) ** -0.5},
    **{"rest_1": 1 - BETA_1, "rest_2": 1 - BETA_2},
}
"""Arguments that are no arrays."""


@dataclass(frozen=True)
class Sizes:
    """What capitals in names stand for: R or N rows, C, D or F columns, V vocabulary, G groups of T by S."""

    rows: int
    columns: int
    vocabulary: int
    groups: int
    positions: int

    def argument(self, name: str) -> Any:
        """A value for a parameter of this name; a KeyError where the name does not tell."""
        stem, _, letters = name.rpartition("_")
        if name in PLAIN:
            return PLAIN[name]
        if name == "rows":
            return self.vocabulary
        if name in ("x", "y", "g", "p", "m", "v"):
            stem, letters = name, "RC"
        elif name in ("gain", "bias"):
            stem, letters = name, "C"
        elif name in ("table", "arrays"):
            stem, letters = name, "VC"
        each = dict.fromkeys("RN", self.rows) | dict.fromkeys("CDF", self.columns) | {"1": 1}
        each |= {"V": self.vocabulary, "G": self.groups, "T": self.positions, "S": self.positions}
        if not stem or not letters:
            raise KeyError(name)
        shape = [each[letter] for letter in letters]
        rng = np.random.default_rng(list(name.encode()))
        if stem in ("ids", "labels"):
            return rng.integers(0, self.vocabulary, shape)
        if stem == "log_sum":
            return np.log(np.exp(self.argument("logits_RV")).sum(axis=1, keepdims=True))
        values = rng.standard_normal(shape, np.float32)
        return abs(values) if stem in ("v", "scale") else values


SMALL, LARGE = Sizes(768, 512, 65, 48, 64), Sizes(2048, 1536, 8192, 16, 256)


def run(options: Options) -> Iterator[Record]:
    """At the sizes of the small training step, and at larger ones."""
    for module in pkgutil.iter_modules(tinyplm.kernels.__path__):
        import_module(f"tinyplm.kernels.{module.name}")
    missing = []
    for name, kernel in KERNELS.items():
        if name in ELSEWHERE:
            continue
        for sizes in (SMALL,) if options.quick else (SMALL, LARGE):
            try:
                parameters = inspect.signature(kernel.definition).parameters
                arguments = tuple(map(sizes.argument, parameters))
                plain = _outcome(kernel.definition, arguments)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                missing.append(f"{name} ({type(error).__name__}: {error})")
                break
            yield from _kernel(kernel, arguments, plain, options)
    for line in missing:
        note(f"kernels: not measured, as no arguments are known: {line}")


def _kernel(
    kernel: Kernel, arguments: Arguments, plain: list[Any], options: Options
) -> Iterator[Record]:
    contestants = []
    for variant in kernel.variants:
        if variant.library != "numpy" or not variant.when(*arguments):
            continue
        if variant.function is None:
            note(f'{kernel.name}: {variant.name} is not installed; pip install "tinyplm[fast]"')
            continue
        try:
            _check(kernel, variant.name, variant.function, arguments, plain)
        except WrongResultError:
            raise
        except Exception as error:  # any that a compiler may have; the other kernels go on
            note(f"{kernel.name}: {variant.name} fails: {type(error).__name__}: {error}")
            continue
        contestants.append(_contestant(variant.name, variant.function, arguments))
    contestants.append(_contestant("definition", kernel.definition, arguments))
    for library, variants in (("torch", TORCH), ("jax", JAX)):
        if kernel.name in variants and options.has(library):
            once = variants[kernel.name](*arguments)
            for mine, theirs in zip(plain, once(), strict=False):
                if kernel.name not in DRAWN:
                    require_close(f"{library} {kernel.name}", mine, theirs)
            variant = {"torch": "eager", "jax": "jit"}[library]
            contestants.append(Contestant(library=library, variant=variant, run=once))
    moved = _moved(arguments, kernel.definition)
    rate = floors.copy_rate(moved, options.threads)
    yield from measure(
        contestants,
        benchmark="kernels",
        what=kernel.name,
        shapes=" ".join("x".join(map(str, a.shape)) for a in arguments if isinstance(a, np.ndarray)),
        options=options,
        rounds=3 if options.quick else 5,
        repeats=10 if options.quick else 20,
        floor=(moved / rate, f"{moved / 1e6:.4g} MB read and written at {rate / 1e9:.1f} GB/s"),
    )  # fmt: skip


def _outcome(function: Any, arguments: Arguments, dtype: Any = np.float32) -> list[Any]:
    """What the function returns, or what it changed of its arguments if it works in place."""
    own = _own(arguments, dtype)
    result = function(*own)
    if result is None:
        given = zip(own, _own(arguments, dtype), strict=True)
        return [a for a, b in given if isinstance(a, np.ndarray) and not np.array_equal(a, b)]
    return list(map(np.asarray, result)) if isinstance(result, tuple) else [np.asarray(result)]


def _own(arguments: Arguments, dtype: Any = np.float32) -> list[Any]:
    """Copies, floats in this precision."""
    return [
        a.astype(dtype if a.dtype.kind == "f" else a.dtype) if isinstance(a, np.ndarray) else a
        for a in arguments
    ]


def _moved(arguments: Arguments, function: Any) -> int:
    """Bytes that must be read and written: arguments, and results that are new or changed.

    Of a table, which is the first argument, only the rows that are copied are read.
    """
    own = _own(arguments)
    result = function(*own)
    made = _outcome(function, arguments) if result is None else result
    made = made if isinstance(made, list | tuple) else [np.asarray(made)]
    written = sum(y.nbytes for y in made if not any(y is a for a in own))
    first = "table" in inspect.signature(function).parameters
    return written * (2 if first else 1) + sum(
        a.nbytes for a in own[first:] if isinstance(a, np.ndarray)
    )


def _check(
    kernel: Kernel, name: str, function: Any, arguments: Arguments, plain: list[Any]
) -> None:
    """The variant errs at most twice as much as the definition does at the same precision."""
    exact = _outcome(kernel.definition, arguments, np.float64)
    for right, usual, found in zip(exact, plain, _outcome(function, arguments), strict=True):
        allowed = 2 * abs(usual - right).max() + 1e-7 * abs(right).max()
        error = abs(found - right).max()
        if not error <= allowed:
            raise WrongResultError(
                f"{kernel.name}, variant {name}: error {error:.2e}, allowed {allowed:.2e}."
            )


def _contestant(variant: str, function: Any, arguments: Arguments) -> Contestant:
    own = _own(arguments)
    in_place = function(*own) is None

    def restore() -> None:
        for mine, original in zip(own, arguments, strict=True):
            if isinstance(mine, np.ndarray):
                np.copyto(mine, original)

    return Contestant(
        library="ours",
        variant=variant,
        run=lambda: function(*own),
        prepare=restore if in_place else None,
    )


# The peers: from a kernel's arguments, a function without arguments that computes the same and returns a list, whose
# results come in the order of ours and may be fewer.


def _eager(function: Callable[..., Any]) -> Callable[..., Callable[[], list[Any]]]:
    """By PyTorch: function(torch, *arguments), with tensors for arrays."""

    def prepared(*arguments: Any) -> Callable[[], list[Any]]:
        import torch

        own = [torch.from_numpy(a.copy()) if isinstance(a, np.ndarray) else a for a in arguments]

        def once() -> list[Any]:
            with torch.inference_mode():
                result = function(torch, *own)
            return list(result) if isinstance(result, tuple) else [result]

        return once

    return prepared


def _jit(function: Callable[..., Any]) -> Callable[..., Callable[[], list[Any]]]:
    """By JAX: function(jax, *arguments); what is no array is a constant."""

    def prepared(*arguments: Any) -> Callable[[], list[Any]]:
        import jax

        places = [i for i, a in enumerate(arguments) if isinstance(a, np.ndarray)]

        @jax.jit
        def compiled(*arrays: Any) -> Any:
            full = list(arguments)
            for place, array in zip(places, arrays, strict=True):
                full[place] = array
            result = function(jax, *full)
            return list(result) if isinstance(result, tuple) else [result]

        own = [jax.numpy.array(arguments[i]) for i in places]
        return lambda: jax.block_until_ready(compiled(*own))

    return prepared


def _torch_adam(p: Any, g: Any, m: Any, v: Any, *_: Any) -> Callable[[], list[Any]]:
    import torch

    p, g, m, v = (torch.from_numpy(a.copy()) for a in (p, g, m, v))
    p.grad = g
    optimizer = torch.optim.AdamW(
        [p], RATE, (BETA_1, BETA_2), PLAIN["eps"], weight_decay=DECAY, fused=True
    )
    optimizer.state[p] = {"step": torch.tensor(STEPS - 1.0), "exp_avg": m, "exp_avg_sq": v}

    def once() -> list[Any]:
        optimizer.step()
        return [p]

    return once


def _torch_cross_entropy_back(g: Any, logits: Any, labels: Any, *_: Any) -> Callable[[], list[Any]]:
    import torch

    x = torch.from_numpy(logits.copy()).requires_grad_()
    y = torch.nn.functional.cross_entropy(x, torch.from_numpy(labels), reduction="none")
    given = torch.from_numpy(g.copy())
    return lambda: list(torch.autograd.grad(y, x, given, retain_graph=True))


def _torch_norm(t: Any, x: Any, branch: Any, gain: Any, bias: Any, eps: float) -> Any:
    total = x + branch
    return total, t.nn.functional.layer_norm(total, gain.shape, gain, bias, eps)


def _torch_norm_back(t: Any, g: Any, g_sum: Any, x: Any, mean: Any, scale: Any, gain: Any) -> Any:
    back = t.ops.aten.native_layer_norm_backward
    gx, g_gain, g_bias = back(g, x, gain.shape, mean, scale, gain, gain, [True] * 3)
    return gx.add_(g_sum), g_gain, g_bias


def _torch_rms(t: Any, x: Any, branch: Any, gain: Any, eps: float) -> Any:
    total = x + branch
    return total, t.nn.functional.rms_norm(total, gain.shape, gain, eps)


def _jax_norm(jax: Any, x: Any, branch: Any, gain: Any, bias: Any, eps: float) -> Any:
    total = x + branch
    y = total - total.mean(1, keepdims=True)
    return total, y * jax.lax.rsqrt((y * y).mean(1, keepdims=True) + eps) * gain + bias


def _jax_rms(jax: Any, x: Any, branch: Any, gain: Any, eps: float) -> Any:
    total = x + branch
    return total, total * jax.lax.rsqrt((total * total).mean(1, keepdims=True) + eps) * gain


def _jax_losses(jax: Any, logits: Any, labels: Any, smoothing: float) -> Any:
    at_label = jax.numpy.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return jax.nn.logsumexp(logits, 1) - at_label


TORCH: dict[str, Callable[..., Callable[[], list[Any]]]] = {
    "gelu_forward": _eager(lambda t, x: t.nn.functional.gelu(x)),
    "gelu_pullback": _eager(lambda t, g, x: t.ops.aten.gelu_backward(g, x)),
    "gelu_tanh_forward": _eager(lambda t, x: t.nn.functional.gelu(x, approximate="tanh")),
    "gelu_tanh_pullback": _eager(
        lambda t, g, x: t.ops.aten.gelu_backward(g, x, approximate="tanh")
    ),
    "erf": _eager(lambda t, x: t.erf(x)),
    "layer_norm_forward": _eager(_torch_norm),
    "layer_norm_pullback": _eager(_torch_norm_back),
    "rms_norm_forward": _eager(_torch_rms),
    "softmax_forward": _eager(lambda t, x, axis: t.softmax(x, axis)),
    "softmax_pullback": _eager(
        lambda t, g, y, axis: t.ops.aten._softmax_backward_data(g, y, axis, y.dtype)
    ),
    "cross_entropy_forward": _eager(
        lambda t, x, y, _: t.nn.functional.cross_entropy(x, y, reduction="none")
    ),
    "cross_entropy_pullback": _torch_cross_entropy_back,
    "dropout_forward": _eager(lambda t, x, rate, _: t.nn.functional.dropout(x, rate)),
    "add_rows": _eager(
        lambda t, g, ids, rows: t.ops.aten.embedding_dense_backward(g, ids, rows, -1, False)
    ),
    "copy_rows": _eager(lambda t, table, ids: t.nn.functional.embedding(ids, table)),
    "sum_rows": _eager(lambda t, g: g.sum(0)),
    "adamw_update": _torch_adam,
}
JAX: dict[str, Callable[..., Callable[[], list[Any]]]] = {
    "gelu_forward": _jit(lambda jax, x: jax.nn.gelu(x, approximate=False)),
    "gelu_tanh_forward": _jit(lambda jax, x: jax.nn.gelu(x, approximate=True)),
    "gelu_tanh_pullback": _jit(lambda jax, g, x: jax.vjp(jax.nn.gelu, x)[1](g)[0]),
    "erf": _jit(lambda jax, x: jax.scipy.special.erf(x)),
    "layer_norm_forward": _jit(_jax_norm),
    "rms_norm_forward": _jit(_jax_rms),
    "softmax_forward": _jit(lambda jax, x, axis: jax.nn.softmax(x, axis)),
    "cross_entropy_forward": _jit(_jax_losses),
    "add_rows": _jit(lambda jax, g, ids, rows: jax.ops.segment_sum(g, ids, rows)),
    "copy_rows": _jit(lambda jax, table, ids: table[ids]),
    "sum_rows": _jit(lambda jax, g: g.sum(0)),
}
