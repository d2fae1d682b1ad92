"""The training loop, as an iterator of what happened."""

import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..backend import keep_freed_memory
from ..errors import DataError, NonFiniteError
from ..nn import Module
from ..objectives import Objective
from ..types import Batch, Generator
from .place import Numbers, Place, Update, place_of


@dataclass(frozen=True)
class Step:
    """What happened in one update. On a card its loss and norm come late: to read them waits for them and those before.

    Attributes:
        number: updates done so far, this one included.
        loss: in nats per token, over all batches of the step. To read it raises NonFiniteError if it, or a number of an
            earlier update, is not finite.
        gradient_norm: before clipping; raises as loss does.
        learning_rate: of this update.
        tokens: that were input in this step.
        seconds: that it took. On a card: that the loop took for it, with waiting for any update since the step before.
    """

    number: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    seconds: float

    @property
    def known(self) -> bool:
        """Whether its numbers can be read without waiting."""
        waiting: _Waiting | None = vars(self).get("_waiting")
        return waiting is None or waiting.known(self)

    def __getattr__(self, name: str) -> float:  # loss and norm are missing until they are found
        waiting: _Waiting | None = vars(self).get("_waiting")
        if waiting is None or name not in ("loss", "gradient_norm"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        waiting.read(self)
        return float(vars(self)[name])


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
            began = time.perf_counter() - waiting.seconds
            waiting.make_room()
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
            seconds, waiting.seconds = time.perf_counter() - began, 0.0
            yield waiting.added(
                numbers, number=number + 1, learning_rate=rate, tokens=tokens, seconds=seconds
            )
        waiting.read()
    finally:
        waiting.close()


class _Waiting:
    """Updates whose numbers are not read yet. They are read in order: the first that are not finite are an error.

    Attributes:
        seconds: that reading has taken since this was set to 0.
    """

    def __init__(self, place: Place) -> None:
        self.seconds = 0.0
        self._place = place
        self._queue: deque[tuple[Step, Numbers]] = deque()
        self._norm = math.nan  # of the last update that was read
        self._error = ""

    def make_room(self) -> None:
        """Read the oldest where there are too many; no update may follow one that was left out."""
        if self._error:
            raise NonFiniteError(self._error)
        while self._queue and len(self._queue) >= self._place.ahead:
            self._read_oldest()

    def added(self, numbers: Numbers, **fields: Any) -> Step:
        """The record of one more update; it has its numbers if nobody is to go on without them."""
        step = Step.__new__(Step)
        vars(step).update(fields, _waiting=self)
        self._queue.append((step, numbers))
        if not self._place.ahead:
            self._read_oldest()
        return step

    def read(self, step: Step | None = None) -> None:
        """Until the numbers of this step are read, or all."""
        while self._queue and (step is None or "_waiting" in vars(step)):
            self._read_oldest()
        if self._error and (step is None or "_waiting" in vars(step)):
            raise NonFiniteError(self._error)

    def known(self, step: Step) -> bool:
        """Whether nobody would wait for the numbers of this step."""
        return all(numbers.known for s, numbers in self._queue if s.number <= step.number)

    def close(self) -> None:
        """Read all, and keep no more than that: a step may be kept for longer."""
        try:
            with contextlib.suppress(NonFiniteError):
                self.read()
        finally:
            self._place.close()
            del self._place

    def _read_oldest(self) -> None:
        step, numbers = self._queue[0]
        began = time.perf_counter()
        loss, norm = numbers.read()
        self.seconds += time.perf_counter() - began
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._place.rewind(len(self._queue))
            self._queue.clear()
            what, value = ("Gradient norm", norm) if math.isfinite(loss) else ("Loss", loss)
            self._error = (
                f"{what} became {value} at step {step.number}"
                + (
                    f" (gradient norm {self._norm:.1e} one step before)"
                    if math.isfinite(self._norm)
                    else ""
                )
                + ". Try a lower learning rate, more warm-up, or clipping at 1.0; --anomaly names the first bad op."
            )
            raise NonFiniteError(self._error)
        self._queue.popleft()
        del vars(step)["_waiting"]
        vars(step).update(loss=loss, gradient_norm=norm)
        self._norm = norm


def _added(counts: list[dict[str, float]]) -> dict[str, Any]:
    return {term: sum(c[term] for c in counts) for term in counts[0]}
