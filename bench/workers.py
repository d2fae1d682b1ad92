"""Contestants in processes of their own.

Large arrays and thread pools of one library change the other's times within one process: allocators keep or return
memory for all, and pools of several libraries spin at once. So each contestant gets a process; they still take turns.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from .measure import PEERS, BenchError, Contestant, note, seconds

Entry = tuple[str, str, Callable[[], Any]]
"""Library, variant, and what builds the callable to time in the process: a module's function, or a partial of one."""


class Worker(Contestant):
    """A process that has built something and is asked about it."""

    def __init__(self, library: str, variant: str, build: Callable[[], Any]) -> None:
        super().__init__(library=library, variant=variant, run=lambda: self.ask(_call))
        context = get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, build), daemon=True)
        self._process.start()
        other.close()
        self._answer()

    def seconds(self, repeats: int) -> list[float]:
        """The seconds of so many calls in the process."""
        return self.ask(seconds, repeats)

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The answer of function(what was built, *arguments), called in the process."""
        self._pipe.send((function, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            right, answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            right, answer = (
                False,
                f"its process ended with {self._process.exitcode}; out of memory?",
            )
        if not right:
            raise BenchError(f"{self.library} {self.variant}: {answer}")
        return answer

    def close(self) -> None:
        """End the process and give its memory back."""
        self._pipe.close()  # it then has nobody to serve
        self._process.join(5)
        self._process.kill()
        self._process.join()


@contextmanager
def crew(entries: list[Entry]) -> Iterator[list[Worker]]:
    """A process for each entry, built and called once; a peer that cannot is left out, with a line that says why."""
    workers: list[Worker] = []
    try:
        for library, variant, build in entries:
            try:
                workers.append(Worker(library, variant, build))
            except BenchError as error:
                if library not in PEERS:
                    raise
                note(f"left out: {str(error).splitlines()[0]}")
        yield workers
    finally:
        for worker in workers:
            worker.close()


def _call(built: Callable[[], Any]) -> Any:
    return built()


def _serve(pipe: Any, build: Callable[[], Any]) -> None:
    try:
        built = build()
        pipe.send((True, None))
        while True:
            function, arguments = pipe.recv()
            pipe.send((True, function(built, *arguments)))
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        return
    except Exception as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))
