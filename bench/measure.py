"""Timing of contestants side by side, and one record per measurement.

Contestants take turns, round by round. What is trusted is the ratio of two contestants within a round, and the median
of these ratios over all rounds; an absolute time says as much about the machine's other work.
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
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

LIBRARIES = ("tinyplm", "numpy", "numba", "torch", "jax", "transformers")
PEERS = ("torch", "jax", "transformers")
"""Libraries that ours is measured against; NumPy's figures show where time goes."""
TURN = 1.0
"""Seconds after which a turn ends, once something was timed."""

Record = dict[str, Any]


class BenchError(Exception):
    """A benchmark cannot go on; the message is for people."""


class WrongResultError(BenchError):
    """Contestants do not compute the same, so that their times cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line asks of every benchmark.

    Attributes:
        quick: leave out what is large and repeat less.
        large: add what takes minutes.
        threads: that every library may use.
        peers: time other frameworks too, where they are installed.
        data: text for the benchmarks that train on one.
        config: settings of the run that they train.
        steps: updates, where not those of the config.
    """

    quick: bool = False
    large: bool = False
    threads: int = 1
    peers: bool = True
    data: Path | None = None
    config: Path | None = None
    steps: int | None = None

    def has(self, *libraries: str) -> bool:
        """Whether these libraries are wanted and installed; says once what is missing."""
        missing = [name for name in libraries if util.find_spec(name) is None]
        for name in missing if self.peers else ():
            say_once(f"{name} is not installed, so it is left out. To compare: pip install {name}")
        return self.peers and not missing


@dataclass(kw_only=True)
class Contestant:
    """One way to do the work, in this process.

    Attributes:
        library: whose code it is, with "ours" for this package.
        variant: which of the library's ways.
        run: does the work once.
        prepare: called before each run, outside the time.
    """

    library: str
    variant: str
    run: Callable[[], Any]
    prepare: Callable[[], object] | None = None

    def seconds(self, repeats: int) -> list[float]:
        """The seconds of so many calls."""
        return seconds(self.run, repeats, self.prepare)


def seconds(
    run: Callable[[], Any], repeats: int, prepare: Callable[[], object] | None = None
) -> list[float]:
    """Seconds of so many calls, or of as many as TURN leaves room for.

    A call before them brings data back into the caches and wakes threads. It counts too if it took longer than a turn,
    as waking takes no share of that. Afterwards threads are left time to stop spinning.
    """
    gc.collect()
    found: list[float] = []
    end = time.perf_counter() + TURN
    for number in range(repeats + 1):
        if prepare:
            prepare()
        began = time.perf_counter()
        run()
        now = time.perf_counter()
        if number or now > end:
            found.append(now - began)
        if found and now > end:
            break
    settle()
    return found


def settle(limit: float = 0.5) -> None:
    """Wait until this process computes no more: threads of BLAS and OpenMP spin for a while after their last work."""
    end = time.perf_counter() + limit
    while time.perf_counter() < end:
        began, used = time.perf_counter(), time.process_time()
        time.sleep(0.01)
        if time.process_time() - used < 0.1 * (time.perf_counter() - began):
            return


@dataclass
class Samples:
    """Values of each call, seconds or bytes, in one list a round."""

    rounds: list[list[float]] = field(default_factory=list)

    @property
    def all(self) -> list[float]:
        """Every call's value."""
        return [value for calls in self.rounds for value in calls]


def race(contestants: Sequence[Contestant], *, rounds: int, repeats: int) -> list[Samples]:
    """Time the contestants in turns; every other round in reverse order."""
    samples = [Samples() for _ in contestants]
    turns = list(zip(contestants, samples, strict=True))
    for number in range(rounds):
        for contestant, found in turns if number % 2 == 0 else reversed(turns):
            found.rounds.append(contestant.seconds(repeats))
    return samples


def measure(
    contestants: Sequence[Contestant],
    *,
    rounds: int,
    repeats: int,
    work: Mapping[str, float] | None = None,
    **about: Any,
) -> list[Record]:
    """Race the contestants and describe each.

    Args:
        contestants: the first is ours; the others are compared with it.
        rounds: turns of each contestant.
        repeats: timed calls in a turn.
        work: amounts done by a call, such as tokens; each is reported per second.
        about: see `describe`.
    """
    samples = race(contestants, rounds=rounds, repeats=repeats)
    found = describe(contestants, samples, **about)
    for record in found:
        for name, amount in (work or {}).items():
            record[f"{name}_per_second"] = amount / record["median"]
    return found


