"""Causal language modelling: predict each token from those before it.

Radford et al., "Improving Language Understanding by Generative Pre-Training", OpenAI, 2018, eq. 1; as old as language
models (Shannon, 1951), by neural networks since Bengio et al., JMLR 3, 2003. No arXiv number.

Procedure: a window of T + 1 tokens gives T inputs, all but the last, and T labels, all but the first. Documents follow
one another in the stream, separated by the end-of-text token, which is predicted like any other.

    loss = - 1/N sum over the N labels of log P(label | the tokens before it)        (nats per token)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..autograd import Tensor, ops
from ..autograd.ops.loss import IGNORED
from ..errors import DataError
from ..types import Batch, Generator


@dataclass(frozen=True, kw_only=True)
class CausalLM:
    """Predict each token from those before it.

    Attributes:
        smoothing: share of the target spread over the vocabulary; 0 in the papers.
    """

    smoothing: float = 0.0

    def prepare(self, batch: Batch, *, rng: Generator) -> Batch:
        """Shift: inputs without the last token, labels without the first.

        Padding is never a label, and neither is a token right behind padding.

        Nothing is drawn. `input_ids` is (B, T + 1); `attention_mask`, if there, has the same shape.
        """
        ids = batch["input_ids"]
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

    def counts(self, batch: Batch) -> dict[str, float]:
        """How many labels are predicted."""
        return {"tokens": float((batch["labels"] != IGNORED).sum())}

    def loss(
        self,
        model: Any,
        batch: Batch,
        *,
        counts: Mapping[str, float] | None = None,
        rng: Generator | None = None,
    ) -> Tensor:
        """Mean over the labels of minus their log-probability.

        Raises:
            DataError: the batch has no label.
        """
        tokens = (counts or self.counts(batch))["tokens"]
        if not tokens:
            raise DataError(
                "No token of this batch is a label, so the loss is undefined. Is everything padding?"
            )
        hidden = model(batch["input_ids"], attention_mask=batch.get("attention_mask"), rng=rng)
        total = ops.linear_cross_entropy(
            hidden,
            model.head.matrix(),
            model.head.bias,
            batch["labels"],
            smoothing=self.smoothing,
            reduction="sum",
            scale=1 / tokens,
        )
        return total
