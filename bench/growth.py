"""How time and memory grow with the length of the text, the layers, the batch and the vocabulary.

Each point is measured in a fresh process. The exponent is that of the power law that fits best: the slope of a line
through the logarithms. 1 is linear, 2 quadratic. Takes minutes, so it runs only when named.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from . import attention, steps
from .measure import Contestant, Options, Record, Samples, describe, note, seconds
from .memory import TINY, forget_peak, peak, ready
from .workers import Entry, crew

BASE = steps.Size(4, 4, 256, 1, 256, 1024)
SWEEPS: dict[str, tuple[int, ...]] = {
    "positions": (256, 512, 1024, 2048, 4096),
    "layers": (2, 4, 8, 16),
    "batch": (1, 2, 4, 8),
    "vocabulary": (1_000, 4_000, 16_000, 64_000),
}


def run(options: Options) -> Iterator[Record]:
    """A training step against each of these, and attention forwards and backwards against positions."""
    for axis, values in SWEEPS.items():
        if options.quick:
            values = values[:2]
        sizes = [replace(BASE, **{axis: value}) for value in values]
        points = [steps.entries(size, options, compiled=False)[:2] for size in sizes]
        yield from _curve("training step", axis, values, points, options)
        if axis == "positions":
            shapes = [(1, 12, T, 64) for T in values]
            points = [attention.entries(s, options, backward=True)[:2] for s in shapes]
            yield from _curve("attention 1x12xTx64", axis, values, points, options)


def _tiny(build: Any) -> Any:
    """The same at a size that takes no time: the first argument is a Size, or the shape of attention."""
    first, *others = build.args
    small = TINY if isinstance(first, steps.Size) else (1, 1, 8, 8)
    return partial(build.func, small, *others, **build.keywords)


def _curve(
    what: str, axis: str, values: tuple[int, ...], points: list[list[Entry]], options: Options
) -> Iterator[Record]:
    """Records of time and of memory at each point."""
    found: dict[str, list[list[Samples]]] = {"s": [], "B": []}
    contestants: list[Contestant] = []
    for entries in points:
        times, sizes, contestants = [], [], []
        for library, variant, build in entries:
            with crew([(library, variant, partial(ready, build, _tiny(build)))]) as workers:
                for worker in workers:
                    calls, most = worker.ask(_point, 2 if options.quick else 5)
                    times.append(Samples([calls]))
                    sizes.append(Samples([[most]]))
                    contestants.append(worker)
        found["s"].append(times)
        found["B"].append(sizes)
    for unit, quantity in (("s", "time"), ("B", "memory")):
        powers = [
            exponent(values, [point[i].all[0] if unit == "B" else np.median(point[i].all) for point in found[unit]])
            for i in range(len(contestants))
        ]  # fmt: skip
        said = ", ".join(f"{c.library} {p:.2f}" for c, p in zip(contestants, powers, strict=True))
        note(f"{what}: {quantity} grows with {axis} to the power of: {said}")
        for value, samples in zip(values, found[unit], strict=True):
            records = describe(
                contestants,
                samples,
                benchmark="growth",
                what=f"{what}, {quantity} against {axis}",
                shapes=f"{axis} {value}",
                unit=unit,
                options=options,
                more={"axis": axis, "value": value},
            )
            for record, power in zip(records, powers, strict=True):
                yield record | {"exponent": power}


def exponent(x: Any, y: Any) -> float:
    """The power of x that y grows with: the slope of the least-squares line through the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _point(built: tuple[Any, float], repeats: int) -> tuple[list[float], float]:
    """Seconds of calls, and how much memory they need beyond what the process held before."""
    call, before = built
    call()
    forget_peak()
    found = seconds(call, repeats)
    return found, max(peak() - before, 1.0)
