"""A whole update of a GPT: loss, gradients, clipping, AdamW. Ours, our plain definitions, PyTorch, and the floor.

The floor is the step's matrix products alone, by NumPy: what a step would take if everything else were free.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np

from tinyplm.kernels.registry import KERNELS
from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.objectives import CausalLM
from tinyplm.optim import AdamW, gradient_norm, shrink

from .measure import Contestant, Options, Record, measure, note, require_close, torch_or_none

SETTINGS: dict[str, Any] = {"beta_1": 0.9, "beta_2": 0.99, "weight_decay": 0.1}
RATE, CLIP = 1e-3, 1.0


def config(layers: int, heads: int, width: int, positions: int) -> Gpt2Config:
    """A GPT over characters, without dropout."""
    return Gpt2Config(
        vocab_size=65,
        hidden_size=width,
        layers=layers,
        heads=heads,
        positions=positions,
        dropout=0.0,
        embedding_dropout=0.0,
        attention_dropout=0.0,
    )


def run(options: Options) -> Iterator[Record]:
    """The size that trains on a laptop in minutes, and a larger one."""
    yield from _size(
        options, config(4, 4, 128, 64), batch=12, rounds=3 if options.quick else 10, repeats=5
    )
    if not options.quick:
        yield from _size(options, config(6, 6, 384, 256), batch=8, rounds=3, repeats=1)


def _size(
    options: Options, c: Gpt2Config, *, batch: int, rounds: int, repeats: int
) -> Iterator[Record]:
    rng = np.random.default_rng(0)
    start = Gpt2(c, rng=rng).arrays()
    windows = {"input_ids": rng.integers(0, c.vocab_size, (batch, c.positions + 1))}
    given = CausalLM().prepare(windows, rng=rng)
    ids, labels = np.ascontiguousarray(given["input_ids"]), np.ascontiguousarray(given["labels"])

    steps: list[tuple[str, str, Callable[[], tuple[float, float]]]] = [
        ("ours", "kernels as chosen", _ours(c, start, given)),
        ("ours", "definitions only", _by_definition(_ours(c, start, given))),
    ]
    if torch_or_none(options):
        from .torch_gpt import TorchTraining

        for variant, fused in (("eager, fused AdamW", True), ("eager, foreach AdamW", False)):
            peer = TorchTraining(c, start, **SETTINGS, clip=CLIP, fused=fused)
            steps.append(("torch", variant, lambda peer=peer: peer.step(ids, labels, RATE)))

    # Three updates each: from the second on, losses show that the updates before were the same too.
    ours = [steps[0][2]() for _ in range(3)]
    for library, variant, step in steps[1:]:
        for number, (loss, norm) in enumerate(ours):
            their_loss, their_norm = step()
            where = f"{library} {variant}, update {number + 1}"
            require_close(f"loss of {where}", loss, their_loss)
            require_close(f"gradient norm of {where}", norm, their_norm)

    products = _products(c, batch)
    flops = sum(2.0 * a.shape[-2] * a.shape[-1] * b.shape[-1] * _stacked(a) for a, b, _ in products)
    contestants = [
        Contestant(library=lib, variant=variant, run=step) for lib, variant, step in steps
    ]
    contestants.append(
        Contestant(
            library="numpy", variant="matrix products alone", run=lambda: _multiply(products)
        )
    )
    records = measure(
        contestants,
        benchmark="training-step",
        what=f"GPT {c.layers} layers, {c.heads} heads, {c.hidden_size} wide: AdamW step with clipping",
        shapes=f"{batch}x{c.positions}, vocabulary {c.vocab_size}",
        options=options,
        rounds=rounds,
        repeats=repeats,
        work={"tokens": batch * c.positions, "matmul_flops": flops},
    )
    for r in records:
        r["share_of_floor"] = records[-1]["ratio"] / r["ratio"]
    note(
        f"{flops / 1e9:.2f} GFLOP of matrix products a step; their time alone is "
        f"{records[-1]['ratio']:.0%} of our step."
    )
    yield from records


def _ours(c: Gpt2Config, start: dict[str, Any], given: Any) -> Callable[[], tuple[float, float]]:
    model, objective = Gpt2(c, rng=None), CausalLM()
    model.load({name: array.copy() for name, array in start.items()})
    parameters = model.parameters()
    optimizer = AdamW(model.named_parameters(), **SETTINGS)

    def step() -> tuple[float, float]:
        model.clear_gradients()
        loss = objective.loss(model, given)
        loss.backward()
        norm = gradient_norm(parameters)
        optimizer.step(RATE, shrink=shrink(norm, CLIP))
        return loss.item(), norm

    return step


def _by_definition(step: Callable[[], tuple[float, float]]) -> Callable[[], tuple[float, float]]:
    def plain() -> tuple[float, float]:
        with ExitStack() as stack:
            for kernel in KERNELS.values():
                stack.enter_context(kernel.using("reference"))
            return step()

    return plain


def _products(c: Gpt2Config, batch: int) -> list[tuple[Any, Any, Any]]:
    """Pairs of arrays, and where their product goes, as a step multiplies them: layouts included."""
    rng = np.random.default_rng(0)
    N, D, F = batch * c.positions, c.hidden_size, c.ffn_size or 4 * c.hidden_size
    products: list[tuple[Any, Any, Any]] = []

    def array(*shape: int) -> Any:
        return rng.standard_normal(shape, dtype=np.float32)

    def add(a: Any, b: Any) -> None:
        products.append((a, b, np.empty((*a.shape[:-1], b.shape[-1]), np.float32)))

    def linear(width_in: int, width_out: int) -> None:
        x, w, g = array(N, width_in), array(width_in, width_out), array(N, width_out)
        add(x, w)
        add(g, w.T)
        add(x.T, g)

    for _ in range(c.layers):
        for width_in, width_out in ((D, 3 * D), (D, D), (D, F), (F, D)):
            linear(width_in, width_out)
        q, k, v, g = (
            array(batch, c.positions, c.heads, D // c.heads).swapaxes(1, 2) for _ in range(4)
        )
        p = array(batch, c.heads, c.positions, c.positions)
        for a, b in ((q, k.swapaxes(2, 3)), (p, v), (g, v.swapaxes(2, 3))):
            add(a, b)
        for a, b in ((p.swapaxes(2, 3), g), (p, k), (p.swapaxes(2, 3), q)):
            add(a, b)
    linear(D, c.vocab_size)
    return products


def _multiply(products: list[tuple[Any, Any, Any]]) -> None:
    for a, b, out in products:
        np.matmul(a, b, out=out)


def _stacked(a: Any) -> float:
    return float(np.prod(a.shape[:-2]))