def describe(
    contestants: Sequence[Contestant],
    samples: Sequence[Samples],
    *,
    benchmark: str,
    what: str,
    shapes: str,
    options: Options,
    dtype: str = "float32",
    unit: str = "s",
    floor: tuple[float, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> list[Record]:
    """One record for each contestant; that of the first says how it stands against the best peer and the floor.

    Args:
        contestants: the first is ours.
        samples: of each.
        benchmark: the name of the benchmark.
        what: is measured.
        shapes: sizes, as text.
        options: of the command line.
        dtype: of the arrays.
        unit: of the samples, "s" or "B".
        floor: the least that the work can take, and what that is.
        more: further fields of each record.
    """
    about = {
        "benchmark": benchmark,
        "what": what,
        "shapes": shapes,
        "dtype": dtype,
        "unit": unit,
        "threads": options.threads,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "machine": machine(),
        "versions": _versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **(more or {}),
    }
    found = [
        _record(contestant, own, contestants[0], samples[0]) | about
        for contestant, own in zip(contestants, samples, strict=True)
    ]
    for record in found if floor else ():
        record |= {"share_of_floor": floor[0] / record["median"], "floor": floor[1]}
    peers = [record for record in found if record["library"] in PEERS]
    if peers and found[0]["library"] == "ours":
        best = min(peers, key=lambda record: record["ratio"])
        found[0] |= {
            "times_best_peer": best["ratio"],
            "times_best_peer_range": best["ratio_range"],
            "best_peer": f"{best['library']} {best['variant']}",
        }
    return found


def _record(contestant: Contestant, samples: Samples, base: Contestant, others: Samples) -> Record:
    """A measurement as one JSON object.

    `spread` is the middle half of the values over their median; `ratio` the median over the rounds of this contestant's
    median over that of the one it is compared with, above 1 where this one takes more.
    """
    values = samples.all
    median = statistics.median(values)
    ratios = [
        statistics.median(mine) / max(statistics.median(theirs), 1e-12)
        for mine, theirs in zip(samples.rounds, others.rounds, strict=True)
    ]
    low, high = np.quantile(values, [0.25, 0.75])
    return {
        "library": contestant.library,
        "variant": contestant.variant,
        "median": median,
        "minimum": min(values),
        "spread": float(high - low) / max(median, 1e-12),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "ratio_to": f"{base.library} {base.variant}",
        "rounds": len(samples.rounds),
        "calls": len(values),
    }


def require_close(what: str, ours: Any, theirs: Any, tolerance: float = 1e-4) -> None:
    """Refuse to time contestants that compute different numbers, or arrays whose largest difference is too large."""
    mine, others = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if mine.shape != others.shape:
        raise WrongResultError(f"{what}: ours has shape {mine.shape}, theirs {others.shape}.")
    error = abs(mine - others).max(initial=0)
    if not error <= tolerance * max(abs(mine).max(initial=0), abs(others).max(initial=0)):
        shown = f"ours is {ours!r}, theirs {theirs!r}" if not mine.ndim else f"error {error:.1e}"
        raise WrongResultError(
            f"{what}: {shown}; they differ by more than {tolerance:g} of it, so their times cannot be compared."
        )


def note(text: str) -> None:
    """A line for people; records alone go to standard output."""
    print(text, file=sys.stderr, flush=True)


_said: set[str] = set()


def say_once(text: str) -> None:
    """A line for people, unless they have read it."""
    if text not in _said:
        _said.add(text)
        note(text)


def table(records: Iterable[Record]) -> str:
    """Records for people: each contestant's figures, and under them how ours stands."""
    groups: dict[str, list[Record]] = {}
    for r in records:
        title = (
            f"{r['benchmark']}: {r['what']}  {r['shapes']}  {r['dtype']}, threads {r['threads']}"
        )
        groups.setdefault(title, []).append(r)
    return "\n".join(line for title, group in groups.items() for line in _lines(title, group))


def _lines(title: str, group: list[Record]) -> list[str]:
    lines = ["", title]
    for r in group:
        rates = "".join(
            f"  {value:,.4g} {name.removesuffix('_per_second').replace('_', ' ')}/s"
            for name, value in r.items()
            if name.endswith("_per_second")
        )
        floor = f"  of the floor {r['share_of_floor']:4.0%}" if "share_of_floor" in r else ""
        faults = f"  {r['faults']:,.0f} page faults a step" if "faults" in r else ""
        lines.append(
            f"  {r['library'] + ' ' + r['variant']:<36} {shown(r['median'], r['unit'])}  spread {r['spread']:4.0%}  "
            f"times ours {r['ratio']:6.2f}{floor}{rates}{faults}"
        )
    if "exponent" in group[0]:
        return lines
    if "times_best_peer" in group[0]:
        low, high = group[0]["times_best_peer_range"]
        lines.append(
            f"  => {group[0]['times_best_peer']:.2f} times the best peer, {group[0]['best_peer']} "
            f"(rounds {low:.2f} to {high:.2f})"
        )
    if "floor" in group[0]:
        lines.append(f"  floor: {group[0]['floor']}")
    return lines


def shown(value: float, unit: str) -> str:
    """Seconds or bytes with a unit that fits, nine characters wide."""
    scales = {"s": ((1.0, "s "), (1e-3, "ms"), (1e-6, "us")), "B": ((1e9, "GB"), (1e6, "MB"))}
    size, name = next((one for one in scales[unit] if value >= one[0]), scales[unit][-1])
    return f"{value / size:7.2f} {name}"


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


def cpu_information(name: str) -> str:
    """A field of the first processor, where the system tells."""
    information = Path("/proc/cpuinfo")
    for line in information.read_text("utf-8").splitlines() if information.is_file() else ():
        if line.partition(":")[0].strip() == name:
            return line.partition(":")[2].strip()
    return ""


def machine() -> str:
    """The processor, its cores and the system."""
    name = cpu_information("model name") or platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"
