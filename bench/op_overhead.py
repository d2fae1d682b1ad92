"""What an op costs when its arithmetic costs nothing: chains of additions of one-element tensors, with gradients."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tinyplm import Tensor

from .measure import Contestant, Options, Record, measure, require_close

ADDITIONS = 1000


def run(options: Options) -> Iterator[Record]:
    """Two chains: y = y + x, where both sides have a gradient, and y = y + 1.0, where one has."""
    leaves: list[tuple[str, str, Any]] = [
        ("ours", "engine", Tensor(np.ones(1, np.float32), requires_grad=True))
    ]
    if options.has("torch"):
        import torch

        leaves.append(("torch", "eager", torch.ones(1, requires_grad=True)))
    for what, constant, slope in (("y + x", False, ADDITIONS + 1), ("y + 1.0", True, 1)):
        contestants = []
        for library, variant, leaf in leaves:
            chain = _chain(leaf, constant=constant)
            require_close(f"{library} {what}, value", chain(), ADDITIONS + 1)
            require_close(f"{library} {what}, gradient", float(leaf.grad.item()), slope)
            contestants.append(Contestant(library=library, variant=variant, run=chain))
        yield from measure(
            contestants,
            benchmark="op-overhead",
            what=f"{ADDITIONS} times {what}, forward and backward",
            shapes="1",
            options=options,
            rounds=3 if options.quick else 10,
            repeats=5 if options.quick else 20,
            work={"ops": ADDITIONS},
        )


def _chain(leaf: Any, *, constant: bool) -> Callable[[], float]:
    def add_leaf() -> float:
        leaf.grad = None
        y = leaf
        for _ in range(ADDITIONS):
            y = y + leaf
        y.backward()
        return float(y.item())

    def add_constant() -> float:
        leaf.grad = None
        y = leaf
        for _ in range(ADDITIONS):
            y = y + 1.0
        y.backward()
        return float(y.item())

    return add_constant if constant else add_leaf
