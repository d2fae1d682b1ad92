"""Times on a card: events around launches, replays of a graph of launches, and what the host takes to ask for them.

A launch only queues work, so the host must be ahead of the card while events are recorded, or they hold the host's
time too. Before each group of launches the card is therefore kept busy with copies for as long as the host takes to
queue the group. The copies also push earlier inputs out of the cache. Launches of less than SHORT are timed as replays
of a graph of many, where they can be captured; the host's own time for one is always told apart.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

SHORT = 20e-6
"""Seconds under which a launch is timed as one of a graph."""
IN_GRAPH = 20
"""Launches in such a graph."""
SAMPLE = 1e-3
"""Seconds that the launches between two events take together at least."""
QUEUED = 100
"""Calls queued at most while the card is kept busy."""
WARM = 0.05
"""Seconds after which clocks have risen and everything is compiled and loaded."""
HEAVY = 0.02
"""Seconds of products after which the card is left alone for a PAUSE, as sustained load lowers its clocks."""
PAUSE = 1.0
MEGABYTE = 1 << 20


@dataclass
class Way:
    """One way to do a piece of work on the card.

    Attributes:
        library: whose code it is, "ours" for this package.
        variant: which of its ways.
        run: queues the work once, on set number i of the inputs; returns what it made.
        graph: makes of (run, calls) a function that replays so many calls, where that can be.
        wall: it has streams of its own, so that only the host's clock tells its time.
        read: its results as arrays of the card's library, to be checked.
        before: queued before each call, and not timed.
        finish: waits for what run queued, where the card's own wait does not.
    """

    library: str
    variant: str
    run: Callable[[int], Any]
    graph: Callable[[Callable[[int], Any], int], Callable[[], None]] | None = None
    wall: bool = False
    read: Callable[[Any], tuple[Any, ...]] | None = None
    before: Callable[[int], object] | None = None
    finish: Callable[[Any], object] | None = None

    @property
    def name(self) -> str:
        return f"{self.library} {self.variant}"


@dataclass
class Times:
    """Seconds of a call: of the card in each sample, and of the host to ask for it."""

    how: str
    samples: list[float] = field(default_factory=list)
    host: float = math.nan

    def described(self) -> dict[str, Any]:
        """Median, and the range that holds the middle eight tenths."""
        low, high = _deciles(self.samples)
        return {
            "how": self.how,
            "median": statistics.median(self.samples),
            "low": low,
            "high": high,
            "minimum": min(self.samples),
            "samples": len(self.samples),
            "host": self.host,
        }


def _deciles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[0], cuts[-1]


class Card:
    """What timing asks of a card. Everything goes to the stream that CuPy and PyTorch use when none is said.

    Args:
        xp: CuPy, or what stands for it.
    """

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self._pair: Any = None

    def now(self) -> float:
        """The host's clock."""
        return time.perf_counter()

    def wait(self, seconds: float) -> None:
        """Leave the card alone."""
        time.sleep(seconds)

    def synchronize(self) -> None:
        """Wait until all that was queued is done; a fault of a kernel shows here."""
        self.xp.cuda.Device().synchronize()

    def mark(self) -> Any:
        """A point in the queue."""
        event = self.xp.cuda.Event()
        event.record()
        return event

    def between(self, first: Any, last: Any) -> float:
        """Seconds of the card between two points; waits for the later one."""
        last.synchronize()
        return self.xp.cuda.get_elapsed_time(first, last) / 1e3

    def hold(self, seconds: float) -> None:
        """Keep the card busy with copies for about so long."""
        if self._pair is None:
            empty, kind = self.xp.empty, self.xp.uint8
            self._pair = empty(512 * MEGABYTE, kind), empty(512 * MEGABYTE, kind)
        for _ in range(math.ceil(seconds / 0.2e-3)):  # a copy takes that or more
            self.xp.copyto(*self._pair)

    def graph(self, run: Callable[[int], Any], calls: int) -> Callable[[], None]:
        """So many calls as a graph; what they allocate comes from a pool that lives as long."""
        cuda = self.xp.cuda
        pool, stream = cuda.MemoryPool(), cuda.Stream(non_blocking=True)
        with cuda.using_allocator(pool.malloc), stream:
            for i in range(calls):  # compiles, and asks the system for the memory
                run(i)
            stream.synchronize()
            stream.begin_capture()
            try:
                made = [run(i) for i in range(calls)]
            except BaseException:
                with contextlib.suppress(Exception):
                    stream.end_capture()
                raise
            graph = stream.end_capture()
        kept = (pool, stream, made, run)
        return lambda kept=kept: graph.launch(cuda.get_current_stream())


@dataclass
class _Plan:
    """How a way is timed: as what, how many calls between two events, how many samples a turn, who replays."""

    times: Times
    calls: int
    samples: int
    run: Callable[[int], Any]
    group: int
    cost: float
    """Seconds of the host for one run."""


