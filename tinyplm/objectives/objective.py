"""The protocol that every objective follows."""

from collections.abc import Mapping
from typing import Any, Protocol

from ..autograd import Tensor
from ..types import Batch, Generator


class Objective(Protocol):
    """Makes training examples of token batches, and says what a model loses on them.

    A loss is a sum of terms, each a mean over its own count: of predicted tokens, of sentence pairs. The counts are
    known before the model runs, so the losses of several small batches, each divided by the counts of all of them,
    add up to exactly the loss of the large batch.
    """

    def prepare(self, batch: Batch, *, rng: Generator) -> Batch:
        """A new batch with what the loss needs; the given one is left as it is."""
        ...

    def counts(self, batch: Batch) -> dict[str, float]:
        """How many things each term of the loss averages over in a prepared batch."""
        ...

    def loss(
        self,
        model: Any,
        batch: Batch,
        *,
        counts: Mapping[str, float] | None = None,
        rng: Generator | None = None,
    ) -> Tensor:
        """The loss in nats, divided by the given counts, or by those of this batch."""
        ...
