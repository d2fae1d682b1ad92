"""A whole update of a GPT: loss, gradients, clipping, AdamW.

The floor is the operations of all matrix products that a step must do, attention's causal half included, at the rate
of the best product: what a step would take if everything else were free. See `steps.Size.flops`.

With --large, GPT-2 of 124 million parameters at 4x512 too, which needs about 20 GB and minutes.
"""

from collections.abc import Iterator
from functools import partial

from . import floors, steps
from .measure import Options, Record, measure
from .workers import crew


def run(options: Options, *, bf16: bool = False) -> Iterator[Record]:
    """The size that trains on a laptop in minutes, a larger one, and GPT-2."""
    for size, rounds, repeats in steps.sizes(options):
        entries = steps.entries(size, options, bf16=bf16)
        if size == steps.SMALL and not bf16:
            definitions = partial(steps.ours, size, definitions=True)
            entries.append(("numpy", "our definitions", definitions))
        with crew(entries) as workers:
            steps.agree(workers, **({"loss_by": 1e-2, "norm_by": 5e-2} if bf16 else {}))
            yield from measure(
                workers,
                benchmark="bf16" if bf16 else "training-step",
                what=f"{size}: AdamW step with clipping",
                shapes=size.shapes,
                dtype="bfloat16" if bf16 else "float32",
                options=options,
                rounds=rounds,
                repeats=repeats,
                work={"tokens": size.tokens},
                floor=floors.products(size.flops(), *size.products()),
            )
