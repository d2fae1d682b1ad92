"""How well a model predicts text that it did not learn from."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..autograd import no_grad
from ..autograd.ops.loss import IGNORED
from ..errors import DataError
from ..objectives import Objective
from ..types import Array, Batch, Generator


@dataclass(frozen=True)
class Term:
    """What one term of an objective's loss came to.

    Attributes:
        nats: per label, the mean.
        accuracy: share of the labels that the model holds for the likeliest class.
        labels: how many there were.
        unigram: nats per label of a model that knows only how common each class is; None if that was not counted.
        unigram_accuracy: share of the labels that are the commonest class.
    """

    nats: float
    accuracy: float
    labels: int
    unigram: float | None = None
    unigram_accuracy: float | None = None


@dataclass(frozen=True)
class Score:
    """What a text cost.

    Attributes:
        nats: per token, the mean over all predicted tokens; of several terms the sum of their means.
        tokens: that were predicted.
        bytes: of UTF-8 that the tokens stand for.
        terms: of the loss, where they were looked at one by one.
    """

    nats: float
    tokens: int
    bytes: int
    terms: Mapping[str, Term] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        """E to the nats per token; infinite past the range of floats."""
        return math.exp(self.nats) if self.nats < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text: comparable between tokenizers."""
        return self.nats * self.tokens / max(1, self.bytes) / math.log(2)


def count_labels(
    objective: Objective, batches: Iterable[Batch], *, classes: int, rng: Generator
) -> dict[str, Array]:
    """How often each class below `classes` is a label in prepared batches, for each term of the loss."""
    counted = {term: np.zeros(classes, np.int64) for term in objective.labels}
    for batch in batches:
        prepared = objective.prepare(batch, rng=rng)
        for term, key in objective.labels.items():
            labels = np.asarray(prepared[key])
            counted[term] += np.bincount(labels[labels != IGNORED], minlength=classes)[:classes]
    return counted


def examine(
    model: Any,
    objective: Objective,
    batches: Iterable[Batch],
    *,
    rng: Generator,
    counted: Mapping[str, Array] | None = None,
) -> dict[str, Term]:
    """Each term of the objective's loss over batches, in nats without smoothing, as if they were one batch.

    Args:
        model: is left as it is.
        objective: makes the examples, drawing from rng.
        batches: of tokens.
        rng: draws the objective's choices.
        counted: of `count_labels` on a training text: what a unigram model, with one more of each, would lose.

    Raises:
        DataError: there is nothing to predict.
    """
    sums = {term: np.zeros(3) for term in objective.labels}  # nats, right, labels
    unigrams = {term: np.zeros(2) for term in objective.labels}  # nats, right
    with no_grad():
        for batch in batches:
            prepared = objective.prepare(batch, rng=rng)
            if not any(objective.counts(prepared).values()):
                continue
            found = objective.predictions(model, objective.read(model, prepared), prepared)
            for term, (hidden, head, labels) in found.items():
                known = np.asarray(labels)[np.asarray(labels) != IGNORED]
                sums[term] += (*head.examine(hidden, labels), known.size)
                if counted is not None:
                    seen = counted[term][: head.matrix().shape[0]] + 1
                    lost = math.log(seen.sum()) - np.log(seen)
                    unigrams[term] += lost[known].sum(), (known == seen.argmax()).sum()
    if not all(labels for _, _, labels in sums.values()):
        raise DataError(
            "The validation text has nothing to predict; give more text, or hold out a larger share."
        )
    return {
        term: Term(
            nats / labels,
            right / labels,
            int(labels),
            *(None, None) if counted is None else (unigrams[term] / labels).tolist(),
        )
        for term, (nats, right, labels) in ((term, found.tolist()) for term, found in sums.items())
    }


def validation_loss(
    model: Any, objective: Objective, batches: Iterable[Batch], *, rng: Generator
) -> float:
    """The sum of the means of all terms of the objective's loss over batches, in nats, without smoothing."""
    return sum(term.nats for term in examine(model, objective, batches, rng=rng).values())


def score_text(
    model: Any,
    tokens: Any,
    *,
    text_bytes: int,
    window: int,
    stride: int | None = None,
    batch: int = 8,
    on_progress: Callable[[int], None] | None = None,
) -> Score:
    """Score a causal model on a whole text with a window that slides.

    The window moves by stride tokens; only those that the last window has not predicted count, so each token is
    predicted once, from at least window - stride tokens before it (fewer at the very beginning). The first token
    has nothing before it and is not predicted.

    Args:
        model: gives hidden states, and has a head.
        tokens: ids in one axis, sliceable.
        text_bytes: bytes that they stand for.
        window: tokens read at once, at most the model's positions.
        stride: from one window to the next, half a window by default.
        batch: windows read together.
        on_progress: called after each batch with how many tokens have been predicted.
    """
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window:
        raise DataError(
            f"stride is {stride}, but it must be from 1 to the window of {window} tokens."
        )
    if len(tokens) < 2:
        raise DataError(f"The text has {len(tokens)} token; at least 2 are needed to predict one.")
    total, count = 0.0, 0
    with no_grad():
        for ids, labels in _batched(_windows(tokens, window, stride), batch):
            hidden = model(ids)
            total += model.head.cross_entropy(hidden, labels).item()
            count += int((labels != IGNORED).sum())
            if on_progress is not None:
                on_progress(count)
    return Score(nats=total / count, tokens=count, bytes=text_bytes)


def _windows(tokens: Any, window: int, stride: int) -> Iterator[tuple[Array, Array]]:
    """Inputs and labels of each window; labels that an earlier window had are ignored."""
    predicted = 0  # the last token predicted so far
    start = 0
    while predicted < len(tokens) - 1:
        chunk = np.asarray(tokens[start : start + window + 1], dtype=np.int64)
        labels = chunk[1:].copy()
        labels[: predicted - start] = IGNORED
        yield chunk[:-1], labels
        predicted = start + len(chunk) - 1
        start += stride


def _batched(pairs: Iterable[tuple[Array, Array]], size: int) -> Iterator[tuple[Array, Array]]:
    """Windows of one length, brought together."""
    waiting: list[tuple[Array, Array]] = []
    for pair in pairs:
        if waiting and (len(waiting) == size or len(pair[0]) != len(waiting[0][0])):
            yield _stacked(waiting)
            waiting = []
        waiting.append(pair)
    if waiting:
        yield _stacked(waiting)


def _stacked(pairs: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    return np.stack([ids for ids, _ in pairs]), np.stack([labels for _, labels in pairs])
