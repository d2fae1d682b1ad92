"""The forward pass of a stack of 12 blocks as wide as BERT base, without gradients.

The floor is its matrix products. With --large also compiled by PyTorch with weights as constants, which takes minutes.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from tinyplm import Tensor, no_grad
from tinyplm.nn import ACTIVATIONS, FeedForward, LayerNorm, Module, PreNormBlock, SelfAttention

from . import floors
from .measure import Options, Record, measure, require_close
from .workers import Entry, crew

LAYERS, HEADS, WIDTH, FFN, EPS = 12, 12, 768, 3072, 1e-5
Forward = Callable[[], Any]


class Encoder(Module):
    """Our blocks, each position seeing all."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.blocks = [
            PreNormBlock(
                SelfAttention(WIDTH, HEADS, rng=rng),
                FeedForward(WIDTH, FFN, activation=ACTIVATIONS["gelu"], rng=rng),
                LayerNorm(WIDTH, eps=EPS, rng=rng),
                LayerNorm(WIDTH, eps=EPS, rng=rng),
            )
            for _ in range(LAYERS)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        branch = None
        for block in self.blocks:
            x, branch = block(x, branch, causal=False)
        return x if branch is None else x + branch


def run(options: Options) -> Iterator[Record]:
    """One text of 128 tokens, and eight."""
    for batch in (1,) if options.quick else (1, 8):
        N, pairs = batch * 128, batch * 128 * 128
        layer = [(N, WIDTH, 3 * WIDTH), (N, WIDTH, WIDTH), (N, WIDTH, FFN), (N, FFN, WIDTH)]
        flops = LAYERS * (sum(2.0 * n * k * m for n, k, m in layer) + 2 * 2.0 * pairs * WIDTH)
        with crew(_entries((batch, 128, WIDTH), options)) as workers:
            right = workers[0].run()
            for worker in workers[1:]:
                require_close(f"{worker.library} {worker.variant}", right, worker.run())
            yield from measure(
                workers,
                benchmark="encoder-forward",
                what=f"{LAYERS} blocks, {HEADS} heads, {WIDTH} wide",
                shapes=f"{batch}x128",
                options=options,
                rounds=3 if options.quick else 5,
                repeats=3,
                work={"tokens": N},
                floor=floors.products(flops, *layer),
            )


def _entries(shape: tuple[int, ...], options: Options) -> list[Entry]:
    found: list[Entry] = [("ours", "no_grad", partial(_ours, shape))]
    if options.has("torch"):
        found.append(("torch", "eager with SDPA", partial(_torch, shape, False)))
        if options.large:
            found.append(("torch", "compiled and frozen", partial(_torch, shape, True)))
    if options.has("jax"):
        found.append(("jax", "jit", partial(_jax, shape)))
    return found


def _input(shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def _ours(shape: tuple[int, ...]) -> Forward:
    model, x = Encoder(), Tensor(_input(shape))

    def forward() -> Any:
        with no_grad():
            return model(x).array

    return forward


def _torch(shape: tuple[int, ...], compiled: bool) -> Forward:
    os.environ["TORCHINDUCTOR_FREEZING"] = "1"  # compiled code takes weights as constants
    import torch

    from .torch_gpt import Block, load

    model = torch.nn.Sequential(
        *(Block(WIDTH, HEADS, FFN, eps=EPS, causal=False, gelu="none") for _ in range(LAYERS))
    ).eval()
    names = Encoder().arrays()
    load(model, {name.removeprefix("blocks."): array for name, array in names.items()})
    run = torch.compile(model) if compiled else model
    x = torch.from_numpy(_input(shape))

    def forward() -> Any:
        with torch.inference_mode():
            return run(x).numpy()

    return forward


def _jax(shape: tuple[int, ...]) -> Forward:
    import jax

    from .jax_gpt import block

    weights = {name: jax.numpy.array(array) for name, array in Encoder().arrays().items()}

    @jax.jit
    def model(w: Any, x: Any) -> Any:
        for i in range(LAYERS):
            x = block(w, f"blocks.{i}", x, heads=HEADS, eps=EPS, causal=False, tanh=False)
        return x

    x = jax.numpy.array(_input(shape))
    return lambda: np.asarray(model(weights, x))
