"""The training loop, as an iterator of what happened."""

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ..backend import keep_freed_memory
from ..errors import DataError, NonFiniteError
from ..nn import Module
from ..objectives import Objective
from ..types import Batch, Generator
from .place import Numbers, Place, Update, place_of


class Step:
    """What happened in one update. On a card reading its numbers waits for it and for those before.

    Attributes:
        number: updates done so far, this one included.
        learning_rate: of this update.
        tokens: that were input in this step.
        seconds: that it took; on a card, that the host took for it.
    """

    def __init__(self, number: int, learning_rate: float, tokens: int, seconds: float) -> None:
        self.number = number
        self.learning_rate = learning_rate
        self.tokens = tokens
        self.seconds = seconds
        self._waiting: _Waiting | None = None
        self._found: tuple[float, float] | None = None

    @property
    def loss(self) -> float:
        """In nats per token, over all batches of the step.

        Raises:
            NonFiniteError: this, or a number of an earlier update, is not finite.
        """
        return self._read()[0]

    @property
    def gradient_norm(self) -> float:
        """Before clipping; raises as `loss` does."""
        return self._read()[1]

    @property
    def known(self) -> bool:
        """Whether its numbers can be read without waiting."""
        return self._found is not None or (self._waiting is not None and self._waiting.known(self))

    def _read(self) -> tuple[float, float]:
        if self._found is None and self._waiting is not None:
            self._waiting.read(self)
        assert self._found is not None  # else the line before has raised
        return self._found


def train(
    model: Module,
    objective: Objective,
    batches: Iterator[Batch],
    optimizer: Any,
    schedule: Callable[[int], float],
    *,
    rng: Generator,
    start: int = 0,
    steps: int | None = None,
    accumulate: int = 1,
    clip: float | None = 1.0,
    graph: bool | None = None,
) -> Iterator[Step]:
    """Update the model again and again; each update yields a record. The caller prints, evaluates, saves, stops.

    Args:
        model: learns in place.
        objective: makes the examples and the loss.
        batches: token batches, without end.
        optimizer: changes the parameters; on a card, one of tinyplm.optim.
        schedule: the learning rate of an update, counted from 0.
        rng: draws the objective's choices and dropout.
        start: updates done before, when going on.
        steps: number of the last update; None goes on for ever.
        accumulate: batches per update; their loss is that of one large batch.
        clip: longest global gradient norm allowed, or None.
        graph: on a card, whether steps that come again are recorded and repeated; if None, they are.

    Raises:
        DataError: the batches end before the steps do.
        NonFiniteError: the loss or the gradient is not finite. The parameters are as they were before the update. On a
            card this is noticed when numbers are read, at most a few updates later, which are left out too.
        DeviceMemoryError: a card has no room.
    """
    keep_freed_memory()
    update = Update(model, objective, optimizer, model.parameters(), accumulate, clip, rng)
    place = place_of(update, graph=graph)
    waiting = _Waiting(place)
    try:
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
            rate = schedule(number)
            numbers = place.update(prepared, counts, rate)
            tokens = sum(int(batch["input_ids"].size) for batch in prepared)
            step = Step(number + 1, rate, tokens, time.perf_counter() - began)
            waiting.add(step, numbers)
            yield step
        waiting.read()
    finally:
        place.close()


class _Waiting:
    """Updates whose numbers are not read yet. They are read in order: the first that are not finite are an error."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._queue: deque[tuple[Step, Numbers]] = deque()
        self._norm = math.nan  # of the last update that was read
        self._error: NonFiniteError | None = None

    def add(self, step: Step, numbers: Numbers) -> None:
        """One more; the oldest are read where there are too many."""
        step._waiting = self
        self._queue.append((step, numbers))
        while len(self._queue) > self._place.ahead:
            self._read_oldest()

    def read(self, step: Step | None = None) -> None:
        """Until the numbers of this step are read, or all."""
        while self._queue and (step is None or step._found is None):
            self._read_oldest()
        if self._error is not None and (step is None or step._found is None):
            raise self._error

    def known(self, step: Step) -> bool:
        """Whether nobody would wait for the numbers of this step."""
        return all(numbers.known for s, numbers in self._queue if s.number <= step.number)

    def _read_oldest(self) -> None:
        step, numbers = self._queue[0]
        loss, norm = numbers.read()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._place.rewind(len(self._queue))
            self._queue.clear()
            what, value = ("Gradient norm", norm) if math.isfinite(loss) else ("Loss", loss)
            self._error = NonFiniteError(
                f"{what} became {value} at step {step.number}"
                + (
                    f" (gradient norm {self._norm:.1e} one step before)"
                    if math.isfinite(self._norm)
                    else ""
                )
                + ". Try a lower learning rate, more warm-up, or clipping at 1.0; --anomaly names the first bad op."
            )
            raise self._error
        self._queue.popleft()
        step._found, self._norm = (loss, norm), norm


def _added(counts: list[dict[str, float]]) -> dict[str, Any]:
    return {term: sum(c[term] for c in counts) for term in counts[0]}
