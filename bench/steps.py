"""Training steps of a GPT, as each library does them best: loss, gradients, clipping by their norm, AdamW.

All start from the same weights and see the same batch; a step returns the loss and the norm of the gradients before
clipping, so that steps can be compared.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tinyplm.kernels.registry import KERNELS
from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.objectives import CausalLM
from tinyplm.optim import AdamW, gradient_norm, shrink

from .floors import Shape
from .measure import Options, require_close
from .workers import Entry, Worker

SETTINGS: dict[str, Any] = {"beta_1": 0.9, "beta_2": 0.99, "weight_decay": 0.1}
RATE, CLIP = 1e-3, 1.0

Step = Callable[[], tuple[float, float]]


@dataclass(frozen=True)
class Size:
    """A GPT-2 without dropout, and its batch."""

    layers: int
    heads: int
    width: int
    batch: int
    positions: int
    vocabulary: int

    def __str__(self) -> str:
        return f"GPT {self.layers} layers, {self.heads} heads, {self.width} wide"

    @property
    def shapes(self) -> str:
        """The batch, as text."""
        return f"{self.batch}x{self.positions}, vocabulary {self.vocabulary}"

    @property
    def tokens(self) -> int:
        """That a step sees."""
        return self.batch * self.positions

    @property
    def config(self) -> Gpt2Config:
        """As our models want it."""
        return Gpt2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            layers=self.layers,
            heads=self.heads,
            positions=self.positions,
            dropout=0.0,
            embedding_dropout=0.0,
            attention_dropout=0.0,
        )

    def weights(self) -> dict[str, Any]:
        """The same for every contestant."""
        arrays = Gpt2(self.config, rng=np.random.default_rng(0)).arrays()
        return {name: array.copy() for name, array in arrays.items()}  # to be written to

    def ids(self) -> tuple[Any, Any]:
        """Inputs and labels."""
        shape = (self.batch, self.positions + 1)
        ids = np.random.default_rng(1).integers(0, self.vocabulary, shape)
        return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])

    def products(self) -> list[Shape]:
        """Rows, columns and the axis between them of the linear layers' products, forwards."""
        N, D, V = self.tokens, self.width, self.vocabulary
        return [(N, D, 3 * D), (N, D, D), (N, D, 4 * D), (N, 4 * D, D), (N, D, V)]

    def flops(self) -> float:
        """Operations of all matrix products of a step that must be done.

        A linear layer has three: its result and two gradients. Attention has two forwards and four backwards, each over
        the half of the scores that a causal model needs; what a backward pass computes again is not counted.
        """
        L, (*layer, head) = self.layers, self.products()
        linear = sum(2.0 * n * k * m for n, k, m in layer * L + [head])
        scores = self.batch * self.positions * (self.positions + 1) / 2
        return 3 * (linear + 2 * 2.0 * scores * self.width * L)


SMALL = Size(4, 4, 128, 12, 64, 65)
MEDIUM = Size(6, 6, 384, 8, 256, 65)
GPT2 = Size(12, 12, 768, 2, 256, 50_257)
GPT2_LARGE = Size(12, 12, 768, 4, 512, 50_257)


def sizes(options: Options) -> Iterator[tuple[Size, int, int]]:
    """What is measured, with how many rounds of how many steps."""
    yield SMALL, 3 if options.quick else 8, 5
    if not options.quick:
        yield MEDIUM, 4, 2
        yield GPT2, 3, 1
    if options.large:
        yield GPT2_LARGE, 3, 1


