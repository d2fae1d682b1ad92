"""Prefix language modelling: read the beginning of a text, and write how it goes on.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR 21, 2020
(arXiv:1910.10683), section 3.2.3 and table 3; generating long sequences from a prefix is Liu et al., 2018
(arXiv:1801.10198).

Procedure, for each row of n tokens: a place from 1 to n - 1, all equally likely, divides it. Inputs are the tokens
before it and </s>, targets those from it on and </s>. Rows are padded to a width that does not depend on the draw.

    loss = - 1/N sum over the N targets of log P(target | the inputs, the targets before it)      (nats per target)
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ..autograd.ops.loss import IGNORED
from ..text import Windows
from ..types import Batch, Generator
from .objective import Batches, Objective
from .span_corruption import marks_of, shifted


@dataclass(frozen=True, kw_only=True)
class PrefixLM(Objective):
    """Write how a text goes on.

    Attributes:
        end: id that ends inputs and targets.
        start: id that the decoder reads first.
        padding: id that fills up rows.
        smoothing: share of the target spread over the vocabulary; 0 in the paper.
    """

    end: int
    start: int = 0
    padding: int = 0
    smoothing: float = 0.0

    @classmethod
    def of(cls, tokenizer: Any, **settings: Any) -> Self:
        """The objective for texts cut by this tokenizer.

        Raises:
            ConfigError: it has no padding or nothing that ends a text.
        """
        return cls(**(marks_of(tokenizer, "prefix-lm") | settings))

    def batches(self, text: Any, *, length: int, batch: int, seed: int) -> Batches:
        """Windows of `length` tokens that share none."""
        return Windows(text, length=length, batch=batch, seed=seed, mode="plain")

    def prepare(self, batch: Batch, *, rng: Generator) -> Batch:
        """Divide: `input_ids` the beginnings, `labels` the rest, `decoder_input_ids` the labels before each."""
        ids_BT = np.asarray(batch["input_ids"])
        real_BT = np.asarray(batch.get("attention_mask", np.ones_like(ids_BT))) == 1
        B, T = ids_BT.shape
        inputs_BS = np.full((B, max(T, 1)), self.padding, np.int64)
        mask_BS = np.zeros_like(inputs_BS)
        labels_BT = np.full((B, max(T, 1)), IGNORED, np.int64)
        places = np.asarray(rng.random(B))
        for row, (ids, real) in enumerate(zip(ids_BT, real_BT, strict=True)):
            tokens = ids[real]
            if len(tokens) < 2:  # nothing to divide: a row without a label
                mask_BS[row, 0] = 1
                continue
            place = 1 + int(places[row] * (len(tokens) - 1))
            inputs_BS[row, : place + 1] = [*tokens[:place], self.end]
            mask_BS[row, : place + 1] = 1
            labels_BT[row, : len(tokens) - place + 1] = [*tokens[place:], self.end]
        return batch | {
            "input_ids": inputs_BS,
            "attention_mask": mask_BS,
            "labels": labels_BT,
            "decoder_input_ids": shifted(labels_BT, self.start, self.padding),
        }

    def nothing(self, term: str, batch: Batch) -> str:
        """The message for a batch in which no row has two tokens."""
        return (
            "No row of this batch has two tokens, so there is nothing to predict: a text is divided in two. Is "
            "everything padding?"
        )
