"""The training loop, as an iterator of what happened."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ..backend import keep_freed_memory
from ..errors import DataError, NonFiniteError
from ..nn import Module
from ..objectives import Objective
from ..optim import gradient_norm, shrink
from ..types import Batch, Generator


class Optimizer(Protocol):
    """What the loop asks of an update rule."""

    def step(self, learning_rate: float, *, shrink: float = 1.0) -> None:
        """Update every parameter from its gradient."""


@dataclass(frozen=True)
class Step:
    """What happened in one update.

    Attributes:
        number: updates done so far, this one included.
        loss: in nats per token, over all batches of the step.
        gradient_norm: before clipping.
        learning_rate: of this update.
        tokens: that were input in this step.
        seconds: that it took.
    """

    number: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    seconds: float


def train(
    model: Module,
    objective: Objective,
    batches: Iterator[Batch],
    optimizer: Optimizer,
    schedule: Callable[[int], float],
    *,
    rng: Generator,
    start: int = 0,
    steps: int | None = None,
    accumulate: int = 1,
    clip: float | None = 1.0,
) -> Iterator[Step]:
    """Update the model again and again; each update yields a record. The caller prints, evaluates, saves, stops.

    Args:
        model: learns in place.
        objective: makes the examples and the loss.
        batches: token batches, without end.
        optimizer: changes the parameters.
        schedule: the learning rate of an update, counted from 0.
        rng: draws the objective's choices and dropout.
        start: updates done before, when going on.
        steps: number of the last update; None goes on for ever.
        accumulate: batches per update; their loss is that of one large batch.
        clip: longest global gradient norm allowed, or None.

    Raises:
        DataError: the batches end before the steps do.
        NonFiniteError: the loss or the gradient is not finite. The parameters are as they were before the update.
    """
    keep_freed_memory()
    parameters = model.parameters()
    norm = math.nan
    for number in itertools.count(start) if steps is None else range(start, steps):
        began = time.perf_counter()
        given = list(itertools.islice(batches, accumulate))
        if len(given) < accumulate:
            raise DataError(
                f"The batches ended after {number} updates, but training goes on"
                + (f" to {steps}. " if steps is not None else " without end. ")
                + "Pass an iterator without end, such as tinyplm.text.Windows, or fewer steps."
            )
        prepared = [objective.prepare(batch, rng=rng) for batch in given]
        counts = _added([objective.counts(batch) for batch in prepared])
        for parameter in parameters:
            parameter.grad = None
        loss = 0.0
        for batch in prepared:
            part = objective.loss(model, batch, counts=counts, rng=rng)
            loss += part.item()
            if not math.isfinite(loss):
                break
            part.backward()
        before, norm = norm, gradient_norm(parameters) if math.isfinite(loss) else math.nan
        if not math.isfinite(norm):
            what = "Loss" if not math.isfinite(loss) else "Gradient norm"
            value = loss if not math.isfinite(loss) else norm
            raise NonFiniteError(
                f"{what} became {value} at step {number + 1}"
                + (
                    f" (gradient norm {before:.1e} one step before)"
                    if math.isfinite(before)
                    else ""
                )
                + ". Try a lower learning rate, more warm-up, or clipping at 1.0; --anomaly names the first bad op."
            )
        rate = schedule(number)
        optimizer.step(rate, shrink=shrink(norm, clip))
        yield Step(
            number=number + 1,
            loss=loss,
            gradient_norm=norm,
            learning_rate=rate,
            tokens=sum(int(batch["input_ids"].size) for batch in prepared),
            seconds=time.perf_counter() - began,
        )


def _added(counts: list[dict[str, float]]) -> dict[str, Any]:
    return {term: sum(c[term] for c in counts) for term in counts[0]}
