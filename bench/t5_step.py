"""A whole update of T5: encoder, decoder, loss, gradients, clipping, AdamW; ours and that of transformers on PyTorch.

The batch is that of span corruption: inputs and about a quarter as many targets, without padding. The floor is the
operations of all matrix products that a step must do, the decoder's causal half of the scores included, at the rate of
the best product.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tinyplm.hub.t5 import write_arrays, write_config
from tinyplm.models.t5 import T5, T5Config
from tinyplm.objectives import SpanCorruption

from . import floors
from .measure import Options, Record, measure
from .steps import Step, agree, our_step, transformers_step
from .workers import Entry, crew


@dataclass(frozen=True)
class Size:
    """A T5 v1.0 without dropout, and its batch."""

    layers: int
    heads: int
    width: int
    batch: int
    inputs: int
    vocabulary: int

    @property
    def config(self) -> T5Config:
        """As our model wants it."""
        return T5Config(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            head_size=self.width // self.heads,
            ffn_size=4 * self.width,
            layers=self.layers,
            heads=self.heads,
            dropout=0.0,
        )

    def weights(self) -> dict[str, Any]:
        """The same for every contestant."""
        arrays = T5(self.config, rng=np.random.default_rng(0)).arrays()
        return {name: array.copy() for name, array in arrays.items()}  # to be written to

    def prepared(self) -> dict[str, Any]:
        """Texts with spans cut out, and the spans."""
        sentinels = tuple(range(self.vocabulary - 1, self.vocabulary - 101, -1))
        objective = SpanCorruption(sentinels=sentinels, end=1)
        rng = np.random.default_rng(1)
        shape = (self.batch, objective.raw_length(self.inputs))
        return objective.prepare({"input_ids": rng.integers(3, sentinels[-1], shape)}, rng=rng)

    @property
    def targets(self) -> int:
        """Targets of a row."""
        return int(self.prepared()["labels"].shape[1])

    def products(self) -> list[floors.Shape]:
        """Rows, columns and the axis between them of the products of a layer of both stacks, and of the head's."""
        N, M, D, V = (
            *(self.batch * self.inputs, self.batch * self.targets),
            *(self.width, self.vocabulary),
        )
        block = [(D, 3 * D), (D, D), (D, 4 * D), (4 * D, D)]
        encoder = [(N, k, m) for k, m in block]
        decoder = [(M, k, m) for k, m in block] + [(M, D, D), (N, D, 2 * D), (M, D, D)]
        return [*encoder, *decoder, (M, D, V)]

    def flops(self) -> float:
        """Operations of all matrix products of a step: a linear layer has three, attention two forwards, four back."""
        *layer, head = self.products()
        linear = sum(2.0 * n * k * m for n, k, m in layer * self.layers + [head])
        S, T = self.inputs, self.targets
        scores = self.batch * (S * S + T * (T + 1) / 2 + S * T)
        return 3 * (linear + 2 * 2.0 * scores * self.width * self.layers)


SMALL = Size(4, 4, 256, 8, 128, 8_192)
T5_SMALL = Size(6, 8, 512, 4, 512, 32_128)
T5_BASE = Size(12, 12, 768, 4, 512, 32_128)


def run(options: Options) -> Iterator[Record]:
    """A small one, and T5 small; with --large T5 base too."""
    sizes = [(SMALL, 3 if options.quick else 8, 3)]
    if not options.quick:
        sizes.append((T5_SMALL, 3, 1))
    if options.large:
        sizes.append((T5_BASE, 3, 1))
    for size, rounds, repeats in sizes:
        entries: list[Entry] = [("ours", "float32", partial(ours, size))]
        if options.has("torch", "transformers"):
            entries.append(("transformers", "eager float32", partial(theirs, size)))
        with crew(entries) as workers:
            agree(workers)
            yield from measure(
                workers,
                benchmark="t5-step",
                what=f"T5 {size.layers}+{size.layers} layers, {size.heads} heads, {size.width} wide: AdamW step with "
                "clipping",
                shapes=f"{size.batch}x{size.inputs} to {size.targets}, vocabulary {size.vocabulary}",
                options=options,
                rounds=rounds,
                repeats=repeats,
                work={"tokens": size.batch * (size.inputs + size.targets)},
                floor=floors.products(size.flops(), *size.products()),
            )


def ours(size: Size) -> Step:
    """Our step."""
    model = T5(size.config, rng=None)
    model.load(size.weights())
    return our_step(model, SpanCorruption(sentinels=(0,), end=1), size.prepared())


def theirs(size: Size) -> Step:
    """The step of transformers on PyTorch."""
    import torch
    import transformers

    config = transformers.T5Config(**write_config(size.config, None))
    model = transformers.T5ForConditionalGeneration(config).train()
    arrays = write_arrays(size.config, size.weights())
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    missing = model.load_state_dict(tensors, strict=False).missing_keys
    second = ("embed_tokens.weight", "lm_head.weight")  # names of the embedding
    if any(not name.endswith(second) for name in missing):
        raise ValueError(f"no values for {', '.join(missing)}")
    batch = {name: torch.from_numpy(values) for name, values in size.prepared().items()}
    return transformers_step(model, batch)
