"""Timing of contestants side by side, and one record per measurement.

Contestants take turns, round by round, in one process. What is trusted is the ratio of two contestants within a round,
and the median of these ratios over all rounds; an absolute time says as much about the machine's other work.
"""

import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

LIBRARIES = ("tinyplm", "numpy", "numba", "torch", "transformers")
PAUSE = 0.05
"""Seconds between contestants: threads of a BLAS or of OpenMP spin for up to about 30 ms after their last work, and
would take a core away from whoever comes next."""

Record = dict[str, Any]


class WrongResultError(Exception):
    """Contestants do not compute the same, so that their times cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks of every benchmark.

    Attributes:
        quick: leave out what is large and repeat less.
        threads: that every library may use.
        peers: time other frameworks too, where they are installed.
        gpt2_small: decode with the published size of GPT-2 small.
        data: text for the benchmarks that train on one.
        config: settings of the run that they train.
        steps: updates, where not those of the config.
    """

    quick: bool = False
    threads: int = 1
    peers: bool = True
    gpt2_small: bool = False
    data: Path | None = None
    config: Path | None = None
    steps: int | None = None


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to do the work.

    Attributes:
        library: whose code it is, with "ours" for this package.
        variant: which of the library's ways.
        run: does the work once.
        prepare: called before each run, outside the time.
    """

    library: str
    variant: str
    run: Callable[[], object]
    prepare: Callable[[], object] | None = None


@dataclass
class Samples:
    """Seconds of each timed call, in one list a round."""

    rounds: list[list[float]] = field(default_factory=list)

    @property
    def all(self) -> list[float]:
        """Every call's seconds."""
        return [seconds for calls in self.rounds for seconds in calls]


def race(
    contestants: Sequence[Contestant], *, rounds: int, repeats: int, pause: float = PAUSE
) -> list[Samples]:
    """Time the contestants in turns; every other round in reverse order.

    Each turn begins with a pause and a call that is not timed, which brings the contestant's data back into the caches
    and wakes its threads.
    """
    samples = [Samples() for _ in contestants]
    turns = list(zip(contestants, samples, strict=True))
    for number in range(rounds):
        gc.collect()
        for contestant, found in turns if number % 2 == 0 else reversed(turns):
            time.sleep(pause)
            found.rounds.append([_seconds(contestant) for _ in range(repeats + 1)][1:])
    return samples


def _seconds(contestant: Contestant) -> float:
    if contestant.prepare:
        contestant.prepare()
    began = time.perf_counter()
    contestant.run()
    return time.perf_counter() - began


def measure(
    contestants: Sequence[Contestant],
    *,
    benchmark: str,
    what: str,
    shapes: str,
    options: Options,
    rounds: int,
    repeats: int,
    dtype: str = "float32",
    work: Mapping[str, float] | None = None,
    pause: float = PAUSE,
) -> list[Record]:
    """Race the contestants and describe each; ratios are to the first of them.

    Args:
        contestants: the first is what the others are compared with.
        benchmark: the name of the benchmark.
        what: is measured.
        shapes: sizes, as text.
        options: of the command line.
        rounds: turns of each contestant.
        repeats: timed calls in a turn.
        dtype: of the arrays.
        work: amounts done by a call, such as tokens; each is reported per second.
        pause: before each turn; 0 where none of the contestants uses threads.
    """
    samples = race(contestants, rounds=rounds, repeats=repeats, pause=pause)
    return [
        record(
            contestant,
            found,
            to=(contestants[0], samples[0]),
            benchmark=benchmark,
            what=what,
            shapes=shapes,
            dtype=dtype,
            options=options,
            more={
                f"{name}_per_second": amount / statistics.median(found.all)
                for name, amount in (work or {}).items()
            },
        )
        for contestant, found in zip(contestants, samples, strict=True)
    ]


def record(
    contestant: Contestant,
    samples: Samples,
    *,
    to: tuple[Contestant, Samples],
    benchmark: str,
    what: str,
    shapes: str,
    dtype: str,
    options: Options,
    more: Mapping[str, Any],
) -> Record:
    """A measurement as one JSON object; times are in seconds.

    `spread` is the middle half of the calls' times over their median; `ratio` the median over the rounds of this
    contestant's median over that of the one it is compared with, above 1 where this one is slower.
    """
    base, base_samples = to
    median = statistics.median(samples.all)
    ratios = [
        statistics.median(mine) / statistics.median(theirs)
        for mine, theirs in zip(samples.rounds, base_samples.rounds, strict=True)
    ]
    low, high = np.quantile(samples.all, [0.25, 0.75])
    return {
        "benchmark": benchmark,
        "what": what,
        "shapes": shapes,
        "dtype": dtype,
        "library": contestant.library,
        "variant": contestant.variant,
        "median": median,
        "minimum": min(samples.all),
        "spread": float(high - low) / median,
        "ratio": statistics.median(ratios),
        "ratio_to": f"{base.library} {base.variant}",
        "rounds": len(samples.rounds),
        "calls": len(samples.all),
        **more,
        "threads": options.threads,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "machine": _machine(),
        "versions": _versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def torch_or_none(options: Options, *others: str) -> Any:
    """PyTorch with the threads asked for; None, and a line that says so, where it or one of the others is missing."""
    if not options.peers:
        return None
    for name in ("torch", *others):
        try:
            __import__(name)
        except ImportError:
            note(
                f"{name} is not installed, so only ours is timed. "
                'For a comparison: pip install "tinyplm[parity]"'
            )
            return None
    torch = sys.modules["torch"]
    torch.set_num_threads(options.threads)
    return torch


def require_close(what: str, ours: float, theirs: float, tolerance: float = 1e-4) -> None:
    """Refuse to time contestants that compute different numbers."""
    if not abs(ours - theirs) <= tolerance * max(abs(ours), abs(theirs)):
        raise WrongResultError(
            f"{what}: ours is {ours!r}, theirs {theirs!r}; they differ by more than {tolerance:g} of it, so their "
            "times cannot be compared."
        )


def note(text: str) -> None:
    """A line for people; records alone go to standard output."""
    print(text, file=sys.stderr, flush=True)


def table(records: Iterable[Record]) -> str:
    """Records for people: median, fastest, spread, ratio."""
    lines, last = [], ""
    for r in records:
        title = (
            f"{r['benchmark']}: {r['what']}  {r['shapes']}  {r['dtype']}, threads {r['threads']}"
        )
        if title != last:
            lines += ["", title]
            last = title
        extra = "".join(
            f"  {value:,.4g} {name.removesuffix('_per_second').replace('_', ' ')}/s"
            for name, value in r.items()
            if name.endswith("_per_second")
        )
        name = f"{r['library']} {r['variant']}"
        lines.append(
            f"  {name:<40} {_time(r['median'])}  fastest {_time(r['minimum'])}  spread {r['spread']:4.0%}  "
            f"ratio {r['ratio']:6.2f}{extra}"
        )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    for unit, size in (("s ", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:7.2f} {unit}"
    return f"{seconds * 1e6:7.1f} us"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if "tinyplm" not in found:  # run from a checkout
        from tinyplm import __version__

        found["tinyplm"] = __version__
    return found


def _machine() -> str:
    information = Path("/proc/cpuinfo")
    name = platform.processor() or platform.machine()
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"
