"""What every objective is: how training examples are made, and what a model loses on them; and sums of several."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from ..autograd import Tensor
from ..autograd.ops.loss import IGNORED
from ..errors import ConfigError, DataError
from ..text import Windows
from ..types import Array, Batch, Generator

INPUTS = (
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "decoder_input_ids",
    "decoder_attention_mask",
)
"""What of a batch goes to a model by name, where it is there, beside its input_ids."""


class Prediction(NamedTuple):
    """What is predicted by one term of a loss.

    Attributes:
        hidden: (..., D), what the head reads.
        head: makes logits of it, as `nn.Head` does.
        labels: (...) integers, IGNORED where nothing is predicted.
    """

    hidden: Tensor
    head: Any
    labels: Array


class Batches(Protocol):
    """Token batches without end, which can go on where they stood."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def state(self) -> dict[str, Any]:
        """Where it stands, for JSON."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there, with the same batches as if never stopped."""
        ...

    def in_order(self) -> Iterator[Batch]:
        """Everything once, for evaluation."""
        ...


class Objective:
    """Makes training examples of token batches, and says what a model loses on them; to be subclassed.

    A loss is a sum of terms, each a mean over its own count: of predicted tokens, of sentence pairs. The counts are
    known before the model runs, so the losses of several small batches, each divided by the counts of all of them,
    add up to exactly the loss of the large batch.

    A subclass has `prepare` and `predictions`, and whatever else differs from here.

    Attributes:
        reads: "text", a stream of tokens, or "pairs" of texts.
        labels: for each term of the loss, the field of a batch that has its labels.
        frames: whether its batches are more than windows of a stream, so that another objective has to take them.
        smoothing: share of each target that is spread over all classes.
        on_host: fields of a prepared batch that are looked at by NumPy, and are not to be sent to a card.
    """

    reads: ClassVar[str] = "text"
    frames: ClassVar[bool] = False
    labels: ClassVar[Mapping[str, str]] = {"tokens": "labels"}
    on_host: ClassVar[frozenset[str]] = frozenset()
    smoothing: float = 0.0

    @classmethod
    def of(cls, tokenizer: Any, **settings: Any) -> Self:
        """The objective for texts cut by this tokenizer.

        Raises:
            ConfigError: the tokenizer lacks a token that it takes.
        """
        return cls(**settings)

    def batches(self, text: Any, *, length: int, batch: int, seed: int) -> Batches:
        """Batches of a text for a model that reads `length` tokens."""
        return Windows(text, length=length, batch=batch, seed=seed, mode="plain")

    def prepare(self, batch: Batch, *, rng: Generator) -> Batch:
        """A new batch with what the loss needs; the given one is left as it is."""
        raise NotImplementedError

    def read(self, model: Any, batch: Batch, *, rng: Generator | None = None) -> Any:
        """What the model makes of a prepared batch, all that `predictions` needs of it."""
        given = {name: batch[name] for name in INPUTS if name in batch}
        return model(batch["input_ids"], **given, rng=rng)

    def predictions(self, model: Any, hidden: Any, batch: Batch) -> dict[str, Prediction]:
        """For each term of the loss, what is predicted."""
        return {"tokens": Prediction(hidden, model.head, batch["labels"])}

    def counts(self, batch: Batch) -> dict[str, float]:
        """How many things each term of the loss averages over in a prepared batch."""
        return {term: float((batch[key] != IGNORED).sum()) for term, key in self.labels.items()}

    def terms(
        self,
        model: Any,
        batch: Batch,
        *,
        counts: Mapping[str, float] | None = None,
        rng: Generator | None = None,
    ) -> dict[str, Tensor]:
        """Each term of the loss in nats, divided by the given counts, or by those of this batch.

        Raises:
            DataError: there is nothing to predict.
        """
        counts = counts or self.counts(batch)
        for term, count in counts.items():
            if not count:
                raise DataError(self.nothing(term, batch))
        found = self.predictions(model, self.read(model, batch, rng=rng), batch)
        return {
            term: head.cross_entropy(
                hidden, labels, smoothing=self.smoothing, scale=1 / counts[term]
            )
            for term, (hidden, head, labels) in found.items()
        }

    def loss(
        self,
        model: Any,
        batch: Batch,
        *,
        counts: Mapping[str, float] | None = None,
        rng: Generator | None = None,
    ) -> Tensor:
        """The sum of all terms: of means over the given counts, or over those of this batch.

        Raises:
            DataError: there is nothing to predict.
        """
        first, *others = self.terms(model, batch, counts=counts, rng=rng).values()
        for term in others:
            first = first + term
        return first

    def nothing(self, term: str, batch: Batch) -> str:
        """The message for a batch in which a term has nothing to predict."""
        return "No token of this batch is a label, so the loss is undefined. Is everything padding?"


class Sum(Objective):
    """The sum of objectives. Each prepares the batch in turn, and the model reads it once.

    The batches are those of the part that wants more than a plain stream, such as pairs of sentences.
    """

    def __init__(self, *parts: Objective) -> None:
        terms = [term for part in parts for term in part.labels]
        own = {part.smoothing for part in parts}
        if not parts or len(set(terms)) < len(terms) or len(own) > 1:
            raise ConfigError(
                f"A sum of {', '.join(type(part).__name__ for part in parts) or 'nothing'}: expected objectives with "
                f"terms of different names and the same smoothing; got terms {', '.join(terms)}."
            )
        self.parts = parts
        self.labels: Mapping[str, str] = {  # type: ignore[misc]  # of the class elsewhere
            term: key for part in parts for term, key in part.labels.items()
        }
        self.smoothing = parts[0].smoothing
        self.frames = any(part.frames for part in parts)  # type: ignore[misc]
        self.on_host = frozenset[str]().union(*(part.on_host for part in parts))  # type: ignore[misc]

    def batches(self, text: Any, *, length: int, batch: int, seed: int) -> Batches:
        """Those of the last part that frames its own."""
        framing = [part for part in self.parts if part.frames] or self.parts[:1]
        return framing[-1].batches(text, length=length, batch=batch, seed=seed)

    def prepare(self, batch: Batch, *, rng: Generator) -> Batch:
        """By each part in turn."""
        for part in self.parts:
            batch = part.prepare(batch, rng=rng)
        return batch

    def read(self, model: Any, batch: Batch, *, rng: Generator | None = None) -> Any:
        """As the first part does."""
        return self.parts[0].read(model, batch, rng=rng)

    def predictions(self, model: Any, hidden: Any, batch: Batch) -> dict[str, Prediction]:
        """Those of all parts."""
        return {
            term: prediction
            for part in self.parts
            for term, prediction in part.predictions(model, hidden, batch).items()
        }

    def nothing(self, term: str, batch: Batch) -> str:
        """As the part says whose term it is."""
        return next(part for part in self.parts if term in part.labels).nothing(term, batch)
