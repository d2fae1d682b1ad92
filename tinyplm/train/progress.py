"""What a run says of itself while it runs: a line for the reader, a file for everything else.

The line goes to standard error, so that standard output holds results only. The file has one JSON
object a line, which any tool reads, and survives interruption: an interrupted and resumed run
leaves the same records as one that was never interrupted, apart from those that tell the time.
"""

import json
import math
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np

from tinyplm.errors import CheckpointError, ConfigError, DataError, TinyplmWarning
from tinyplm.train.checkpoint import replace_file

_WINDOW = 50  # updates over which speed is measured: steady, yet soon right after a change


def duration(seconds: float) -> str:
    """Return a time to read, such as `48 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"


class Progress:
    """A line with step, loss, tokens per second and time left.

    On a terminal it is one line that is written over, drawn by tqdm where that is installed;
    elsewhere it is a plain line every `every` seconds, so that a log stays readable. With
    `quiet=True` nothing is printed.

        with Progress(1000, start=resumed) as progress:
            for step in train(...):
                progress.update(step.number, loss=step.loss, tokens=step.tokens)
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        quiet: bool = False,
        stream: TextIO | None = None,
        every: float = 30.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Expect `total` updates, of which a resumed run has done `start`."""
        self._total, self._step, self._quiet = total, start, quiet
        self._stream = sys.stderr if stream is None else stream
        self._every, self._clock = every, clock
        self._printed = clock()
        # Pairs of a time and the tokens seen by then; speed is taken between first and last.
        self._seen = deque([(self._printed, 0, start)], maxlen=_WINDOW + 1)
        self._written = 0  # length of the line that stands on the terminal now
        self._bar: Any = None
        self._terminal = not quiet and self._stream.isatty()
        if self._terminal:
            self._bar = _bar(total, start, self._stream)

    def update(self, step: int, *, loss: float, tokens: int) -> None:
        """Tell that update `step` is done, its loss in nats per token, and how many it read."""
        if self._quiet:
            return
        now = self._clock()
        self._seen.append((now, self._seen[-1][1] + tokens, step))
        text = f"loss {loss:.4f}{self._speed()}"
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(step - self._step)
        elif self._terminal:
            if now - self._printed >= 0.1 or step >= self._total:
                self._over(f"step {step:,}/{self._total:,}  {text}")
                self._printed = now
        elif now - self._printed >= self._every or step >= self._total:
            print(f"step {step:,}/{self._total:,}  {text}", file=self._stream, flush=True)
            self._printed = now
        self._step = step

    def note(self, text: str) -> None:
        """Print a line of its own, such as where a checkpoint was saved, above the progress."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
            return
        if self._terminal:
            self._over("")
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the last state standing and go to a new line."""
        if self._bar is not None:
            self._bar.close()
        elif self._terminal and self._written:
            print(file=self._stream, flush=True)
        self._bar, self._terminal, self._quiet = None, False, True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _speed(self) -> str:
        """Return tokens a second and the time left, as far as they are known."""
        (began, tokens_then, step_then), (now, tokens_now, step_now) = self._seen[0], self._seen[-1]
        seconds, steps = now - began, step_now - step_then
        if seconds <= 0 or steps <= 0:
            return ""
        left = (self._total - step_now) * seconds / steps
        return f"  {(tokens_now - tokens_then) / seconds:,.0f} tokens/s  {duration(left)} left"

    def _over(self, text: str) -> None:
        """Write over the line that stands on the terminal."""
        self._stream.write("\r" + text.ljust(self._written) + ("\r" if not text else ""))
        self._stream.flush()
        self._written = len(text)


def _bar(total: int, start: int, stream: TextIO) -> Any:
    """Return a bar of tqdm, or None where that is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    # The text is the description, as tqdm puts a comma before what it calls a postfix.
    form = "{percentage:3.0f}% |{bar:20}| step {n_fmt}/{total_fmt}  {desc}"
    return tqdm(total=total, initial=start, file=stream, bar_format=form, dynamic_ncols=True)


