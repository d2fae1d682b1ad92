"""How well a model predicts text that it did not learn from."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..autograd import no_grad
from ..autograd.ops.loss import IGNORED
from ..errors import DataError
from ..objectives import Objective
from ..types import Array, Batch, Generator


@dataclass(frozen=True)
class Score:
    """What a text cost.

    Attributes:
        nats: per token, the mean over all predicted tokens.
        tokens: that were predicted.
        bytes: of UTF-8 that the tokens stand for.
    """

    nats: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """E to the nats per token; infinite past the range of floats."""
        return math.exp(self.nats) if self.nats < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text: comparable between tokenizers."""
        return self.nats * self.tokens / max(1, self.bytes) / math.log(2)


def validation_loss(
    model: Any, objective: Objective, batches: Iterable[Batch], *, rng: Generator
) -> float:
    """The objective's loss over batches, in nats, as if they were one batch with a single term."""
    total, count = 0.0, 0.0
    with no_grad():
        for batch in batches:
            prepared = objective.prepare(batch, rng=rng)
            here = sum(objective.counts(prepared).values())
            if here:
                total += objective.loss(model, prepared).item() * here
                count += here
    if not count:
        raise DataError(
            "The validation text has nothing to predict; give more text, or hold out a larger share."
        )
    return total / count


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
    from ..autograd import ops

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
            loss = ops.linear_cross_entropy(
                hidden, model.head.matrix(), model.head.bias, labels, reduction="sum"
            )
            total += loss.item()
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
