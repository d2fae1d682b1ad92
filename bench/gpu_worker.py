"""A process that works on the card, and what keeps it in order from outside.

A fault of a kernel ends a process' use of the card, and a kernel that never ends never gives it back. So nothing
touches the card but a process that is told what to do line by line, answers line by line, and is replaced by a fresh
one when it is lost or late. The process that keeps order never loads anything of the card's.
"""

import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

Record = dict[str, Any]
START = 90.0
"""Seconds that a process may take until it is ready."""
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Task:
    """One thing to do on the card.

    Attributes:
        section: of the report that its records belong to.
        name: of it, for people; no two have the same.
        function: "module:function", called with the process' State and the arguments; it yields records.
        arguments: for it; what JSON can hold.
        seconds: that it is expected to take.
        limit: seconds after which it is lost.
    """

    section: str
    name: str
    function: str
    arguments: tuple[Any, ...] = ()
    seconds: float = 5.0
    limit: float = 60.0


@dataclass
class State:
    """What a worker's tasks share: the settings of the command, and whatever they keep from one to the next."""

    settings: dict[str, Any]
    kept: dict[str, Any] = field(default_factory=dict)


class Worker:
    """A process for tasks, started when there is one and again after it was lost."""

    def __init__(self, settings: dict[str, Any], log: Path) -> None:
        self.settings, self.log = settings, log
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()

    def run(self, task: Task, limit: float) -> Iterator[Record]:
        """The records of a task as they come; the last one has "failed" in it where it could not go on."""
        try:
            if self._process is None:
                self._start()
            self._tell({"task": asdict(task)})
        except (OSError, _LostError) as error:
            self.close()
            yield {"failed": f"the process for it did not start: {error}"}
            return
        end = time.monotonic() + limit
        while True:
            try:
                answer = self._answer(end)
            except _LostError as error:
                self.close()
                yield {"failed": str(error)}
                return
            if "record" in answer:
                yield answer["record"]
            elif "done" in answer:
                if answer["done"]:  # it can do nothing more on the card
                    self.close()
                return

    def close(self) -> None:
        """End the process and all that it started; the driver takes the card's memory back."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr]
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        self._reader.join(2)

    def _start(self) -> None:
        self._lines = queue.Queue()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.gpu_worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True, encoding="utf-8", cwd=ROOT, start_new_session=True,
                env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
            )  # fmt: skip
        given = self._process.stdout, self._lines
        self._reader = threading.Thread(target=_read, args=given, daemon=True)
        self._reader.start()
        self._tell({"settings": self.settings})
        self._answer(time.monotonic() + START)

    def _tell(self, what: dict[str, Any]) -> None:
        pipe = self._process.stdin  # type: ignore[union-attr]
        pipe.write(json.dumps(what) + "\n")  # type: ignore[union-attr]
        pipe.flush()  # type: ignore[union-attr]

    def _answer(self, end: float) -> dict[str, Any]:
        """The next line that is an answer."""
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise _LostError("it took too long and was ended; does a kernel hang?") from None
            if line is None:
                code = self._process.wait(5) if self._process else "an order"
                raise _LostError(f"its process ended with {code}; its last words are in {self.log}")
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
                if isinstance(answer, dict):
                    return answer


class _LostError(Exception):
    """The process ended or is to be ended."""


def _read(pipe: IO[str], lines: "queue.Queue[str | None]") -> None:
    with pipe:
        for line in pipe:
            lines.put(line)
    lines.put(None)


# In the process.


def is_lost(state: State) -> bool:
    """Whether the card answers this process no more, as after an illegal address."""
    xp = state.kept.get("xp")
    if xp is None:
        return False
    try:
        xp.cuda.Device().synchronize()
        return int(xp.arange(3).sum()) != 3
    except Exception:
        return True


def said(error: BaseException) -> str:
    """An error for a table: its kind, and its text on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:600]}"


def perform(task: dict[str, Any], state: State) -> Iterator[Record]:
    """The records of a task; one with "failed" in it if it ends with an error."""
    try:
        module, _, name = task["function"].partition(":")
        function = getattr(importlib.import_module(module), name)
        yield from function(state, *task["arguments"])
    except Exception as error:
        traceback.print_exc()
        yield {"failed": said(error)}


def serve(given: IO[str], answers: IO[str]) -> None:
    """Do what is told, until nothing more is."""

    def answer(what: dict[str, Any]) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    state = State(json.loads(given.readline())["settings"])
    answer({"ready": True})
    for line in given:
        task = json.loads(line)["task"]
        failed = False
        for record in perform(task, state):
            failed = failed or "failed" in record
            answer({"record": record})
        answer({"done": "lost" if failed and is_lost(state) else ""})


def main() -> None:
    """Answers have the standard output to themselves: what libraries print there goes to the log."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers)
    answers.flush()
    os._exit(0)  # libraries of the card may hang as they are taken down


if __name__ == "__main__":
    main()
