"""Causal attention alone, forwards and with its gradients. The floor is its products over the half that is seen.

That is two products forwards and four backwards; what a backward pass computes again is not counted.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from tinyplm import Tensor, no_grad, ops

from . import floors
from .measure import Options, Record, measure, require_close
from .workers import Entry, crew

Shape = tuple[int, int, int, int]


def run(options: Options) -> Iterator[Record]:
    """Two texts of 1024 tokens and 12 heads of 64, as in GPT-2."""
    shape = (1, 2, 128, 64) if options.quick else (2, 12, 1024, 64)
    B, H, T, K = shape
    for backward in (False, True):
        flops = (6 if backward else 2) * 2.0 * B * H * T * (T + 1) / 2 * K
        with crew(entries(shape, options, backward=backward)) as workers:
            right = workers[0].run()
            for worker in workers[1:]:
                for name, mine, theirs in zip("yqkv", right, worker.run(), strict=False):
                    require_close(f"{worker.library} {worker.variant}, {name}", mine, theirs)
            yield from measure(
                workers,
                benchmark="attention",
                what=f"causal, forward{' and backward' if backward else ''}",
                shapes="x".join(map(str, shape)),
                options=options,
                rounds=3 if options.quick else 5,
                repeats=5,
                floor=floors.products(flops, (T, K, T), (T, T, K)),
            )


def entries(shape: Shape, options: Options, *, backward: bool) -> list[Entry]:
    """Ours, PyTorch's and JAX's; each returns the result, and with `backward` the gradients of q, k and v."""
    found: list[Entry] = [("ours", "attention", partial(ours, shape, backward))]
    if options.has("torch"):
        found.append(("torch", "SDPA", partial(torch_attention, shape, backward)))
    if options.has("jax"):
        found.append(("jax", "jit", partial(jax_attention, shape, backward)))
    return found


def _inputs(shape: Shape) -> list[Any]:
    """Queries, keys, values, and the gradient of the result."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32) for _ in range(4)]


def ours(shape: Shape, backward: bool) -> Callable[[], list[Any]]:
    """This package's."""
    *arrays, g = _inputs(shape)
    qkv = [Tensor(a, requires_grad=backward) for a in arrays]

    def both() -> list[Any]:
        for x in qkv:
            x.grad = None
        y: Any = ops.attention(*qkv, causal=True)
        y.backward(g)
        return [y.array, *(x.grad for x in qkv)]

    def forward() -> list[Any]:
        with no_grad():
            y: Any = ops.attention(*qkv, causal=True)
            return [y.array]

    return both if backward else forward


def torch_attention(shape: Shape, backward: bool) -> Callable[[], list[Any]]:
    """PyTorch's fused one."""
    import torch

    *qkv, g = map(torch.from_numpy, _inputs(shape))
    attention = partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True)

    def both() -> list[Any]:
        for x in qkv:
            x.requires_grad_().grad = None
        y = attention(*qkv)
        y.backward(g)
        return [y.detach().numpy(), *(x.grad.numpy() for x in qkv)]

    def forward() -> list[Any]:
        with torch.inference_mode():
            return [attention(*qkv).numpy()]

    return both if backward else forward


def jax_attention(shape: Shape, backward: bool) -> Callable[[], list[Any]]:
    """JAX's, compiled."""
    import jax

    # JAX wants heads behind positions; the arrays lie so from the start.
    *qkv, g = (jax.numpy.array(a.swapaxes(1, 2)) for a in _inputs(shape))
    attention = partial(jax.nn.dot_product_attention, is_causal=True)

    @jax.jit
    def both(g: Any, *qkv: Any) -> Any:
        y, pullback = jax.vjp(attention, *qkv)
        return [y, *pullback(g)]

    forward = jax.jit(lambda g, *qkv: [attention(*qkv)])
    run = both if backward else forward
    return lambda: [np.asarray(x).swapaxes(1, 2) for x in jax.block_until_ready(run(g, *qkv))]