class MetricsLog:
    """A file of records, one JSON object a line, each handed to the system as soon as it is made.

    A log that exists is continued. A run resumed after update `step` passes `resumed=step`:
    records of later updates, which the interrupted run had made but not saved, are removed, all
    or nothing, because the resumed run makes them again. For the file to be that of an
    uninterrupted run, write all records of a step, evaluations too, before saving its checkpoint,
    and call `sync` then.

    A last line that a crash cut short is removed. Not-a-number and infinities are written as the
    strings "nan", "inf" and "-inf", as JSON has no other form for them; `read_metrics` turns them
    back.
    """

    def __init__(self, path: Path, *, resumed: int | None = None) -> None:
        """Open or make the file.

        Raises:
            CheckpointError: the file cannot be read or written.
        """
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._keep(resumed)
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise self._failed("cannot be opened", error) from error

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; it must have a whole number under "step".

        Raises:
            CheckpointError: the disk is full or refuses; what was written before is unharmed.
        """
        if not _has_step(record):
            raise ConfigError(
                f"A record needs a whole number under 'step'; this one has {record.get('step')!r}."
            )
        line = json.dumps(
            {key: _written(value) for key, value in record.items()},
            ensure_ascii=False,
            allow_nan=False,
        )
        content = line.encode() + b"\n"
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(content) != len(content):
                raise OSError(f"only a part of {len(content)} bytes was written: is the disk full?")
        except OSError as error:
            os.truncate(self._file.fileno(), end)  # no half line that the next would run into
            raise self._failed(f"has no room for step {record['step']}", error) from error

    def sync(self) -> None:
        """Make all records survive a power cut; to be called before a checkpoint is saved."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed("cannot be flushed to disk", error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _keep(self, resumed: int | None) -> None:
        """Drop a torn last line, and the records after the resumed step."""
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        lines = content.splitlines(keepends=True)
        kept = []
        for number, line in enumerate(lines, start=1):
            record = _parsed(line)
            if record is None or not line.endswith(b"\n"):
                if number < len(lines):
                    warnings.warn(
                        f"{self.path}, line {number}, is no record ({line[:40]!r}): removed. "
                        "Something else has written to this file, or the disk is failing.",
                        TinyplmWarning,
                        stacklevel=3,
                    )
            elif resumed is None or record["step"] <= resumed:
                kept.append(line)
        if len(kept) < len(lines):
            replace_file(self.path, b"".join(kept))

    def _failed(self, what: str, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"{self.path} {what}: {error.strerror or error}. Free some space on this disk or make "
            "the folder writable, then resume from the last checkpoint."
        )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics file, the oldest first; a last line cut short is left out.

    Raises:
        DataError: the file is not there, is not text, or a line is no record.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}. A run writes metrics.jsonl into "
            "its output folder; is this the right folder?"
        ) from error
    records = []
    for number, line in enumerate(lines, start=1):
        record = _parsed(line)
        if record is not None:
            records.append({key: _read(value) for key, value in record.items()})
        elif number < len(lines):
            raise DataError(
                f"{path}, line {number}: expected a JSON object with a whole number under 'step', "
                f"found {line[:40]!r}. Remove the line, or plot another run."
            )
    return records


def _has_step(record: Any) -> bool:
    step = record.get("step") if isinstance(record, Mapping) else None
    return isinstance(step, int | np.integer) and not isinstance(step, bool)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line, or None if it has none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if _has_step(record) else None


def _written(value: Any) -> Any:
    """Return a value as JSON has it: NumPy numbers as Python's, no nan and no infinity."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        return [_written(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _written(item) for key, item in value.items()}
    return value


def _read(value: Any) -> Any:
    """Undo `_written` for nan and the infinities."""
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, list):
        return [_read(item) for item in value]
    if isinstance(value, dict):
        return {key: _read(item) for key, item in value.items()}
    return value
