"""Everything on a card in one call: what is there, compiling, open questions, ceilings, correctness, times, peers.

python -m bench gpu                          what ten minutes allow, the most important first
python -m bench gpu --dry                    the cases with their floors and predictions; needs no card
python -m bench gpu matmul attention         some families or kernels
python -m bench gpu matmul --sizes 4096x4096x4096,12288x3072x768
python -m bench gpu --quick --minutes 3

Records go line by line to a file under $OUT, else under runs/bench; the table comes last, on standard output. The card
is used as it is found: no setting of it is changed. Whatever touches it runs in a process of its own (gpu_worker.py).
"""

import argparse
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinyplm.kernels import cuda

from . import gpu_plan
from .gpu_report import Report, table
from .gpu_worker import Record, Task, Worker
from .measure import note

KEPT_BACK = 12.0
"""Seconds at the end for the table."""
COMPILING = 14
"""Processes that compile at once, at most."""
WARMING = 60.0
"""Seconds that are waited at most for what peers compile."""
SECTIONS = ("compile", "questions", "ceilings", "checks", "times", "readable")


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for; 1 where there is no card."""
    asked = _parser().parse_args(arguments)
    settings = {
        "kernels": asked.kernels,
        "sizes": _sizes(asked.sizes),
        "quick": asked.quick,
        "forced": asked.plans,
        "peers": not asked.ours_only,
        "seed": asked.seed if asked.seed is not None else time.time_ns() % (1 << 31),
    }
    if asked.dry:
        print(gpu_plan.dry(settings))
        return 0
    if (missing := _missing()) is not None:
        note(f"gpu: {missing}")
        return 1
    sections = asked.sections.split(",") if asked.sections else list(SECTIONS)
    if unknown := set(sections) - set(SECTIONS):
        note(f"gpu: no section {', '.join(sorted(unknown))}; known: {', '.join(SECTIONS)}")
        return 2
    if asked.kernels and not asked.sections:
        sections = [name for name in SECTIONS if name != "questions"]
    return Run(settings, asked.minutes * 60 - KEPT_BACK, asked.output or _folder()).all(sections)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("kernels", metavar="KERNEL", nargs="*", help="families (matmul, attention, ...) or kernels")
    add(
        "--sizes",
        metavar="LIST",
        default="",
        help="instead of the standard ones, as 8192x8192x8192,..",
    )
    add("--quick", action="store_true", help="the few most important sizes")
    add("--minutes", type=float, default=10.0, help="that the whole may take; 10 by default")
    add("--sections", metavar="LIST", help=f"some of {','.join(SECTIONS)}")
    add(
        "--plans", action="store_true", help="every plan of products first, not only the chosen one"
    )
    add("--ours-only", action="store_true", help="no other framework, even if installed")
    add("--seed", type=int, help="of the data; another one each time by default")
    add("--output", metavar="FOLDER", type=Path, help="$OUT, else runs/bench, by default")
    add("--dry", action="store_true", help="list the cases; needs no card")
    return parser


def _sizes(text: str) -> list[list[int]]:
    try:
        found = [[int(n) for n in one.split("x")] for one in text.split(",") if one]
    except ValueError:
        found = [[0]]
    if any(n < 1 for one in found for n in one):
        raise SystemExit(f"--sizes {text}: expected sizes such as 4096x4096x4096,12288x768x768")
    return found


def _folder() -> Path:
    return Path(os.environ["OUT"]) if os.environ.get("OUT") else Path("runs", "bench")


def _missing() -> str | None:
    """What is not here that is needed, in a sentence; this process only asks the driver."""
    from tinyplm.recipes.doctor import cuda

    found = cuda()
    if not found["cards"]:
        what = (
            "no driver of NVIDIA's is installed"
            if found["driver"] is None
            else "the driver knows no card"
        )
        return f"{what}, and this benchmark needs a card; --dry lists what it would time."
    if find_spec("cupy") is None:
        return f'CuPy is not installed: pip install "tinyplm[{found["extra"] or "cuda13"}]".'
    return None


@dataclass
class Run:
    """One call of the command.

    Attributes:
        settings: for the processes.
        seconds: that it may take.
        folder: of its files.
    """

    settings: dict[str, Any]
    seconds: float
    folder: Path

    def __post_init__(self) -> None:
        now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        self.began = time.monotonic()
        self.report = Report(self.folder / f"gpu-{now}.jsonl")
        self.log = self.folder / f"gpu-{now}.log"
        self.workers: list[Worker] = []
        self.lock = threading.Lock()
        self.late = False

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.monotonic() - self.began)

    def all(self, sections: list[str]) -> int:
        """Section by section, then the table; 1 if something is wrong."""
        worker = self.hired()
        try:
            here = self.do(worker, gpu_plan.here())
            if not any("card" in record for record in here):
                reason = next((r["failed"] for r in here if "failed" in r), "it said nothing")
                note(f"gpu: the card does not answer: {reason}")
                return 1
            self.sections(worker, sections, here[0])
        except KeyboardInterrupt:
            note("gpu: stopped")
        finally:
            for each in self.workers:
                each.close()
        text = table(self.report)
        self.log.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
        print(text, flush=True)
        return int(any(map(_is_wrong, self.report.records)))

    def sections(self, worker: Worker, names: list[str], here: Record) -> None:
        """One after the other; what peers compile is compiled while ours is checked."""
        warm: list[threading.Thread] = []
        for name in names:
            note(f"{time.monotonic() - self.began:4.0f} s  {name}")
            if name == "compile":
                made = [r["file"] for r in self.do(worker, gpu_plan.discover()) if "file" in r]
                arch = here.get("architecture", "sm_90a")
                tasks = gpu_plan.compiling([*cuda.FILES, *made], arch)
                self.wait(self.shared(tasks, min(COMPILING, os.cpu_count() or 1)), self.left)
                continue
            if name == "checks" and "times" in names:
                warm = self.shared(gpu_plan.warm(self.settings), 1)
            elif name == "times":
                self.wait(warm, min(self.left - 60, WARMING))
            for task in gpu_plan.tasks(name, self.settings):
                self.do(worker, task)

    def shared(self, tasks: list[Task], count: int) -> list[threading.Thread]:
        """Have tasks done side by side by so many processes, each task once."""
        rest = iter(tasks)
        team = [
            threading.Thread(target=self.share, args=(rest,), daemon=True)
            for _ in range(min(count, len(tasks)))
        ]
        for thread in team:
            thread.start()
        return team

    def wait(self, team: list[threading.Thread], seconds: float) -> None:
        """Until they are done, or for so long; then what they still do is ended."""
        end = time.monotonic() + max(0.0, seconds)
        for thread in team:
            thread.join(max(0.0, end - time.monotonic()))
        self.late = True
        for each in self.workers[1:]:
            each.close()
        for thread in team:
            thread.join(10)
        self.late = False

    def hired(self) -> Worker:
        """A process, ended with the run."""
        self.workers.append(Worker(self.settings, self.log))
        return self.workers[-1]

    def share(self, tasks: Iterator[Task]) -> None:
        """Do tasks in a process of their own, those that others leave."""
        worker = self.hired()
        while not self.late:
            with self.lock:
                task = next(tasks, None)
            if task is None:
                break
            self.do(worker, task)
        worker.close()

    def do(self, worker: Worker, task: Task) -> list[Record]:
        """The records of a task, which are written as they come; none if there is no time for it."""
        about = {"section": task.section, "name": task.name}
        found: list[Record] = []
        if self.left < task.seconds:
            self.add({"section": "left out", "name": task.name, "of": task.section})
            return found
        began = time.monotonic()
        for record in worker.run(task, min(task.limit, max(self.left, 1.0))):
            found.append(about | record)
            self.add(found[-1])
        self.add({"section": "done", "name": task.name, "seconds": time.monotonic() - began})
        return found

    def add(self, record: Record) -> None:
        """Write a record."""
        with self.lock:
            self.report.add(record)


def _is_wrong(r: Record) -> bool:
    """Whether a record tells of a wrong result of ours, or of steps that disagree, which may be either's."""
    ours = r.get("library", "ours") == "ours" or r.get("section") == "steps"
    return (ours and "wrong" in r) or r.get("fine") is False