def entries(
    size: Size, options: Options, *, bf16: bool = False, compiled: bool = True
) -> list[Entry]:
    """Ours and every peer's best ways.

    PyTorch compiles block by block, as all blocks share the code; with --large the whole model, which takes minutes.
    """
    kind = "bfloat16" if bf16 else "float32"
    found: list[Entry] = [("ours", kind, partial(ours, size, bf16=bf16))]
    if options.has("torch"):
        found.append(("torch", f"eager {kind}", partial(torch_step, size, bf16=bf16)))
        if bf16:  # which may be the faster one, on some processors
            found.append(("torch", "eager float32", partial(torch_step, size)))
        if compiled and not options.quick:
            what = "whole" if options.large else "blocks"
            build = partial(torch_step, size, bf16=bf16, compiled=what)
            found.append(("torch", f"compiled {what} {kind}", build))
    if options.has("jax") and not bf16:
        found.append(("jax", "jit", partial(jax_step, size)))
    return found


def ours(size: Size, *, bf16: bool = False, definitions: bool = False) -> Step:
    """Our step; by the kernels' definitions, it is what plain NumPy does."""
    model = Gpt2(size.config, rng=None)
    model.load(size.weights())
    ids, labels = size.ids()
    update = our_step(model, CausalLM(), {"input_ids": ids, "labels": labels})

    def step() -> tuple[float, float]:
        with ExitStack() as stack:
            if bf16:
                stack.enter_context(precision("bfloat16"))
            for kernel in KERNELS.values() if definitions else ():
                stack.enter_context(kernel.using("reference"))
            return update()

    return step


def our_step(model: Any, objective: Any, batch: Any) -> Step:
    """An update of one of our models on a prepared batch, again and again."""
    parameters = model.parameters()
    optimizer = AdamW(model.named_parameters(), **SETTINGS)

    def step() -> tuple[float, float]:
        model.clear_gradients()
        loss = objective.loss(model, batch)
        loss.backward()
        norm = gradient_norm(parameters)
        optimizer.step(RATE, shrink=shrink(norm, CLIP))
        return loss.item(), norm

    return step


def transformers_step(model: Any, batch: Any) -> Step:
    """The same of a model of transformers on PyTorch: matrices decay, all else does not, as ours."""
    import torch

    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for p in parameters if p.ndim >= 2],
                "weight_decay": SETTINGS["weight_decay"],
            },
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=RATE,
        betas=(SETTINGS["beta_1"], SETTINGS["beta_2"]),
        eps=1e-8,
        fused=True,
    )

    def step() -> tuple[float, float]:
        optimizer.zero_grad(set_to_none=True)
        loss = model(**batch).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        return loss.item(), norm.item()

    return step


def precision(name: str) -> Any:
    """Our setting for a block; an ImportError where there is none."""
    from tinyplm.kernels.precision import precision as setting

    return setting(name)


def torch_step(size: Size, *, bf16: bool = False, compiled: str = "") -> Step:
    """PyTorch's."""
    from .torch_gpt import TorchTraining

    training = TorchTraining(
        size.config, size.weights(), **SETTINGS, clip=CLIP, bf16=bf16, compiled=compiled
    )
    return partial(training.step, *size.ids(), RATE)


def jax_step(size: Size) -> Step:
    """JAX's."""
    from .jax_gpt import JaxTraining

    training = JaxTraining(size.config, size.weights(), **SETTINGS, clip=CLIP)
    return partial(training.step, *size.ids(), RATE)


def agree(
    workers: list[Worker], updates: int = 3, *, loss_by: float = 1e-4, norm_by: float = 1e-4
) -> None:
    """Refuse steps that differ by more than these shares.

    From the second update on, losses show that the updates before were the same too. Gradient norms are compared before
    the first only: Adam divides by a gradient's own size, so where one is nearly 0 its rounding decides what follows.
    """
    right = [workers[0].run() for _ in range(updates)]
    for worker in workers[1:]:
        for number, (loss, norm) in enumerate(right):
            their_loss, their_norm = worker.run()
            where = f"of {worker.library} {worker.variant}, update {number + 1}"
            require_close(f"loss {where}", loss, their_loss, loss_by)
            if number == 0:
                require_close(f"gradient norm {where}", norm, their_norm, norm_by)