def race(
    card: Card,
    ways: Sequence[Way],
    *,
    rounds: int = 3,
    seconds: float = 0.15,
    most: int = 50,
    heavy: bool = False,
    failed: Callable[[Way, Exception], None] | None = None,
) -> Iterator[tuple[Way, Times]]:
    """Time the ways in turns, every other round in reverse order; each way and its times, at the end.

    Args:
        card: that does the work.
        ways: to do it.
        rounds: turns of each.
        seconds: that a turn takes about.
        most: samples of a turn.
        heavy: the work is such that the card is left alone between long turns.
        failed: told of a way that cannot go on, which is then left out; it decides whether the others do.
    """
    plans: dict[int, _Plan] = {}
    lost: set[int] = set()
    order = list(range(len(ways)))
    for number in range(rounds):
        for i in order if number % 2 == 0 else reversed(order):
            if i in lost:
                continue
            try:
                if i not in plans:
                    plans[i] = _planned(card, ways[i], seconds, most)
                found = _turn(card, ways[i], plans[i])
            except Exception as error:
                lost.add(i)
                if failed is None:
                    raise
                failed(ways[i], error)
                continue
            plans[i].times.samples += found
            if heavy and sum(found) * plans[i].calls > HEAVY:
                card.wait(PAUSE)
    for i in order:
        if i not in lost:
            yield ways[i], plans[i].times


def _planned(card: Card, way: Way, seconds: float, most: int) -> _Plan:
    """Warm up, look how long a call takes host and card, and choose."""
    finish = _finisher(card, way)
    warm, began = 0, card.now()
    while (took := card.now() - began) < WARM or (warm < 10 and took < 6 * WARM):
        finish(way.run(warm))
        warm += 1
    host = _host_cost(card, way, finish)
    if way.wall:
        return _plan("wall", way.run, host, host, seconds, most)
    once = _held(card, way.run, 1, 5, host, way.before)
    device = statistics.median(once)
    if way.before is not None:
        plan = _plan("events", way.run, host, device, seconds, most)
        plan.calls = 1
        return plan
    if device < SHORT and way.graph is not None:
        with contextlib.suppress(Exception):
            replay = way.graph(way.run, IN_GRAPH)
            replay()
            card.synchronize()
            cost = _host_cost(card, Way("", "", lambda _: replay()), finish)
            plan = _plan("graph", lambda _: replay(), cost, device * IN_GRAPH, seconds, most)
            plan.times.host, plan.group = host, IN_GRAPH
            return plan
    return _plan("events", way.run, host, device, seconds, most)


def _plan(how: str, run: Any, cost: float, each: float, seconds: float, most: int) -> _Plan:
    calls = min(QUEUED, max(1, math.ceil(SAMPLE / max(each, 1e-9))))
    samples = max(3, min(most, int(seconds / max(each * calls, 1e-9))))
    return _Plan(Times(how, host=cost), calls, samples, run, 1, cost)


def _finisher(card: Card, way: Way) -> Callable[[Any], object]:
    return way.finish or (lambda _: card.synchronize())


def _host_cost(card: Card, way: Way, finish: Callable[[Any], object]) -> float:
    """Seconds until a call returns, while the card has little to do; until it is done, for ways with own streams."""
    found = []
    for i in range(7):
        card.synchronize()
        began = card.now()
        made = way.run(i)
        if way.wall:
            finish(made)
        found.append(card.now() - began)
        finish(made)
    return statistics.median(found)


def _turn(card: Card, way: Way, plan: _Plan) -> list[float]:
    """Samples of one turn: seconds of a call each."""
    card.synchronize()
    if plan.times.how == "wall":
        return [_wall(card, way, plan.calls) for _ in range(plan.samples)]
    found = _held(card, plan.run, plan.calls, plan.samples, plan.cost, way.before)
    return [one / plan.group for one in found]


def _wall(card: Card, way: Way, calls: int) -> float:
    finish = _finisher(card, way)
    began = card.now()
    made = None
    for i in range(calls):
        made = way.run(i)
    finish(made)
    return (card.now() - began) / calls


def _held(
    card: Card,
    run: Callable[[int], Any],
    calls: int,
    samples: int,
    cost: float,
    before: Callable[[int], object] | None = None,
) -> list[float]:
    """Seconds of a call between events, of which groups are queued while the card is busy with something else."""
    found: list[float] = []
    number = 0
    while len(found) < samples:
        together = min(samples - len(found), max(1, QUEUED // calls))
        card.hold(1.5 * cost * calls * together + 50e-6)
        marks = []
        for _ in range(together):
            if before is not None:
                before(number)
            first = card.mark()
            for _ in range(calls):
                run(number)
                number += 1
            marks.append((first, card.mark()))
        found += [card.between(*pair) / calls for pair in marks]
    return found
