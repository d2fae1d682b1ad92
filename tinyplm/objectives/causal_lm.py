"""Causal language modelling: predict each token from those before it.

Radford et al., "Improving Language Understanding by Generative Pre-Training", OpenAI, 2018, eq. 1; as old as language
models (Shannon, 1951), by neural networks since Bengio et al., JMLR 3, 2003. No arXiv number.

Procedure: a window of T + 1 tokens gives T inputs, all but the last, and T labels, all but the first. Documents follow
one another in the stream, separated by the end-of-text token, which is predicted like any other.

    loss = - 1/N sum over the N labels of log P(label | the tokens before it)        (nats per token)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..autograd.ops.loss import IGNORED
from ..errors import DataError
from ..text import Windows
from ..types import Batch, Generator
from .objective import Batches, Objective


@dataclass(frozen=True, kw_only=True)
class CausalLM(Objective):
    """Predict each token from those before it.

    Attributes:
        smoothing: share of the target spread over the vocabulary; 0 in the papers.
    """

    smoothing: float = 0.0

    def batches(self, text: Any, *, length: int, batch: int, seed: int) -> Batches:
        """Windows that share one token with the next, so that every token is predicted once."""
        return Windows(text, length=length, batch=batch, seed=seed)

    def prepare(self, batch: Batch, *, rng: Generator) -> Batch:
        """Shift: inputs without the last token, labels without the first.

        Padding is never a label, and neither is a token right behind padding.

        Nothing is drawn. `input_ids` is (B, T + 1); `attention_mask`, if there, has the same shape.
        """
        ids = np.asarray(batch["input_ids"])
        if ids.shape[-1] < 2:
            raise DataError(
                f"A window of {ids.shape[-1]} token has nothing to predict; causal-lm needs at least 2."
            )
        prepared = batch | {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
        if "attention_mask" in batch:
            mask = np.asarray(batch["attention_mask"])
            prepared["attention_mask"] = mask[:, :-1]
            prepared["labels"] = np.where(
                (mask[:, 1:] == 1) & (mask[:, :-1] == 1), ids[:, 1:], IGNORED
            )
        return prepared
