"""The memory of a training step, each contestant alone in a fresh process, and pages asked of the system at each step.

`resident` is the most that the process holds during its second to sixth step; `of the step` is that without what it
held after everything was imported, a tiny step was done, and the model built: gradients, moments and activations.
Ratios are peer over ours: above 1, ours needs less.
"""

import gc
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from . import steps
from .measure import Contestant, Options, Record, Samples, describe
from .workers import crew

TINY = steps.Size(1, 1, 8, 1, 8, 8)
COUNTED = 3
"""Steps whose page faults are counted, after three to get used to the work."""


def run(options: Options) -> Iterator[Record]:
    """The sizes of training-step."""
    for size, _, _ in steps.sizes(options):
        contestants: list[Contestant] = []
        found: list[dict[str, float]] = []
        for library, variant, build in steps.entries(size, options, compiled=options.large):
            tiny = partial(build.func, TINY, **build.keywords)
            with crew([(library, variant, partial(ready, build, tiny))]) as workers:
                for worker in workers:
                    found.append(worker.ask(_used))
                    contestants.append(worker)
        for kind, what in (("peak", "resident"), ("step", "of the step")):
            samples = [Samples([[one[kind]]]) for one in found]
            records = describe(
                contestants,
                samples,
                benchmark="memory",
                what=f"{size}: memory {what}",
                shapes=size.shapes,
                unit="B",
                options=options,
            )
            for record, one in zip(records, found, strict=True):
                yield record | {"faults": one["faults"], "before": one["before"]}


def ready(build: Callable[[], Any], tiny: Callable[[], Any]) -> tuple[Callable[[], Any], float]:
    """What to call, and what the process holds before; a tiny one first loads what is loaded at the first use."""
    tiny()()
    step = build()
    gc.collect()
    return step, resident()


def _used(built: tuple[Callable[[], Any], float]) -> dict[str, float]:
    """Bytes held before and during steps, and page faults of a step."""
    step, before = built
    step()  # compiles
    forget_peak()
    step()
    step()
    first = page_faults()
    for _ in range(COUNTED):
        step()
    faults = (page_faults() - first) / COUNTED
    return {
        "before": before,
        "peak": (most := peak()),
        "step": max(most - before, 1.0),
        "faults": faults,
    }


def resident() -> float:
    """Bytes that this process holds in memory."""
    return _status("VmRSS") or peak()


def peak() -> float:
    """The most that it ever held, or since `forget_peak` where the system can forget."""
    if found := _status("VmHWM"):
        return found
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most * (1 if sys.platform == "darwin" else 1024))


def forget_peak() -> None:
    """Begin anew, on Linux."""
    file = Path("/proc/self/clear_refs")
    if file.exists():
        file.write_text("5", encoding="ascii")


def page_faults() -> int:
    """Pages that this process has asked of the system."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _status(name: str) -> float:
    """A field of the process's status in bytes, 0 where there is none."""
    file = Path("/proc/self/status")
    for line in file.read_text("utf-8").splitlines() if file.is_file() else ():
        if line.startswith(f"{name}:"):
            return float(line.split()[1]) * 1024
    return 0.0
