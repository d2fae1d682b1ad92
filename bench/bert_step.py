"""A whole update of BERT: masked tokens and next sentences, gradients, clipping, AdamW; ours and that of transformers.

Transformers computes logits of every position, as its users have them; ours of the hidden tokens alone. The floor is
the operations of all matrix products that a step must do, with the output layer for hidden tokens, at the rate of the
best product.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tinyplm.hub.bert import write_arrays, write_config
from tinyplm.models.bert import Bert, BertConfig
from tinyplm.objectives import MaskedLM, NextSentence, Sum

from . import floors
from .measure import Options, Record, measure
from .steps import Step, agree, our_step, transformers_step
from .workers import Entry, crew


@dataclass(frozen=True)
class Size:
    """A BERT without dropout, and its batch."""

    layers: int
    heads: int
    width: int
    batch: int
    length: int
    vocabulary: int

    @property
    def config(self) -> BertConfig:
        """As our model wants it."""
        return BertConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            layers=self.layers,
            heads=self.heads,
            positions=self.length,
            dropout=0.0,
            attention_dropout=0.0,
        )

    def weights(self) -> dict[str, Any]:
        """The same for every contestant."""
        arrays = Bert(self.config, rng=np.random.default_rng(0)).arrays()
        return {name: array.copy() for name, array in arrays.items()}  # to be written to

    def objective(self) -> Sum:
        """Both of the paper's."""
        ends = np.zeros(self.vocabulary, bool)
        ids = {"classifier": 1, "separator": 2, "padding": 0, "end_of_text": 2}
        mask = MaskedLM(mask=3, vocab_size=self.vocabulary, special=frozenset(range(4)))
        return Sum(mask, NextSentence(**ids, ends=ends))

    def batch_of_pairs(self) -> dict[str, Any]:
        """Prepared pairs of two halves."""
        rng = np.random.default_rng(1)
        shape = (self.batch, self.length)
        plain = {
            "input_ids": rng.integers(4, self.vocabulary, shape),
            "token_type_ids": np.tile(np.arange(self.length) * 2 // self.length, (self.batch, 1)),
            "next_sentence_labels": rng.integers(2, size=self.batch),
        }
        return self.objective().prepare(plain, rng=rng)

    def products(self) -> list[floors.Shape]:
        """Rows, columns and the axis between them of a block's products forwards, and of the output layer's."""
        N, D, V = self.batch * self.length, self.width, self.vocabulary
        M = int((self.batch_of_pairs()["labels"] >= 0).sum())
        return [(N, D, 3 * D), (N, D, D), (N, D, 4 * D), (N, 4 * D, D), (M, D, V)]

    def flops(self) -> float:
        """Operations of all matrix products of a step: a linear layer has three, attention two forwards, four back."""
        *layer, head = self.products()
        linear = sum(2.0 * n * k * m for n, k, m in layer * self.layers + [head])
        scores = self.batch * self.length**2
        return 3 * (linear + 2 * 2.0 * scores * self.width * self.layers)


SMALL = Size(4, 4, 256, 8, 128, 8_192)
BASE = Size(12, 12, 768, 4, 128, 30_522)


def run(options: Options) -> Iterator[Record]:
    """A small one, and BERT base; with --large base on longer pairs too."""
    sizes = [(SMALL, 3 if options.quick else 8, 3)]
    if not options.quick:
        sizes.append((BASE, 3, 1))
    if options.large:
        sizes.append((Size(12, 12, 768, 4, 512, 30_522), 3, 1))
    for size, rounds, repeats in sizes:
        entries: list[Entry] = [("ours", "float32", partial(ours, size))]
        if options.has("torch", "transformers"):
            entries.append(("transformers", "eager float32", partial(theirs, size)))
        with crew(entries) as workers:
            # PyTorch sums the squares of an embedding's gradient in float32: that norm alone is off by 5e-4 and more.
            agree(workers, norm_by=1e-2)
            yield from measure(
                workers,
                benchmark="bert-step",
                what=f"BERT {size.layers} layers, {size.heads} heads, {size.width} wide: AdamW step with clipping",
                shapes=f"{size.batch}x{size.length}, vocabulary {size.vocabulary}",
                options=options,
                rounds=rounds,
                repeats=repeats,
                work={"tokens": size.batch * size.length},
                floor=floors.products(size.flops(), *size.products()),
            )


def ours(size: Size) -> Step:
    """Our step."""
    model = Bert(size.config, rng=None)
    model.load(size.weights())
    return our_step(model, size.objective(), size.batch_of_pairs())


def theirs(size: Size) -> Step:
    """The step of transformers on PyTorch."""
    import torch
    import transformers

    config = transformers.BertConfig(**write_config(size.config, None))
    model = transformers.BertForPreTraining(config).train()
    arrays = write_arrays(size.config, size.weights())
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    missing = model.load_state_dict(tensors, strict=False).missing_keys
    if any("decoder" not in name for name in missing):  # tied
        raise ValueError(f"no values for {', '.join(missing)}")
    batch = {name: torch.from_numpy(values) for name, values in size.batch_of_pairs().items()}
    batch["next_sentence_label"] = batch.pop("next_sentence_labels")
    return transformers_step(model, batch)
